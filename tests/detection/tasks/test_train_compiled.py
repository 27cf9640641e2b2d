"""Runs with solver.compile and test.compile give what eager runs give; Dynamo makes the graphs, eager runs them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from detection.config.detection import (
    AnchorConfig,
    BoxConfig,
    DetectionConfig,
    DetectorBackboneConfig,
    DetectorDataConfig,
    DetectorSolverConfig,
    RPNConfig,
)
from detection.data.digits import write_digits
from detection.data.index import AnnotationIndex
from detection.engine import compiled
from detection.engine.checkpoint import read_checkpoint
from detection.engine.compiled import Graphs
from detection.tasks.test import load_test_set, measure, restore_detector
from detection.tasks.train import run_training

STEPS = 3


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> DetectionConfig:
    """Images of one size, which is a frame: then eager batches have the same padding."""
    root = write_digits(tmp_path_factory.mktemp("data"), num_train=4, num_test=2).parent
    return DetectionConfig(
        backbone=DetectorBackboneConfig(name="resnet18", norm="frozen_bn", roi_size=2, freeze_at=2),
        anchors=AnchorConfig(sizes=(16.0, 32.0)),
        rpn=RPNConfig(channels=16, allow_outside=True, samples_per_image=16, pre_nms_train=64, post_nms_train=16),
        box=BoxConfig(samples_per_image=8, pool="roi_align"),
        data=DetectorDataConfig(
            train=("digits:train",),
            root=str(root),
            augment=({"HorizontalFlip": {"p": 0.5}}, {"Resize": {"height": 64, "width": 64}}),
            shorter_side=64,
            longer_side=64,
            workers=0,
        ),
        solver=DetectorSolverConfig(iterations=STEPS, images_per_step=2, log_every=1, clip_norm=5.0, base_lr=1e-4),
        device="cpu",
    )


def with_solver(config: DetectionConfig, **options: Any) -> DetectionConfig:
    return replace(config, solver=replace(config.solver, **options))


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [line["loss/total"] for line in lines(run)]


def weights(run: Path, iteration: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"{iteration:07d}.safetensors")


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("eager", marks=pytest.mark.slow),
        pytest.param("inductor", marks=[pytest.mark.compiler, pytest.mark.timeout(1500)]),
    ],
)
def test_a_compiled_run_that_goes_on_equals_an_eager_one(backend, config, tmp_path, monkeypatch) -> None:
    """With parts of a step, averaged weights and operations of a fixed order."""
    monkeypatch.setattr(compiled, "BACKEND", backend)
    eager = replace(with_solver(config, images_per_step=4, accumulate=2, ema_decay=0.9), deterministic=True)
    own = with_solver(eager, compile=True)
    run_training(eager, tmp_path / "eager")
    run_training(with_solver(own, iterations=2), tmp_path / "compiled")
    run_training(own, tmp_path / "compiled", resume=True)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-4)
    found = weights(tmp_path / "compiled", STEPS)
    for name, weight in weights(tmp_path / "eager", STEPS).items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-5)
    assert lines(tmp_path / "compiled")[1]["compiled_graphs"] == 1
    assert lines(tmp_path / "compiled")[-1]["uncompiled_batches"] == 0


@pytest.mark.slow
def test_a_compiled_step_in_half_precision_that_is_not_finite_is_skipped(config, tmp_path) -> None:
    own = with_solver(config, compile=True, precision="bf16", on_not_finite="skip", base_lr=1e30, clip_norm=None)
    run_training(own, tmp_path)
    assert len(lines(tmp_path)) == STEPS
    assert [*(tmp_path / "not_finite").glob("*.json")]


@pytest.mark.slow
def test_compiled_tests_find_what_eager_ones_find(config, tmp_path) -> None:
    run_training(with_solver(config, iterations=1), tmp_path)
    tested = replace(
        config, data=replace(config.data, test=("digits:test",)), test=replace(config.test, score_threshold=0.0)
    )
    index: AnnotationIndex = load_test_set(tested, print)
    detector = restore_detector(tested, read_checkpoint(tmp_path), index.class_names)
    own = replace(tested, test=replace(tested.test, compile=True))
    with pytest.MonkeyPatch.context() as patch:  # padded alike
        patch.setattr(Graphs, "_run", lambda graphs, images: graphs.function(images))
        expected = measure(own, [detector], index).records
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    for _ in range(2):  # every look at data.val makes a tester of its own
        found = measure(own, [detector], index).records
        for record, eager in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.as_tensor(record.scores), torch.as_tensor(eager.scores))
            torch.testing.assert_close(
                torch.as_tensor(record.boxes), torch.as_tensor(eager.boxes), rtol=1e-4, atol=1e-3
            )
    assert graphs["unique_graphs"] == before + 1

"""Runs with solver.compile and test.compile give what eager runs give; Dynamo makes the graphs, eager runs them."""

import numpy as np
import pytest
import torch

from detection.config.detection import BoxConfig, DetectionConfig, DetectorBackboneConfig, DetectorSolverConfig
from detection.data.index import AnnotationIndex
from detection.engine import compiled
from detection.engine.checkpoint import read_checkpoint
from detection.engine.compiled import Graphs
from detection.tasks.test import load_test_set, measure, restore_detector
from detection.tasks.train import run_training

STEPS = 3
pytestmark = pytest.mark.usefixtures("no_compiler")
INDUCTOR = pytest.param("inductor", marks=[pytest.mark.compiler, pytest.mark.timeout(1500)])


@pytest.fixture(scope="module")
def config(tiny, lab) -> DetectionConfig:
    """Images of one size, which is a frame: then eager batches have the same padding."""
    resized = ({"HorizontalFlip": {"p": 0.5}}, {"Resize": {"height": 64, "width": 64}})
    parts = {
        "backbone": DetectorBackboneConfig(name="resnet18", norm="frozen_bn", roi_size=2, freeze_at=2),
        "box": BoxConfig(samples_per_image=8, pool="roi_align"),
        "solver": DetectorSolverConfig(iterations=STEPS, images_per_step=2, log_every=1, clip_norm=5.0, base_lr=1e-4),
    }
    data = {"data__test": (), "data__augment": resized, "data__longer_side": 64}
    return lab.changed(tiny, **parts, **data, anchors__sizes=(16.0, 32.0))


@pytest.mark.parametrize("backend", [pytest.param("eager", marks=pytest.mark.slow), INDUCTOR])
def test_a_compiled_run_that_goes_on_equals_an_eager_one(backend, config, lab, tmp_path, monkeypatch) -> None:
    """With parts of a step, averaged weights and operations of a fixed order."""
    monkeypatch.setattr(compiled, "BACKEND", backend)
    keys = {"solver__images_per_step": 4, "solver__accumulate": 2, "solver__ema_decay": 0.9}
    eager = lab.changed(config, **keys, deterministic=True)
    own = lab.changed(eager, solver__compile=True)
    run_training(eager, tmp_path / "eager")
    run_training(lab.changed(own, solver__iterations=2), tmp_path / "compiled")
    run_training(own, tmp_path / "compiled", resume=True)
    lines = lab.metrics_of(tmp_path / "compiled")
    losses, expected = ([line["loss/total"] for line in own] for own in (lines, lab.metrics_of(tmp_path / "eager")))
    assert losses == pytest.approx(expected, rel=1e-4)
    found = lab.weights_of(tmp_path / "compiled", STEPS)
    for name, weight in lab.weights_of(tmp_path / "eager", STEPS).items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-5)
    assert (lines[1]["compiled_graphs"], lines[-1]["uncompiled_batches"]) == (1, 0)


@pytest.mark.slow
def test_a_compiled_step_in_half_precision_that_is_not_finite_is_skipped(config, lab, tmp_path) -> None:
    wild = {"solver__on_not_finite": "skip", "solver__base_lr": 1e30, "solver__clip_norm": None}
    run_training(lab.changed(config, solver__compile=True, solver__precision="bf16", **wild), tmp_path)
    assert len(lab.metrics_of(tmp_path)) == STEPS
    assert [*(tmp_path / "not_finite").glob("*.json")]


@pytest.mark.slow
def test_compiled_tests_find_what_eager_ones_find(config, lab, tmp_path) -> None:
    run_training(lab.changed(config, solver__iterations=1), tmp_path)
    tested = lab.changed(config, data__test=("digits:test",), test__score_threshold=0.0)
    index: AnnotationIndex = load_test_set(tested, print)
    detector = restore_detector(tested, read_checkpoint(tmp_path), index.class_names)
    own = lab.changed(tested, test__compile=True)
    with pytest.MonkeyPatch.context() as patch:  # padded alike
        patch.setattr(Graphs, "_run", lambda graphs, images: graphs.function(images))
        expected = measure(own, [detector], index).records
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    for _ in range(2):  # every look at data.val makes a tester of its own
        found = measure(own, [detector], index).records
        for record, eager in zip(found, expected, strict=True):
            np.testing.assert_allclose(record.scores, eager.scores, rtol=1.3e-6, atol=1e-5)
            np.testing.assert_allclose(record.boxes, eager.boxes, rtol=1e-4, atol=1e-3)
    assert graphs["unique_graphs"] == before + 1

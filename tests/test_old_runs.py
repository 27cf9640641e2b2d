"""Runs that earlier versions wrote are read, give the same detections and figures, and go on from where they were."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from detection.build import build_detector, field_operations
from detection.classification.config import ClassificationConfig
from detection.classification.task import restore_classifier
from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.engine.checkpoint import Checkpoints, load_detector_weights, read_checkpoint
from detection.engine.loop import TrainState
from detection.evaluation.metrics import read_metric
from detection.mask_pasting import paste
from detection.masks import decode
from detection.model.faster_rcnn import FasterRCNN
from detection.structures import ImageBatch, Target
from detection.tasks.test import run_test
from detection.tasks.train import run_training

OLD = Path(__file__).parent / "old_runs"
FORMATS = ("format1",)
RUNS = ("c4/at_60.safetensors", "fpn_mask", "cascade")
CLASSES = ("cat", "dog")
TARGET = Target(
    boxes=torch.tensor([[8.0, 8, 40, 40], [40, 20, 72, 52]]),
    labels=torch.tensor([0, 1]),
    ignore=torch.tensor([False, False]),
)
# The same machine gives the same bits; another one's convolutions round otherwise.
TOLERANCE = 1e-4


def restored(path: Path) -> FasterRCNN:
    checkpoint = read_checkpoint(path)
    detector = build_detector(checkpoint.config, len(CLASSES), pretrained=False)
    load_detector_weights(detector, checkpoint, CLASSES)
    assert isinstance(detector, FasterRCNN)
    return detector


def expected_of(version: str, run: str) -> dict[str, Tensor]:
    return load_file(OLD / version / run.partition("/")[0] / "expected.safetensors")


def images_of(expected: dict[str, Tensor]) -> ImageBatch:
    return ImageBatch.from_images([expected["0.image"], expected["1.image"]], seeds=[1, 2])


@pytest.mark.parametrize(
    ("version", "run"),
    [
        ("format1", "c4/at_60.safetensors"),
        ("format1", "fpn_mask"),
        ("format1", "cascade"),
        ("format2", "mask"),
    ],
)
def test_same_detections(version: str, run: str) -> None:
    expected = expected_of(version, run)
    with torch.no_grad():
        found = restored(OLD / version / run).eval()(images_of(expected))
    for number, detections in enumerate(found):
        for field in ("boxes", "scores", "labels", "masks"):
            if (rows := getattr(detections, field)) is not None:
                torch.testing.assert_close(rows, expected[f"{number}.{field}"], rtol=TOLERANCE, atol=TOLERANCE)
        assert len(detections) == len(expected[f"{number}.scores"]) > 3


@pytest.mark.parametrize(("version", "run"), [("format1", "fpn_mask"), ("format2", "mask")])
def test_masks_stay_torchvisions(version: str, run: str) -> None:
    config, expected = read_checkpoint(OLD / version / run).config, expected_of(version, run)
    assert config.mask.geometry == load_config(DetectionConfig, OLD / version / run / "config.yaml").mask.geometry
    assert config.mask.geometry == "torchvision"
    for number, size in enumerate(images_of(expected).size_list()):
        boxes, masks = expected[f"{number}.boxes"], expected[f"{number}.masks"]
        pasted = decode(field_operations(config)["masks"].on_image(masks, boxes, size), size)
        own = decode(paste(masks, boxes, size, geometry="torchvision"), size)
        assert torch.equal(pasted, expected.get(f"{number}.pasted", own))


@pytest.mark.parametrize("version", FORMATS)
@pytest.mark.parametrize("run", RUNS)
def test_same_figures(version: str, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = json.loads((OLD / version / "figures.json").read_text())[run]
    checkpoint = read_checkpoint(OLD / version / run)
    monkeypatch.chdir(OLD / "data")
    result = run_test(checkpoint.config, checkpoint, tmp_path)
    assert {name: read_metric(result, name) for name in expected} == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("version", FORMATS)
@pytest.mark.parametrize("run", ["c4/at_60.safetensors", "cascade"])
def test_same_losses(version: str, run: str) -> None:
    """Of the anchors and regions that today's version draws, which are others than the generators of 0.1.0 drew.

    Where all are drawn its losses are those of 0.1.0: tests/test_everything_drawn.py.
    """
    expected = expected_of(version, run)
    losses = restored(OLD / version / run).train()(images_of(expected), [TARGET, TARGET])
    wanted = {name.removeprefix("loss."): value for name, value in expected.items() if name.startswith("loss.")}
    torch.testing.assert_close(
        {name: loss.detach() for name, loss in losses.items()}, wanted, rtol=TOLERANCE, atol=TOLERANCE
    )


@pytest.mark.parametrize("version", FORMATS)
def test_a_classifier_gives_the_same_scores(version: str) -> None:
    model = restore_classifier(read_checkpoint(OLD / version / "classifier", ClassificationConfig), CLASSES).eval()
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    image = torch.stack([2 * x + y, 3 * y, (x * y) % 256]).clamp(0, 255).to(torch.uint8)
    with torch.no_grad():
        scores = model(ImageBatch.from_images([image, image.flip(1)]))
    torch.testing.assert_close(scores, load_file(OLD / version / "classifier" / "expected.safetensors")["scores"])


def go_on(run: Path, monkeypatch: pytest.MonkeyPatch, *, until: int = 60) -> dict[str, Tensor]:
    """Resumes ``run`` up to a step; gives the weights there."""
    monkeypatch.chdir(OLD / "data")
    torch.manual_seed(12345)  # a new process has another random state
    config = load_config(DetectionConfig, run / "config.yaml")
    solver = replace(config.solver, iterations=until, checkpoint_every=5)
    run_training(replace(config, data=replace(config.data, test=()), solver=solver), run, resume=True)
    return load_file(run / "checkpoints" / f"{until:07d}.safetensors")


@pytest.mark.parametrize("version", FORMATS)
def test_a_run_goes_on_with_its_weights_momentum_and_random_state(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = tmp_path / "run", list[dict[str, Any]]()
    shutil.copytree(OLD / version / "c4", run)
    restore = Checkpoints.restore

    def noted(self: Checkpoints, newest: Any, state: TrainState) -> None:
        restore(self, newest, state)
        weights = {name: value.clone() for name, value in state.model.state_dict().items()}
        seen.append(copy.deepcopy(state.state_dict()) | {"weights": weights})

    monkeypatch.setattr(Checkpoints, "restore", noted)
    go_on(run, monkeypatch, until=51)
    (restored_state,) = seen
    folder = OLD / version / "c4" / "checkpoints"
    stored = torch.load(folder / "0000050.state.pt", weights_only=True)
    assert restored_state["iteration"] == stored["iteration"] == 50
    torch.testing.assert_close(restored_state["weights"], load_file(folder / "0000050.safetensors"), rtol=0, atol=0)
    momentum, wanted = restored_state["optimizer"]["state"], stored["optimizer"]["state"]
    assert len(wanted) > 60
    torch.testing.assert_close(momentum, wanted, rtol=0, atol=0)
    assert torch.equal(restored_state["random"][0]["cpu"], stored["random"][0]["cpu"])


@pytest.mark.parametrize("version", FORMATS)
def test_a_run_goes_on_to_the_same_weights_however_often_it_stops(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to the weights that 0.1.0 reached, which drew other anchors and regions; those that it fixed are its own."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for run in (whole, parts):
        shutil.copytree(OLD / version / "c4", run)
    reached = go_on(whole, monkeypatch)
    for until in (53, 60):
        again = go_on(parts, monkeypatch, until=until)
    torch.testing.assert_close(again, reached, rtol=0, atol=0)
    folder = OLD / version / "c4"
    start, then = (load_file(folder / name) for name in ("checkpoints/0000050.safetensors", "at_60.safetensors"))
    assert reached.keys() == then.keys()
    for name, value in then.items():
        assert torch.equal(reached[name], start[name]) == torch.equal(value, start[name]), name

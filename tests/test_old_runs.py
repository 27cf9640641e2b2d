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
FIRST = OLD / "format1"
CLASSES = ("cat", "dog")
BOXES = torch.tensor([[8.0, 8, 40, 40], [40, 20, 72, 52]])
TARGET = Target(boxes=BOXES, labels=torch.tensor([0, 1]), ignore=torch.tensor([False, False]))
# The same machine gives the same bits; another one's convolutions round otherwise.
TOLERANCE: Any = {"rtol": 1e-4, "atol": 1e-4}


def restored(path: Path) -> FasterRCNN:
    checkpoint = read_checkpoint(path)
    detector = build_detector(checkpoint.config, len(CLASSES), pretrained=False)
    load_detector_weights(detector, checkpoint, CLASSES)
    assert isinstance(detector, FasterRCNN)
    return detector


def expected_of(run: str) -> tuple[dict[str, Tensor], ImageBatch]:
    expected = load_file(OLD / "/".join(run.split("/")[:2]) / "expected.safetensors")
    return expected, ImageBatch.from_images([expected["0.image"], expected["1.image"]], seeds=[1, 2])


@pytest.mark.parametrize("run", ["format1/c4/at_60.safetensors", "format1/fpn_mask", "format1/cascade", "format2/mask"])
def test_same_detections_and_masks_of_torchvisions_geometry(run: str) -> None:
    expected, images = expected_of(run)
    with torch.no_grad():
        found = restored(OLD / run).eval()(images)
    for number, detections in enumerate(found):
        for field in ("boxes", "scores", "labels", "masks"):
            if (rows := getattr(detections, field)) is not None:
                torch.testing.assert_close(rows, expected[f"{number}.{field}"], **TOLERANCE)
        assert len(detections) == len(expected[f"{number}.scores"]) > 3
    if "mask" not in run:
        return
    config = read_checkpoint(OLD / run).config
    assert config.mask.geometry == load_config(DetectionConfig, OLD / run / "config.yaml").mask.geometry
    assert config.mask.geometry == "torchvision"
    for number, size in enumerate(images.size_list()):
        boxes, masks = expected[f"{number}.boxes"], expected[f"{number}.masks"]
        pasted = decode(field_operations(config)["masks"].on_image(masks, boxes, size), size)
        own = decode(paste(masks, boxes, size, geometry="torchvision"), size)
        assert torch.equal(pasted, expected.get(f"{number}.pasted", own))


@pytest.mark.parametrize("run", ["c4/at_60.safetensors", "fpn_mask", "cascade"])
def test_same_figures(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, checkpoint = json.loads((FIRST / "figures.json").read_text())[run], read_checkpoint(FIRST / run)
    monkeypatch.chdir(OLD / "data")
    result = run_test(checkpoint.config, checkpoint, tmp_path)
    assert {name: read_metric(result, name) for name in expected} == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("run", ["c4/at_60.safetensors", "cascade"])
def test_same_losses(run: str) -> None:
    """Of the anchors and regions that today's version draws, which are others than the generators of 0.1.0 drew.

    Where all are drawn its losses are those of 0.1.0: tests/test_everything_drawn.py.
    """
    expected, images = expected_of(f"format1/{run}")
    losses = restored(FIRST / run).train()(images, [TARGET, TARGET])
    wanted = {name.removeprefix("loss."): value for name, value in expected.items() if name.startswith("loss.")}
    torch.testing.assert_close({name: loss.detach() for name, loss in losses.items()}, wanted, **TOLERANCE)


@pytest.mark.parametrize("version", ["format1", "format2"])
def test_a_classifier_gives_the_same_scores(version: str) -> None:
    run = OLD / version / "classifier"
    model = restore_classifier(read_checkpoint(run, ClassificationConfig), CLASSES).eval()
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    image = torch.stack([2 * x + y, 3 * y, (x * y) % 256]).clamp(0, 255).to(torch.uint8)
    with torch.no_grad():
        scores = model(ImageBatch.from_images([image, image.flip(1)]))
    torch.testing.assert_close(scores, load_file(run / "expected.safetensors")["scores"])


def go_on(run: Path, monkeypatch: pytest.MonkeyPatch, *, until: int = 60) -> dict[str, Tensor]:
    """Resumes ``run`` up to a step; gives the weights there."""
    monkeypatch.chdir(OLD / "data")
    torch.manual_seed(12345)  # a new process has another random state
    config = load_config(DetectionConfig, run / "config.yaml")
    solver = replace(config.solver, iterations=until, checkpoint_every=5)
    run_training(replace(config, data=replace(config.data, test=()), solver=solver), run, resume=True)
    return load_file(run / "checkpoints" / f"{until:07d}.safetensors")


def test_a_run_goes_on_with_its_state_to_the_same_weights_however_often_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to the weights that 0.1.0 reached, which drew other anchors and regions; those that it fixed are its own."""
    whole, parts = (Path(shutil.copytree(FIRST / "c4", tmp_path / name)) for name in ("whole", "parts"))
    restore, seen = Checkpoints.restore, list[dict[str, Any]]()

    def noted(self: Checkpoints, newest: Any, state: TrainState) -> None:
        restore(self, newest, state)
        weights = {name: value.clone() for name, value in state.model.state_dict().items()}
        seen.append(copy.deepcopy(state.state_dict()) | {"weights": weights})

    monkeypatch.setattr(Checkpoints, "restore", noted)
    reached = go_on(whole, monkeypatch)
    start, then = (load_file(FIRST / "c4" / name) for name in ("checkpoints/0000050.safetensors", "at_60.safetensors"))
    (first,), stored = seen, torch.load(FIRST / "c4" / "checkpoints" / "0000050.state.pt", weights_only=True)
    assert first["iteration"] == stored["iteration"] == 50
    assert len(stored["optimizer"]["state"]) > 60
    own = [first["weights"], first["optimizer"]["state"], first["random"][0]["cpu"]]
    kept = [start, stored["optimizer"]["state"], stored["random"][0]["cpu"]]
    torch.testing.assert_close(own, kept, rtol=0, atol=0)
    for until in (53, 60):
        again = go_on(parts, monkeypatch, until=until)
    torch.testing.assert_close(again, reached, rtol=0, atol=0)
    assert reached.keys() == then.keys()
    for name, value in then.items():
        assert torch.equal(reached[name], start[name]) == torch.equal(value, start[name]), name

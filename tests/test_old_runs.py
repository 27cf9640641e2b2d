"""Runs that earlier versions wrote are read, give the same detections and go on to the same weights."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from detection.build import build_detector, field_operations
from detection.classification.config import ClassificationConfig
from detection.classification.task import restore_classifier
from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.engine.checkpoint import load_detector_weights, read_checkpoint
from detection.mask_geometry import paste
from detection.masks import decode
from detection.model.faster_rcnn import FasterRCNN
from detection.structures import ImageBatch, Target
from detection.tasks.train import run_training

OLD = Path(__file__).parent / "old_runs"
FORMATS = ("format1",)
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
    for number, size in enumerate(images_of(expected).sizes):
        boxes, masks = expected[f"{number}.boxes"], expected[f"{number}.masks"]
        pasted = decode(field_operations(config)["masks"].on_image(masks, boxes, size), size)
        own = decode(paste(masks, boxes, size, geometry="torchvision"), size)
        assert torch.equal(pasted, expected.get(f"{number}.pasted", own))


@pytest.mark.parametrize("version", FORMATS)
@pytest.mark.parametrize("run", ["c4/at_60.safetensors", "cascade"])
def test_same_losses(version: str, run: str) -> None:
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


@pytest.mark.parametrize("version", FORMATS)
def test_a_run_goes_on_to_the_same_weights(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    shutil.copytree(OLD / version / "c4", run)
    monkeypatch.chdir(OLD / "data")
    config = load_config(DetectionConfig, run / "config.yaml")
    run_training(replace(config, data=replace(config.data, test=())), run, resume=True)
    reached = load_file(run / "checkpoints" / "0000060.safetensors")
    torch.testing.assert_close(reached, load_file(run / "at_60.safetensors"), rtol=TOLERANCE, atol=TOLERANCE)

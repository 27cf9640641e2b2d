"""Mirrors detection/predictor.py, and detection/tasks/predict.py, which is little more."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detection.build import build_detector
from detection.config.detection import (
    AnchorConfig,
    DetectionConfig,
    DetectorBackboneConfig,
    DetectorDataConfig,
    PostprocessConfig,
    RPNConfig,
)
from detection.config.sections import SolverConfig
from detection.data.images import read_image
from detection.engine.checkpoint import Checkpoints
from detection.engine.loop import TrainState
from detection.engine.optim import build_optimizer
from detection.predictor import Predictor
from detection.structures import ImageBatch
from detection.tasks.predict import free_folder, predict_sources

CLASSES = ("bolt", "nut")
CONFIG = DetectionConfig(
    backbone=DetectorBackboneConfig(name="resnet18", norm="gn", roi_size=2),
    anchors=AnchorConfig(sizes=(16.0, 32.0)),
    rpn=RPNConfig(channels=16, min_size=2.0, post_nms_test=16),
    test=PostprocessConfig(score_threshold=0.0, max_detections=5),
    data=DetectorDataConfig(shorter_side=64, longer_side=96),
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    detector = build_detector(CONFIG, len(CLASSES))
    state = TrainState(detector, build_optimizer(detector, SolverConfig()), torch.amp.grad_scaler.GradScaler("cpu"))
    Checkpoints(run / "checkpoints", keep=1, config=CONFIG, class_names=CLASSES).save(state)
    return run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (128, 160, 3), dtype=np.uint8)
    path = tmp_path / "photos" / "a.png"
    path.parent.mkdir()
    Image.fromarray(pixels).save(path)
    return path


def predicted(images: list[Path], weights: Path, output: Path, **options: Any) -> Any:
    predict_sources(images, Predictor.load(weights), output, say=lambda _: None, **options)
    return json.loads((output / "predictions.json").read_text())


def test_boxes_are_in_pixels_of_the_given_image(weights: Path, photo: Path) -> None:
    predictor, image = Predictor.load(weights), read_image(photo)
    found = predictor(image, min_score=0)
    half = Image.fromarray(image).resize((80, 64), Image.Resampling.NEAREST)
    assert predictor.class_names == CLASSES
    assert 0 < len(found) <= 5
    assert (found.boxes[:, 2] <= 160).all()
    assert (found.boxes[:, 3] <= 128).all()
    assert found.boxes[:, 2:].max() > 96  # not those of the 64 x 80 pixels that the detector saw
    small = predictor(np.asarray(half), min_score=0)
    assert (small.boxes[:, 2] <= 80).all()


def test_equals_the_detector_on_the_resized_image(weights: Path) -> None:
    predictor = Predictor.load(weights)
    image = np.random.default_rng(1).integers(0, 255, (64, 80, 3), dtype=np.uint8)  # resizing changes nothing
    with torch.inference_mode():
        (expected,) = predictor.detect(ImageBatch.from_images([torch.from_numpy(image).permute(2, 0, 1)]))
    found = predictor(image, min_score=0)
    torch.testing.assert_close(found.boxes, expected.boxes)
    torch.testing.assert_close(found.scores, expected.scores)


def test_what_is_no_image_is_refused(weights: Path) -> None:
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8 RGB, got \(3, 8, 8\) float32"):
        Predictor.load(weights)(np.zeros((3, 8, 8), dtype=np.float32))  # pyright: ignore[reportArgumentType]


def test_the_command_writes_pictures_and_json(
    weights: Path, photo: Path, tmp_path: Path, resdet: Callable[..., Any]
) -> None:
    out = tmp_path / "out"
    outcome = resdet("predict", photo.parent, "--weights", weights, "--output-dir", out, "--min-score", "0")
    records = json.loads((out / "predictions.json").read_text())[str(photo)]
    assert len(records) == 5
    assert {record["class"] for record in records} <= set(CLASSES)
    assert read_image(out / "a.png").shape == (128, 160, 3)
    assert str(photo) in outcome.out


def test_a_missing_image_is_named(weights: Path, tmp_path: Path, resdet: Callable[..., Any]) -> None:
    absent = resdet("predict", tmp_path / "none.jpg", "--weights", weights)
    assert (absent.status, absent.err) == (1, f"error: no image or folder {tmp_path / 'none.jpg'}\n")
    assert resdet("predict", tmp_path, "--weights", weights).err.startswith(f"error: no image in {tmp_path}")


def test_detections_below_the_score_are_left_out(weights: Path, photo: Path, tmp_path: Path) -> None:
    everything = predicted([photo], weights, tmp_path / "all", min_score=0)[str(photo)]
    middle = sorted(record["score"] for record in everything)[2]
    kept = predicted([photo], weights, tmp_path / "kept", min_score=middle)[str(photo)]
    assert [record["score"] for record in kept] == [r["score"] for r in everything if r["score"] >= middle]


def test_what_can_not_be_read_is_an_entry_and_all_else_is_predicted(
    weights: Path, photo: Path, tmp_path: Path, resdet: Callable[..., Any]
) -> None:
    folder, out = photo.parent, tmp_path / "out"
    os.mkfifo(folder / "b.png")
    (folder / "c.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "d.jpg").write_bytes(b"no picture")
    (folder / "e.jpg").mkdir()
    (folder / "._a.png").write_bytes(b"of a Mac")
    Image.new("RGB", (3000, 4)).save(folder / "f.png")
    Image.new("RGB", (70_000, 1)).save(folder / "g.png")
    outcome = resdet("predict", folder, folder / "c.jpg", "--weights", weights, "--output-dir", out, "--min-score", "0")
    assert outcome.status == 1
    assert "3 of 6 images can't be read" in outcome.out
    entries = json.loads((out / "predictions.json").read_text())
    assert [Path(path).name for path in entries] == ["a.png", "b.png", "c.jpg", "d.jpg", "f.png", "g.png"]
    assert "a pipe" in entries[str(folder / "b.png")]["error"]
    assert "No such file" in entries[str(folder / "c.jpg")]["error"]
    assert str(folder / "d.jpg") in entries[str(folder / "d.jpg")]["error"]
    assert sorted(path.name for path in out.glob("*.*g")) == ["a.png", "f.png", "g.png"]


def test_subfolders_are_predicted_and_pictures_of_predictions_are_not(
    weights: Path, photo: Path, tmp_path: Path
) -> None:
    below = photo.parent / "sub" / "a.jpg"
    below.parent.mkdir()
    Image.open(photo).convert("RGB").save(below)
    first = predicted([photo.parent], weights, photo.parent / "found")
    again = predicted([photo.parent], weights, tmp_path / "again")
    assert [*first] == [*again] == [str(photo), str(below)]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_image_that_the_detector_fails_on_is_an_entry_and_all_else_is_predicted(
    weights: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    Image.new("RGB", (40, 40)).save(photo.parent / "b.png")
    predictor = Predictor.load(weights, batch_size=batch_size)
    real = predictor.detect

    def fail(images: ImageBatch) -> Any:
        if (64, 64) in images.size_list():
            raise RuntimeError("not enough memory")
        return real(images)

    monkeypatch.setattr(predictor, "detect", fail)
    out = tmp_path / "out"
    assert predict_sources([photo.parent], predictor, out, min_score=0, say=lambda _: None) == 1
    entries = json.loads((out / "predictions.json").read_text())
    assert len(entries[str(photo)]) == 5
    assert "40x40" in entries[str(photo.parent / "b.png")]["error"]
    assert "not enough memory" in entries[str(photo.parent / "b.png")]["error"]


def test_two_predictions_do_not_mix(
    weights: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted([photo], weights, tmp_path / "out")
    with pytest.raises(ValueError, match=r"out holds a prediction already; choose another --output-dir"):
        predicted([photo], weights, tmp_path / "out")
    assert free_folder(tmp_path / "out") == tmp_path / "out-2"
    assert free_folder(tmp_path / "new") == tmp_path / "new"


def test_what_was_found_stays_where_the_end_does_not_come(weights: Path, photo: Path, tmp_path: Path) -> None:
    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_sources([photo, tmp_path], Predictor.load(weights), tmp_path / "out", min_score=0, say=stop)
    part = (tmp_path / "out" / "predictions.json.part").read_text()
    assert len(json.loads(part + "}")[str(photo)]) == 5
    assert not (tmp_path / "out" / "predictions.json").exists()


@pytest.mark.parametrize("score", ["50", "-0.1", "nan", "high"])
def test_a_score_out_of_range_is_refused(resdet: Callable[..., Any], score: str) -> None:
    outcome = resdet("predict", "a.jpg", "--weights", "w", f"--min-score={score}")
    assert outcome.status == 2
    assert f"takes a number from 0 to 1, got '{score}'" in outcome.err


def test_a_picture_that_can_not_be_written_has_the_reason(weights: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"a\.png: .*Is a directory"):
        predicted([photo], weights, tmp_path / "out")

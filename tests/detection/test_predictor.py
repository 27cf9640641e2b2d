"""Mirrors detection/predictor.py and what goes with it: prediction.py, tasks/predict.py, data/sources.py, video.py."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
    KeypointConfig,
    PostprocessConfig,
    RPNConfig,
)
from detection.config.sections import SolverConfig
from detection.data.images import ImageError, read_image
from detection.data.video import VideoFile, frames
from detection.engine.checkpoint import Checkpoint, Checkpoints, read_checkpoint, write_weights
from detection.engine.loop import TrainState
from detection.engine.optim import build_optimizer
from detection.predictor import Predictor
from detection.structures import ImageBatch
from detection.tasks.predict import OutputNames, free_folder, predict_sources

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
    return make_run(tmp_path_factory.mktemp("run"), CONFIG)


def make_run(run: Path, config: DetectionConfig) -> Path:
    torch.manual_seed(0)
    detector = build_detector(config, len(CLASSES))
    state = TrainState(detector, build_optimizer(detector, SolverConfig()), torch.amp.grad_scaler.GradScaler("cpu"))
    Checkpoints(run / "checkpoints", keep=1, config=config, class_names=CLASSES).save(state)
    return run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (128, 160, 3), dtype=np.uint8)
    path = tmp_path / "photos" / "a.png"
    path.parent.mkdir()
    Image.fromarray(pixels).save(path)
    return path


class Server(BaseHTTPRequestHandler):
    """Serves a folder, pages that are no image, and one that does not end."""

    folder: Path

    def do_GET(self) -> None:
        path = self.folder / self.path.partition("?")[0].strip("/")
        found = path.is_file() or self.path in ("/page", "/endless")
        self.send_response(200 if found else 404)
        self.end_headers()
        if path.is_file():
            self.wfile.write(path.read_bytes())
        elif self.path == "/page":
            self.wfile.write(b"<html>")
        elif found:
            with suppress(OSError):
                while True:
                    self.wfile.write(bytes(1 << 20))

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def served(photo: Path) -> Iterator[str]:
    handler = type("Here", (Server,), {"folder": photo.parent})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def predicted(images: list[Path], weights: Path, output: Path, **options: Any) -> Any:
    predict_sources(images, Predictor.load(weights), output, say=lambda _: None, **options)
    return json.loads((output / "predictions.json").read_text())


def test_keypoints_are_in_pixels_of_the_given_image(photo: Path, tmp_path: Path) -> None:
    keypoint = KeypointConfig(names=("head", "tail"), edges=((0, 1),), pool_size=4, convs=0)
    run = make_run(tmp_path / "run", replace(CONFIG, architecture="keypoint_rcnn", keypoint=keypoint))
    found = Predictor.load(run)(read_image(photo), min_score=0)
    assert found.keypoints is not None
    assert found.keypoints.shape == (len(found), 2, 3)
    places, boxes = found.keypoints[..., :2], found.boxes[:, None]
    assert (places >= boxes[..., :2]).all()
    assert (places <= boxes[..., 2:]).all()
    assert places.max() > 96  # not those of the 64 x 80 pixels that the detector saw
    (first, *_), (coco, *_) = found.records(), found.to_coco(7)
    assert first["keypoints"] == dict(zip(("head", "tail"), found.keypoints[0].tolist(), strict=True))
    x, y, score = found.keypoints[0, 0].double().tolist()
    assert coco["keypoints"][:3] == [x - 0.5, y - 0.5, score]
    assert found.plot().shape == found.image.shape


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


@pytest.fixture(scope="module")
def posing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a detector of keypoints."""
    keypoint = KeypointConfig(names=("nose", "left_eye", "right_eye"), edges=((0, 1), (0, 2)), convs=1, channels=8)
    config = replace(CONFIG, architecture="keypoint_rcnn", keypoint=keypoint)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("posing") / "weights.safetensors"
    write_weights(Checkpoint(path, build_detector(config, len(CLASSES)).state_dict(), config, CLASSES, 0))
    return path


def test_keypoints_have_their_names_and_lie_in_the_given_image(posing: Path, photo: Path) -> None:
    found = Predictor.load(posing)(photo, min_score=0)
    assert found.keypoints is not None
    assert found.keypoints.shape == (len(found), 3, 3)
    boxes = found.boxes[:, None]
    assert (found.keypoints[..., :2] >= boxes[..., :2] - 2).all()
    assert (found.keypoints[..., :2] <= boxes[..., 2:] + 2).all()
    records, coco = found.records(), found.to_coco(7)
    assert [[*record["keypoints"]] for record in records] == [["nose", "left_eye", "right_eye"]] * len(found)
    x, y, score = records[0]["keypoints"]["left_eye"]
    assert coco[0]["keypoints"][3:6] == pytest.approx([x - 0.5, y - 0.5, score])
    shown = replace(found.detections, keypoints=found.keypoints.clone())
    assert shown.keypoints is not None
    shown.keypoints[..., 2] = 1
    hidden = replace(shown, keypoints=torch.zeros_like(shown.keypoints))
    pictures = [replace(found, detections=detections).plot() for detections in (shown, hidden)]
    assert (pictures[0] != pictures[1]).any()


def test_what_is_no_image_is_refused(weights: Path) -> None:
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8 RGB, got \(3, 8, 8\) float32"):
        Predictor.load(weights)(np.zeros((3, 8, 8), dtype=np.float32))  # pyright: ignore[reportCallIssue, reportArgumentType]


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


@pytest.mark.usefixtures("no_reader")
def test_all_is_predicted_whether_or_not_what_is_printed_is_read(weights: Path, photo: Path, tmp_path: Path) -> None:
    predict_sources([photo, photo.parent], Predictor.load(weights), tmp_path / "out")
    assert [*json.loads((tmp_path / "out" / "predictions.json").read_text())] == [str(photo)]


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
    assert "3 of 6 images failed" in outcome.out
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


def test_an_unknown_class_leaves_no_prediction_behind(
    weights: Path, photo: Path, tmp_path: Path, resdet: Callable[..., Any]
) -> None:
    outcome = resdet(
        "predict", photo, "--weights", weights, "--output-dir", tmp_path / "out", "--min-score", "nuts=0.5"
    )
    assert outcome.status == 1
    assert "'nuts'" in outcome.err
    assert not (tmp_path / "out").exists()


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


def test_any_source_gives_the_same_detections(weights: Path, photo: Path, served: str) -> None:
    predictor, image = Predictor.load(weights), read_image(photo)
    expected = predictor(image, min_score=0)
    for source in (photo, str(photo), Image.open(photo), served + "a.png?size=large"):
        torch.testing.assert_close(predictor(source, min_score=0).boxes, expected.boxes)
    several = predictor([photo, image], min_score=0)
    assert [len(one) for one in several] == [len(expected)] * 2
    with pytest.raises(ImageError, match=r"predictor\.stream"):
        predictor(photo.parent)


def test_images_of_any_sizes_are_predicted_in_one_batch_as_alone(weights: Path, photo: Path) -> None:
    wide = np.random.default_rng(1).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    sources = [photo, wide, photo.parent / "absent.png", wide[:, :70], wide[:, ::-1]]
    alone = list(Predictor.load(weights).stream(sources, min_score=0))
    together = list(Predictor.load(weights, batch_size=5).stream(sources, min_score=0))
    assert [bool(one.error) for one in together] == [False, False, True, False, False]
    for one, other in zip(alone, together, strict=True):
        assert one.picture.name == other.picture.name
        torch.testing.assert_close(one.boxes, other.boxes, atol=0.05, rtol=0)


def test_an_address_that_gives_no_image_is_an_entry_with_its_reason(weights: Path, served: str) -> None:
    gone, page, large = Predictor.load(weights).stream([served + "gone.png", served + "page", served + "endless"])
    assert "404" in gone.error
    assert (served + "page") in page.error
    assert "no image" in page.error
    assert "MiB" in large.error


def test_the_least_score_may_be_that_of_a_class(weights: Path, photo: Path) -> None:
    predictor = Predictor.load(weights)
    everything = predictor(photo, min_score=0)
    (label,) = everything.labels[:1].tolist()
    name, other = CLASSES[label], CLASSES[1 - label]
    found = predictor(photo, min_score={name: 1.0, other: 0.0})
    assert found.names == [other] * everything.names.count(other)
    assert {"1.00", "0.00"} <= set(found.note.replace(",", "").split())
    with pytest.raises(ValueError, match=r"'nuts'.*'nut'"):
        predictor(photo, min_score={"nuts": 0.5})


def test_the_default_score_is_that_of_the_best_f1(weights: Path, photo: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(weights, tmp_path / "run"))
    assert Predictor.load(run).threshold.score == 0.5
    result = {"best_f1": {"min_score": 0.31, "F1": 0.8}, "weights": {"iteration": 0}}
    (run / "result.json").write_text(json.dumps(result))
    assert Predictor.load(run).threshold.score == 0.31
    (run / "result.json").write_text(json.dumps(result | {"weights": {"iteration": 7}}))  # of other weights
    assert Predictor.load(run).threshold.score == 0.5
    checkpoint = read_checkpoint(run)
    write_weights(replace(checkpoint, best_f1_score=0.27))
    predictor = Predictor.load(run)
    assert (predictor.threshold.score, predictor.threshold.origin) == (0.27, "best F1 on data.val")
    assert "0.27" in predictor(photo).note


def test_detections_go_to_other_programs(weights: Path, photo: Path) -> None:
    supervision = pytest.importorskip("supervision")
    found = Predictor.load(weights)(photo, min_score=0)
    entry = found.to_coco(7, category_ids=[3, 18])[0]
    x1, y1, x2, y2 = found.boxes[0].tolist()
    assert entry["bbox"] == [x1, y1, x2 - x1, y2 - y1]
    assert (entry["image_id"], entry["category_id"]) == (7, {"bolt": 3, "nut": 18}[found.names[0]])
    own = found.to_supervision()
    assert isinstance(own, supervision.Detections)
    np.testing.assert_array_equal(own.xyxy, found.boxes.numpy())
    assert [*own.data["class_name"]] == found.names
    assert found.plot().shape == (128, 160, 3)
    assert (found.plot() != read_image(photo)).any()
    (height, width, _), (left, top, right, bottom) = found.crops()[0].shape, found.boxes[0].tolist()
    assert abs(height - (bottom - top)) < 2
    assert abs(width - (right - left)) < 2


def test_a_missing_package_is_named(weights: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ValueError, match="pip install supervision"):
        Predictor.load(weights)(photo).to_supervision()


@pytest.fixture
def film(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 64, 96, 3), dtype=np.uint8)
    with VideoFile(tmp_path / "film.mp4", fps=10, size=(64, 96)) as video:
        for frame in pixels:
            video.add(frame)
    return tmp_path / "film.mp4"


def test_a_video_gives_an_entry_a_frame_and_a_video(
    weights: Path, photo: Path, film: Path, tmp_path: Path, resdet: Callable[..., Any]
) -> None:
    out = tmp_path / "out"
    options = ("--weights", weights, "--output-dir", out, "--min-score", "0", "--batch", "2")
    outcome = resdet("predict", film, photo, *options)
    assert (outcome.status, outcome.err) == (0, "")
    entries = json.loads((out / "predictions.json").read_text())
    assert [*entries] == [f"{film}#{number}" for number in range(5)] + [str(photo)]
    assert all(len(found) == 5 for found in entries.values())
    assert len([*frames(out / "film.mp4")]) == 5
    assert (out / "photos" / "a.png").is_file()
    assert len([*Predictor.load(weights).stream(film, max_frames=2)]) == 2


def test_a_video_that_can_not_be_read_is_an_entry(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    entries = predicted([tmp_path / "broken.mp4"], weights, tmp_path / "out")
    assert "broken.mp4" in entries[str(tmp_path / "broken.mp4")]["error"]


def test_pictures_have_the_names_of_their_images(tmp_path: Path) -> None:
    one, two = tmp_path / "a", tmp_path / "c"
    one.mkdir()
    two.mkdir()
    names = OutputNames([one / "b.jpg", two])
    found = [
        names.of(str(path)) for path in (one / "b.jpg", two / "b.jpg", two / "b.png", two / "b.PNG", two / "e/f.gif")
    ]
    assert [name.as_posix() for name in found] == ["a/b.jpg", "c/b.jpg", "c/b.png", "c/b-2.PNG", "c/e/f.gif.jpg"]
    assert OutputNames([two]).of(str(two / "e" / "f.jpg")).as_posix() == "e/f.jpg"
    address = OutputNames([]).of("https://example.com/../a/%2e%2e/b.jpg?c=/d").as_posix()
    assert address == "example.com/a/2e_2e/b.jpg"


def test_large_images_are_cut_on_request(
    weights: Path, photo: Path, tmp_path: Path, resdet: Callable[..., Any]
) -> None:
    options = ("--weights", weights, "--output-dir", tmp_path / "out", "--min-score", "0")
    outcome = resdet("predict", photo, *options, "--slice", "80", "--slice-merge", "nms")
    assert outcome.status == 0
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())[str(photo)]
    assert len(found) > 5  # max_detections of each window
    sliced = Predictor.load(weights, slice=80, slice_merge="nms")(photo, min_score=0)
    assert [entry["box"] for entry in found] == sliced.boxes.tolist()
    assert resdet("predict", photo, *options, "--slice", "8").status == 1

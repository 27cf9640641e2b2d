"""Mirrors detection/predictor.py and what goes with it: prediction.py, tasks/predict.py, data/sources.py, video.py."""

import json
import os
import shutil
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.config.load import parse_config
from detection.data.images import ImageError, read_image
from detection.data.video import VideoFile, frames
from detection.engine.checkpoint import read_checkpoint, write_converted, write_weights
from detection.predictor import Predictor
from detection.structures import ImageBatch
from detection.tasks.predict import OutputNames, free_folder, predict_sources

CLASSES = ("bolt", "nut")
CONFIG = """
backbone: {name: resnet18, norm: gn, roi_size: 2}
anchors: {sizes: [16, 32]}
rpn: {channels: 16, min_size: 2, post_nms_test: 16}
test: {score_threshold: 0, max_detections: 5}
data: {shorter_side: 64, longer_side: 96}
"""
KEYPOINTS = """
architecture: keypoint_rcnn
keypoint: {names: [nose, left_eye, right_eye], edges: [[0, 1], [0, 2]], convs: 1, channels: 8}
"""


def make_run(run: Path, text: str) -> Path:
    torch.manual_seed(0)
    config = parse_config(DetectionConfig, text)
    write_converted(run, config, CLASSES, build_detector(config, len(CLASSES)).state_dict())
    return run


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), CONFIG)


@pytest.fixture(scope="module")
def predictor(weights: Path) -> Predictor:
    return Predictor.load(weights)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photos" / "a.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 160, 3), dtype=np.uint8)).save(path)
    return path


class Server(SimpleHTTPRequestHandler):
    """Serves a folder, and a page that does not end."""

    def do_GET(self) -> None:
        if self.path != "/endless":
            return super().do_GET()
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(bytes(1 << 20))

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def served(photo: Path):
    (photo.parent / "page").write_text("<html>")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(photo.parent)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def predicted(images: list[Path], predictor: Predictor, output: Path, **options: Any) -> Any:
    predict_sources(images, predictor, output, say=lambda _: None, **options)
    return json.loads((output / "predictions.json").read_text())


def test_detections_are_those_of_the_detector_in_pixels_of_the_given_image(predictor, photo) -> None:
    image = read_image(photo)
    found = predictor(image, min_score=0)
    assert predictor.class_names == CLASSES
    assert 0 < len(found) <= 5
    assert (found.boxes[:, 2:] <= torch.tensor([160, 128])).all()
    assert found.boxes[:, 2:].max() > 96  # not those of the 64 x 80 pixels that the detector saw
    half = np.asarray(Image.fromarray(image).resize((80, 64)))  # which resizing changes no more
    with torch.inference_mode():
        (expected,) = predictor.detect(ImageBatch.from_images([torch.tensor(half).permute(2, 0, 1)]))
    small = predictor(half, min_score=0)
    torch.testing.assert_close(small.boxes, expected.boxes)
    torch.testing.assert_close(small.scores, expected.scores)
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8 RGB, got \(3, 8, 8\) float32"):
        predictor(np.zeros((3, 8, 8), dtype=np.float32))


def test_keypoints_have_their_names_and_lie_in_the_given_image(photo, tmp_path: Path) -> None:
    found: Any = Predictor.load(make_run(tmp_path / "run", CONFIG + KEYPOINTS))(photo, min_score=0)
    places, boxes, records = found.keypoints[..., :2], found.boxes[:, None], found.records()
    assert found.keypoints.shape == (len(found), 3, 3)
    assert (places >= boxes[..., :2]).all()
    assert (places <= boxes[..., 2:]).all()
    assert places.max() > 96  # not those of the 64 x 80 pixels that the detector saw
    names = ("nose", "left_eye", "right_eye")
    assert records[0]["keypoints"] == dict(zip(names, found.keypoints[0].tolist(), strict=True))
    x, y, score = records[0]["keypoints"]["left_eye"]
    assert found.to_coco(7)[0]["keypoints"][3:6] == pytest.approx([x - 0.5, y - 0.5, score])
    shown = found.keypoints.clone()
    shown[..., 2] = 1
    both = [replace(found.detections, keypoints=points) for points in (shown, torch.zeros_like(shown))]
    pictures = [replace(found, detections=own).plot() for own in both]
    assert pictures[0].shape == found.image.shape
    assert (pictures[0] != pictures[1]).any()


def test_any_source_gives_the_same_detections(predictor, photo, served: str) -> None:
    image = read_image(photo)
    expected = predictor(image, min_score=0)
    for source in (photo, str(photo), Image.open(photo), served + "a.png?size=large"):
        torch.testing.assert_close(predictor(source, min_score=0).boxes, expected.boxes)
    assert [len(one) for one in predictor([photo, image], min_score=0)] == [len(expected)] * 2
    with pytest.raises(ImageError, match=r"predictor\.stream"):
        predictor(photo.parent)
    gone, page, large = predictor.stream([served + "gone.png", served + "page", served + "endless"])
    assert "404" in gone.error
    assert f"{served}page" in page.error
    assert "no image" in page.error
    assert "MiB" in large.error


def test_images_of_any_sizes_are_predicted_in_one_batch_as_alone(weights: Path, predictor, photo) -> None:
    wide = np.random.default_rng(1).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    sources = [photo, wide, photo.parent / "absent.png", wide[:, :70], wide[:, ::-1]]
    alone = list(predictor.stream(sources, min_score=0))
    together = list(Predictor.load(weights, batch_size=5).stream(sources, min_score=0))
    assert [bool(one.error) for one in together] == [False, False, True, False, False]
    for one, other in zip(alone, together, strict=True):
        assert one.picture.name == other.picture.name
        torch.testing.assert_close(one.boxes, other.boxes, atol=0.05, rtol=0)


def test_the_least_score_may_be_that_of_a_class(predictor, photo) -> None:
    everything = predictor(photo, min_score=0)
    (label,) = everything.labels[:1].tolist()
    name, other = CLASSES[label], CLASSES[1 - label]
    found = predictor(photo, min_score={name: 1.0, other: 0.0})
    assert found.names == [other] * everything.names.count(other)
    assert {"1.00", "0.00"} <= set(found.note.replace(",", "").split())
    with pytest.raises(ValueError, match=r"'nuts'.*'nut'"):
        predictor(photo, min_score={"nuts": 0.5})


def test_the_default_score_is_that_of_the_best_f1(weights: Path, photo, tmp_path: Path) -> None:
    run = shutil.copytree(weights, tmp_path / "run")
    assert Predictor.load(run).threshold.score == 0.5
    for iteration, score in ((0, 0.31), (7, 0.5)):  # the latter of other weights
        result = {"best_f1": {"min_score": 0.31, "F1": 0.8}, "weights": {"iteration": iteration}}
        (run / "result.json").write_text(json.dumps(result))
        assert Predictor.load(run).threshold.score == score
    write_weights(replace(read_checkpoint(run), best_f1_score=0.27))
    predictor = Predictor.load(run)
    assert (predictor.threshold.score, predictor.threshold.origin) == (0.27, "best F1 on data.val")
    assert "0.27" in predictor(photo).note


def test_detections_go_to_other_programs(predictor, photo, monkeypatch) -> None:
    found = predictor(photo, min_score=0)
    entry, (left, top, right, bottom) = found.to_coco(7, category_ids=[3, 18])[0], found.boxes[0].tolist()
    assert entry["bbox"] == [left, top, right - left, bottom - top]
    assert (entry["image_id"], entry["category_id"]) == (7, {"bolt": 3, "nut": 18}[found.names[0]])
    assert found.plot().shape == (128, 160, 3)
    assert (found.plot() != read_image(photo)).any()
    assert found.crops()[0].shape[:2] == pytest.approx((bottom - top, right - left), abs=2)
    supervision = pytest.importorskip("supervision")
    own = found.to_supervision()
    assert isinstance(own, supervision.Detections)
    np.testing.assert_array_equal(own.xyxy, found.boxes.numpy())
    assert [*own.data["class_name"]] == found.names
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ValueError, match="pip install supervision"):
        found.to_supervision()


def test_the_command_writes_pictures_and_json(weights: Path, photo, tmp_path: Path, resdet) -> None:
    out = tmp_path / "out"
    options = ("--weights", weights, "--output-dir", out, "--min-score")
    wrong = resdet("predict", photo, *options, "nuts=0.5")
    assert wrong.status == 1
    assert "'nuts'" in wrong.err
    assert not out.exists()
    outcome = resdet("predict", photo.parent, *options, "0")
    records = json.loads((out / "predictions.json").read_text())[str(photo)]
    assert len(records) == 5
    assert {record["class"] for record in records} <= set(CLASSES)
    assert read_image(out / "a.png").shape == (128, 160, 3)
    assert str(photo) in outcome.out
    middle = sorted(record["score"] for record in records)[2]
    kept = predicted([photo], Predictor.load(weights), tmp_path / "kept", min_score=middle)[str(photo)]
    assert [record["score"] for record in kept] == [r["score"] for r in records if r["score"] >= middle]
    absent = resdet("predict", tmp_path / "none.jpg", "--weights", weights)
    assert (absent.status, absent.err) == (1, f"error: no image or folder {tmp_path / 'none.jpg'}\n")
    (tmp_path / "empty").mkdir()
    assert resdet("predict", tmp_path / "empty", "--weights", weights).err.startswith("error: no image in ")


@pytest.mark.usefixtures("no_reader")
def test_all_is_predicted_whether_or_not_what_is_printed_is_read(predictor, photo, tmp_path: Path) -> None:
    predict_sources([photo, photo.parent], predictor, tmp_path / "out")
    assert [*json.loads((tmp_path / "out" / "predictions.json").read_text())] == [str(photo)]


def test_what_can_not_be_read_is_an_entry_and_all_else_is_predicted(weights: Path, photo, tmp_path, resdet) -> None:
    folder, out = photo.parent, tmp_path / "out"
    os.mkfifo(folder / "b.png")
    (folder / "c.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "d.jpg").write_bytes(b"no picture")
    (folder / "e.jpg").mkdir()
    (folder / "._a.png").write_bytes(b"of a Mac")
    Image.new("RGB", (3000, 4)).save(folder / "f.png")
    Image.new("RGB", (70_000, 1)).save(folder / "g.png")
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    sources, options = (folder, folder / "c.jpg", tmp_path / "broken.mp4"), ("--output-dir", out, "--min-score", "0")
    outcome = resdet("predict", *sources, "--weights", weights, *options)
    assert outcome.status == 1
    assert "4 of 7 images failed" in outcome.out
    entries = {Path(path).name: own for path, own in json.loads((out / "predictions.json").read_text()).items()}
    assert [*entries] == ["a.png", "b.png", "c.jpg", "d.jpg", "f.png", "g.png", "broken.mp4"]
    reasons = {"b.png": "a pipe", "c.jpg": "No such file", "d.jpg": "d.jpg", "broken.mp4": "broken.mp4"}
    assert [name for name, part in reasons.items() if part not in entries[name]["error"]] == []
    assert sorted(path.name for path in out.rglob("*.*g")) == ["a.png", "f.png", "g.png"]


def test_subfolders_are_predicted_and_pictures_of_predictions_are_not(predictor, photo, tmp_path: Path) -> None:
    below = photo.parent / "sub" / "a.jpg"
    below.parent.mkdir()
    Image.open(photo).convert("RGB").save(below)
    first = predicted([photo.parent], predictor, photo.parent / "found")
    again = predicted([photo.parent], predictor, tmp_path / "again")
    assert [*first] == [*again] == [str(photo), str(below)]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_image_that_the_detector_fails_on_is_an_entry(weights, photo, tmp_path, monkeypatch, batch_size) -> None:
    Image.new("RGB", (40, 40)).save(photo.parent / "b.png")
    predictor = Predictor.load(weights, batch_size=batch_size)
    real = predictor.detect

    def fail(images: ImageBatch) -> Any:
        if (64, 64) in images.size_list():
            raise RuntimeError("not enough memory")
        return real(images)

    monkeypatch.setattr(predictor, "detect", fail)
    entries = predicted([photo.parent], predictor, tmp_path / "out", min_score=0)
    error = entries[str(photo.parent / "b.png")]["error"]
    assert len(entries[str(photo)]) == 5
    assert "40x40" in error
    assert "not enough memory" in error


def test_predictions_do_not_mix_and_stay_where_the_end_does_not_come(predictor, photo, tmp_path: Path) -> None:
    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_sources([photo, photo.parent], predictor, tmp_path / "cut", min_score=0, say=stop)
    part = (tmp_path / "cut" / "predictions.json.part").read_text()
    assert len(json.loads(part + "}")[str(photo)]) == 5
    assert not (tmp_path / "cut" / "predictions.json").exists()
    predicted([photo], predictor, tmp_path / "out")
    with pytest.raises(ValueError, match=r"out holds a prediction already; choose another --output-dir"):
        predicted([photo], predictor, tmp_path / "out")
    assert free_folder(tmp_path / "out") == tmp_path / "out-2"
    assert free_folder(tmp_path / "new") == tmp_path / "new"
    (tmp_path / "full" / "a.png").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"a\.png: .*Is a directory"):
        predicted([photo], predictor, tmp_path / "full")


def test_a_video_gives_an_entry_a_frame_and_a_video(weights: Path, predictor, photo, tmp_path: Path, resdet) -> None:
    film, out = tmp_path / "film.mp4", tmp_path / "out"
    with VideoFile(film, fps=10, size=(64, 96)) as video:
        for frame in np.random.default_rng(0).integers(0, 255, (5, 64, 96, 3), dtype=np.uint8):
            video.add(frame)
    options = ("--weights", weights, "--output-dir", out, "--min-score", "0", "--batch", "2")
    outcome = resdet("predict", film, photo, *options)
    assert (outcome.status, outcome.err) == (0, "")
    entries = json.loads((out / "predictions.json").read_text())
    assert [*entries] == [f"{film}#{number}" for number in range(5)] + [str(photo)]
    assert all(len(found) == 5 for found in entries.values())
    assert len([*frames(out / "film.mp4")]) == 5
    assert (out / "photos" / "a.png").is_file()
    assert len([*predictor.stream(film, max_frames=2)]) == 2


def test_pictures_have_the_names_of_their_images(tmp_path: Path) -> None:
    one, two = tmp_path / "a", tmp_path / "c"
    one.mkdir()
    two.mkdir()
    names = OutputNames([one / "b.jpg", two])
    paths = (one / "b.jpg", two / "b.jpg", two / "b.png", two / "b.PNG", two / "e/f.gif")
    found = [names.of(str(path)).as_posix() for path in paths]
    assert found == ["a/b.jpg", "c/b.jpg", "c/b.png", "c/b-2.PNG", "c/e/f.gif.jpg"]
    assert OutputNames([two]).of(str(two / "e" / "f.jpg")).as_posix() == "e/f.jpg"
    address = OutputNames([]).of("https://example.com/../a/%2e%2e/b.jpg?c=/d").as_posix()
    assert address == "example.com/a/2e_2e/b.jpg"


def test_large_images_are_cut_on_request(weights: Path, photo, tmp_path: Path, resdet) -> None:
    options = ("--weights", weights, "--output-dir", tmp_path / "out", "--min-score", "0")
    assert resdet("predict", photo, *options, "--slice", "80", "--slice-merge", "nms").status == 0
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())[str(photo)]
    assert len(found) > 5  # max_detections of each window
    sliced = Predictor.load(weights, slice=80, slice_merge="nms")(photo, min_score=0)
    assert [entry["box"] for entry in found] == sliced.boxes.tolist()
    assert resdet("predict", photo, *options, "--slice", "8").status == 1

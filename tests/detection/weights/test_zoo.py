"""Mirrors weights/zoo.py; the server runs on 127.0.0.1."""

from __future__ import annotations

import hashlib
import re
import runpy
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.data.cards import load_card
from detection.engine.checkpoint import read_checkpoint
from detection.weights import zoo
from detection.weights.zoo import REFUSED, ZOO, Entry, fetch, find_entry

ROOT = Path(__file__).parents[3]


class Server(ThreadingHTTPServer):
    """Serves ``content`` at every path, from the byte that is asked for."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.cuts: list[int] = []  # bytes after which the next connections break
        self.ranges: list[str | None] = []  # of the requests

    def entry(self, file: str, **changes: Any) -> Entry:
        """A row whose file is called ``file``."""
        url = f"http://127.0.0.1:{self.server_address[1]}/some/folder/{file}"
        return Entry(
            **{"name": "small", "source": "torchvision", "url": url, "data": "voc2007:test", "ap": 1.0} | changes
        )


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        body = server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the test output clean."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> bytes:
    """The file of torchvision's second Faster R-CNN for VOC's 20 classes; each tensor repeats a number of its own."""
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    with torch.device("meta"):
        shapes = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=21).state_dict()
    state = {name: torch.full(value.shape, i / 1000) for i, (name, value) in enumerate(shapes.items())}
    torch.save(state, path)
    return path.read_bytes()


@pytest.fixture
def server(weights, monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(weights) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


# the table


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_every_row_is_complete(entry) -> None:
    assert find_entry(entry.name) is entry
    assert entry.url.startswith("https://")
    assert entry.licence
    algorithm, digits = entry.checksum
    assert (algorithm, len(digits)) == {"torchvision": ("sha256", 8), "detectron2": ("md5", 6)}[entry.source]
    card, _, split = entry.data.partition(":")
    assert split in load_card(card).splits if entry.has_card else len(entry.class_names) in (8, 21, 1230)
    assert (card == "coco2017_panoptic") == (entry.pq is not None) == ("panoptic" in entry.name)
    assert entry.ap is None or 20 < entry.ap < 60
    masks = re.search("mask|panoptic|pointrend", entry.name) is not None
    assert masks == (entry.mask_ap is not None) or "200ep" in entry.name
    assert ("keypoint" in entry.name) == (entry.keypoint_ap is not None) == (card == "coco2017_keypoints")


def test_the_tables_hold_all_of_detectron2_s_model_zoo() -> None:
    assert [entry.source for entry in ZOO] == ["torchvision"] * 13 + ["detectron2"] * 59
    assert len({entry.name for entry in ZOO}) == len({entry.url for entry in ZOO}) == len(ZOO)
    assert len(ZOO) - 13 + len(REFUSED) == 64 + 4  # of projects/PointRend
    assert not {entry.name for entry in ZOO} & REFUSED.keys()


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_load_is_refused_by_name_and_reason(name) -> None:
    with pytest.raises(ValueError, match=rf"{name} of Detectron2's model zoo does not load here: ") as error:
        find_entry(name)
    assert str(error.value).endswith(REFUSED[name])


def test_the_document_has_the_rows_of_the_tables() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "list_zoo.py"))
    lines = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8").splitlines()
    first = lines.index(tool["line"](tool["HEADER"]))
    rows = [tool["line"](cells) for cells in tool["rows"]()]
    assert lines[first + 2 : first + 2 + len(rows)] == rows
    assert not lines[first + 2 + len(rows)].startswith("|")


def test_addresses_and_figures_of_some_rows() -> None:
    pyramid, voc = find_entry("mask_rcnn_R_50_FPN_3x"), find_entry("faster_rcnn_R_50_C4_voc")
    prefix = "https://dl.fbaipublicfiles.com/detectron2"
    folder = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600"
    assert pyramid.url == f"{prefix}/{folder}/model_final_f10217.pkl"
    assert (pyramid.ap, pyramid.ap50, pyramid.mask_ap, pyramid.data) == (41.0, None, 37.2, "coco2017:val")
    assert voc.url == f"{prefix}/PascalVOC-Detection/faster_rcnn_R_50_C4/142202221/model_final_b1acc2.pkl"
    assert (voc.ap, voc.ap50, voc.data) == (51.9, 80.3, "voc2007:test")
    first = find_entry("fasterrcnn_resnet50_fpn")
    assert first.url == "https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"
    assert (first.ap, first.mask_ap, first.checksum) == (37.0, None, ("sha256", "258fb6c6"))
    pixels = find_entry("deeplabv3_resnet101")
    assert pixels.url == "https://download.pytorch.org/models/deeplabv3_resnet101_coco-586e9e4e.pth"
    assert (pixels.ap, pixels.miou, pixels.pixel_accuracy, pixels.class_names[15]) == (None, 67.4, 92.4, "person")
    persons, legacy = find_entry("keypointrcnn_resnet50_fpn"), find_entry("keypointrcnn_resnet50_fpn_legacy")
    assert (persons.ap, persons.keypoint_ap, persons.norm_eps) == (54.6, 65.0, None)
    assert (legacy.ap, legacy.keypoint_ap, legacy.norm_eps) == (50.6, 61.1, 1e-5)
    zoo_persons = find_entry("keypoint_rcnn_R_50_FPN_3x")
    assert zoo_persons.url == f"{prefix}/COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x/137849621/model_final_a6e10b.pkl"
    assert (zoo_persons.ap, zoo_persons.keypoint_ap) == (55.4, 65.5)


def test_an_unknown_name_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"no detector 'fasterrcnn_resnet50'.*did you mean 'fasterrcnn_resnet50_fpn'\?"
    ):
        find_entry("fasterrcnn_resnet50")


def test_a_file_name_without_a_checksum_is_refused(server) -> None:
    with pytest.raises(ValueError, match=r"ends in 8 digits of a hash, got 'http.*model\.pth'"):
        _ = server.entry("model.pth").checksum


# fetch


def test_a_detector_is_downloaded_with_resume_and_becomes_a_run(server, tmp_path) -> None:
    server.cuts = [50_000]
    run = fetch(server.entry(f"model-{sha256(server.content)}.pth"), tmp_path)
    assert run == tmp_path / "small"
    assert server.ranges == [None, "bytes=50000-"]
    checkpoint = read_checkpoint(run)
    assert checkpoint.class_names == load_card("voc2007").classes
    assert checkpoint.config == load_config(DetectionConfig, run / "config.yaml")
    assert checkpoint.config.data.test == ("voc2007:test",)
    assert checkpoint.weights["box_stage.predictor.classes.weight"].shape == (21, 1024)
    assert fetch(server.entry("gone-00000000.pth"), tmp_path) == run
    assert len(server.ranges) == 2


def test_a_file_with_another_checksum_is_deleted_and_named(server, tmp_path) -> None:
    found = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(
        ValueError, match=rf"model-00000000\.pth: sha256 is {found}, expected 00000000\.\..*was deleted"
    ):
        fetch(server.entry("model-00000000.pth"), tmp_path)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_detectron2_s_files_are_checked_and_converted_as_such(server, tmp_path, monkeypatch) -> None:
    digits = hashlib.md5(server.content).hexdigest()[:6]
    with pytest.raises(ValueError, match="cannot read weights"):
        fetch(server.entry(f"model_final_{digits}.pkl", source="detectron2"), tmp_path)
    given: list[Any] = []

    def convert(
        state: dict[str, torch.Tensor], *, class_names: tuple[str, ...], settings: Mapping[str, Any]
    ) -> tuple[DetectionConfig, dict[str, torch.Tensor]]:
        given.extend((class_names, settings))
        return DetectionConfig(), {"a": torch.zeros(1)}

    monkeypatch.setattr(zoo, "convert_detectron2", convert)
    own = {"TEST.DETECTIONS_PER_IMAGE": 300}
    entry = server.entry(f"model_final_{digits}.pth", source="detectron2", name="other", settings=own)
    run = fetch(entry, tmp_path)
    assert given == [load_card("voc2007").classes, own]
    assert list(read_checkpoint(run).weights) == ["a"]

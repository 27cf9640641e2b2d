"""Mirrors weights/zoo.py; the server runs on 127.0.0.1."""

import hashlib
import re
import runpy
from collections.abc import Mapping
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
def entry(weights, server):
    """Makes a row whose file is called so; the server has the weights."""
    server.content = weights
    own = {"name": "small", "source": "torchvision", "data": "voc2007:test", "ap": 1.0}
    return lambda file, **changes: Entry(**own | {"url": server.url(file)} | changes)


# the table


def test_every_row_is_complete_and_detectron2_s_zoo_is_whole() -> None:
    for entry in ZOO:
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
    assert [entry.source for entry in ZOO] == ["torchvision"] * 13 + ["detectron2"] * 59
    assert len({entry.name for entry in ZOO}) == len({entry.url for entry in ZOO}) == len(ZOO)
    assert len(ZOO) - 13 + len(REFUSED) == 64 + 4  # of projects/PointRend
    assert not {entry.name for entry in ZOO} & REFUSED.keys()


def test_what_does_not_load_is_refused_by_name_and_reason(entry) -> None:
    for name, reason in REFUSED.items():
        with pytest.raises(ValueError, match=rf"{name} of Detectron2's model zoo does not load here: ") as error:
            find_entry(name)
        assert str(error.value).endswith(reason)
    nearest = r"no detector 'fasterrcnn_resnet50'.*did you mean 'fasterrcnn_resnet50_fpn'\?"
    with pytest.raises(ValueError, match=nearest):
        find_entry("fasterrcnn_resnet50")
    with pytest.raises(ValueError, match=r"ends in 8 digits of a hash, got 'http.*model\.pth'"):
        _ = entry("model.pth").checksum


def test_the_document_has_the_rows_of_the_tables() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "list_zoo.py"))
    lines = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8").splitlines()
    first = lines.index(tool["line"](tool["HEADER"]))
    rows = [tool["line"](cells) for cells in tool["rows"]()]
    assert lines[first + 2 : first + 2 + len(rows)] == rows
    assert not lines[first + 2 + len(rows)].startswith("|")


def test_addresses_and_figures_of_some_rows() -> None:
    zoo, torchvision = "https://dl.fbaipublicfiles.com/detectron2", "https://download.pytorch.org/models"
    voc = "PascalVOC-Detection/faster_rcnn_R_50_C4/142202221/model_final_b1acc2.pkl"
    boxes = "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"
    persons = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x/137849621/model_final_a6e10b.pkl"
    for name, url, keys, values in (
        ("faster_rcnn_R_50_C4_voc", f"{zoo}/{voc}", "ap ap50 data", [51.9, 80.3, "voc2007:test"]),
        ("keypoint_rcnn_R_50_FPN_3x", f"{zoo}/{persons}", "ap ap50 keypoint_ap", [55.4, None, 65.5]),
        ("fasterrcnn_resnet50_fpn", f"{torchvision}/{boxes}", "ap mask_ap", [37.0, None]),
        ("deeplabv3_resnet101", f"{torchvision}/deeplabv3_resnet101_coco-586e9e4e.pth", "miou ap", [67.4, None]),
    ):
        entry = find_entry(name)
        assert entry.url == url
        assert [getattr(entry, key) for key in keys.split()] == values
    assert [find_entry(f"keypointrcnn_resnet50_fpn{end}").norm_eps for end in ("", "_legacy")] == [None, 1e-5]


# fetch


def test_a_detector_is_downloaded_with_resume_and_becomes_a_run(entry, server, tmp_path) -> None:
    server.cuts = [50_000]
    digits = hashlib.sha256(server.content).hexdigest()[:8]
    run = fetch(entry(f"model-{digits}.pth"), tmp_path)
    assert run == tmp_path / "small"
    assert server.ranges == [None, "bytes=50000-"]
    checkpoint = read_checkpoint(run)
    assert checkpoint.class_names == load_card("voc2007").classes
    assert checkpoint.config == load_config(DetectionConfig, run / "config.yaml")
    assert checkpoint.config.data.test == ("voc2007:test",)
    assert checkpoint.weights["box_stage.predictor.classes.weight"].shape == (21, 1024)
    assert fetch(entry("gone-00000000.pth"), tmp_path) == run
    assert len(server.ranges) == 2


def test_a_file_with_another_checksum_is_deleted_and_named(entry, server, tmp_path) -> None:
    found = hashlib.sha256(server.content).hexdigest()
    message = rf"model-00000000\.pth: sha256 is {found}, expected 00000000\.\..*was deleted"
    with pytest.raises(ValueError, match=message):
        fetch(entry("model-00000000.pth"), tmp_path)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_detectron2_s_files_are_checked_and_converted_as_such(entry, server, tmp_path, monkeypatch) -> None:
    digits = hashlib.md5(server.content).hexdigest()[:6]
    with pytest.raises(ValueError, match="cannot read weights"):
        fetch(entry(f"model_final_{digits}.pkl", source="detectron2"), tmp_path)
    given, own = list[Any](), {"TEST.DETECTIONS_PER_IMAGE": 300}

    def convert(state: Any, *, class_names: tuple[str, ...], settings: Mapping[str, Any]) -> Any:
        given.extend((class_names, settings))
        return DetectionConfig(), {"a": torch.zeros(1)}

    monkeypatch.setattr(zoo, "convert_detectron2", convert)
    file = f"model_final_{digits}.pth"
    run = fetch(entry(file, source="detectron2", name="other", settings=own), tmp_path)
    assert given == [load_card("voc2007").classes, own]
    assert list(read_checkpoint(run).weights) == ["a"]

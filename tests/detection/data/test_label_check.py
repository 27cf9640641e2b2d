"""Mirrors detection/data/label_check.py, and what `resdet check` says and draws of label images."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from detection.data.cards import load_dataset
from detection.data.label_check import check_label_maps
from detection.tasks.check import check_card


@pytest.fixture
def card(tmp_path: Path) -> str:
    """Three pictures of 6x8: one half ground and half house, one with a void half, one without a label image."""
    for number in range(3):
        path = tmp_path / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)).save(path)
    save(tmp_path, 0, columns(0, 1))
    save(tmp_path, 1, columns(0, 255))
    values = {
        "format": "label_images",
        "root": ".",
        "classes": ["ground", "house", "river"],
        "splits": {"train": {"images": "images", "labels": "labels"}},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(tmp_path / "own.yaml")


def columns(left: int, right: int) -> np.ndarray:
    stored = np.full((6, 8), right, np.uint8)
    stored[:, :4] = left
    return stored


def save(folder: Path, number: int, stored: np.ndarray) -> None:
    (folder / "labels").mkdir(exist_ok=True)
    Image.fromarray(stored).save(folder / "labels" / f"{number}.png")


def test_pixels_are_counted_by_class(card: str, tmp_path: Path) -> None:
    index, _ = load_dataset([f"{card}:train"], tmp_path, label_maps=True)
    counts, problems = check_label_maps(index)
    assert counts.pixels.tolist() == [48, 24, 0]
    assert (counts.void, counts.labelled) == (24, 2)
    assert counts.present.tolist() == [[True, True, False], [True, False, False], [False, False, False]]
    assert [(problem.kind, problem.detail) for problem in problems] == [("class without a pixel", "river")]
    assert counts.rows == [
        ("ground", "50.00", "2"),
        ("house", "25.00", "1"),
        ("river", "0.00", "0"),
        ("void", "25.00", ""),
    ]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (columns(0, 77), r"value 77 .*0-2, 255"),
        (columns(0, 1)[:4], r"8x4 pixels, its image 8x6"),
        (np.zeros((6, 8, 3), np.uint8), r"mode is RGB.*labels\[\(image == colour\)"),
    ],
    ids=["value", "size", "colours"],
)
def test_a_bad_label_image_is_an_error_with_its_name(
    resdet: Callable[..., Any], card: str, tmp_path: Path, stored: np.ndarray, message: str
) -> None:
    save(tmp_path, 1, stored)
    outcome = resdet("check", card, "--root", tmp_path)
    assert outcome.status == 1
    errors = [line for line in (outcome.out + outcome.err).splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(rf"labels/1\.png.*{message}", errors[0])


def test_what_is_no_error_is_noted(card: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 1, columns(255, 255))
    save(tmp_path, 0, columns(255, 255))
    assert check_card(card, tmp_path) == 0
    printed = capsys.readouterr().out
    for kind in ("void everywhere", "mostly void", "class without a pixel", "image without a label image"):
        assert kind in printed


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_shows_label_maps(
    card: str, tmp_path: Path, inspect_page: Callable[..., dict[str, Any]], width: int
) -> None:
    page = tmp_path / "page.html"
    check_card(card, tmp_path, page=page)
    titles = re.findall(r"<h2[^>]*>([^<]+)</h2>", page.read_text())
    assert titles == ["Findings", "Label maps of train", "Label maps"]
    assert page.read_text().count("with its label map") >= 2
    assert inspect_page(page, width) == {"width": width, "over": 0, "outside": [], "overlap": [], "pale": []}


def test_masks_of_a_coco_card_are_counted_as_label_maps_too(
    make_coco: Callable[..., Path], write_card: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    record = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 20, 20], "segmentation": square}
    make_coco({1: "a.jpg"}, [record])
    card = write_card("coco", label_maps="polygons")
    assert check_card(card, tmp_path, page=tmp_path / "page.html") == 0
    assert re.search(r"cat +8\.33 +1\n", capsys.readouterr().out)  # 400 of 4,800 pixels
    titles = re.findall(r"<h2[^>]*>([^<]+)</h2>", (tmp_path / "page.html").read_text())
    assert {"Samples of train", "Label maps of train", "Label maps", "Masks"} <= set(titles)

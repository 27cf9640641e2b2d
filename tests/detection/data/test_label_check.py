"""Mirrors detection/data/label_check.py, and what `resdet check` says and draws of label images."""

import re

import numpy as np
import pytest
import yaml

from detection.data.cards import load_dataset
from detection.data.label_check import check_label_maps
from detection.tasks.check import check_card


@pytest.fixture
def card(draw, tmp_path):
    """Three pictures of 6x8: one half ground and half house, one with a void half, one without a label image."""
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        draw(tmp_path / f"images/{number}.png", noise)
    draw(tmp_path / "labels/0.png", columns(0, 1))
    draw(tmp_path / "labels/1.png", columns(0, 255))
    values = {"format": "label_images", "root": ".", "classes": ["ground", "house", "river"]}
    values["splits"] = {"train": {"images": "images", "labels": "labels"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(tmp_path / "own.yaml")


def columns(left, right):
    return np.repeat([[left] * 4 + [right] * 4], 6, axis=0).astype(np.uint8)


def titles(page):
    return re.findall(r"<h2[^>]*>([^<]+)</h2>", page.read_text())


def test_pixels_are_counted_by_class(card, tmp_path) -> None:
    counts, problems = check_label_maps(load_dataset([f"{card}:train"], tmp_path, label_maps=True)[0])
    assert (counts.pixels.tolist(), counts.void, counts.labelled) == ([48, 24, 0], 24, 2)
    assert counts.present.tolist() == [[True, True, False], [True, False, False], [False, False, False]]
    assert [(problem.kind, problem.detail) for problem in problems] == [("class without a pixel", "river")]
    rows = [("ground", "50.00", "2"), ("house", "25.00", "1"), ("river", "0.00", "0"), ("void", "25.00", "")]
    assert counts.rows == rows


def test_a_bad_label_image_is_an_error_with_its_name(resdet, card, draw, tmp_path) -> None:
    for stored, message in (
        (columns(0, 77), r"value 77 .*0-2, 255"),
        (columns(0, 1)[:4], r"8x4 pixels, its image 8x6"),
        (np.zeros((6, 8, 3), np.uint8), r"mode is RGB.*labels\[\(image == colour\)"),
    ):
        draw(tmp_path / "labels/1.png", stored)
        outcome = resdet("check", card, "--root", tmp_path)
        (error,) = [line for line in (outcome.out + outcome.err).splitlines() if line.startswith("error: ")]
        assert (outcome.status, re.search(rf"labels/1\.png.*{message}", error) is not None) == (1, True)


def test_what_is_no_error_is_noted_and_the_page_shows_label_maps(card, draw, tmp_path, capsys, inspect_page) -> None:
    page = tmp_path / "page.html"
    check_card(card, tmp_path, page=page)
    assert titles(page) == ["Findings", "Label maps of train", "Label maps"]
    assert page.read_text().count("with its label map") >= 2
    for number in (0, 1):
        draw(tmp_path / f"labels/{number}.png", columns(255, 255))
    assert check_card(card, tmp_path) == 0
    printed = capsys.readouterr().out
    for kind in ("void everywhere", "mostly void", "class without a pixel", "image without a label image"):
        assert kind in printed
    for width in (390, 1280):
        assert inspect_page(page, width) == {"width": width, "over": 0, "outside": [], "overlap": [], "pale": []}


def test_masks_of_a_coco_card_are_counted_as_label_maps_too(make_coco, write_card, tmp_path, capsys) -> None:
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    record = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 20, 20], "segmentation": square}
    make_coco({1: "a.jpg"}, [record])
    assert check_card(write_card("coco", label_maps="polygons"), tmp_path, page=tmp_path / "page.html") == 0
    assert re.search(r"cat +8\.33 +1\n", capsys.readouterr().out)  # 400 of 4,800 pixels
    assert {"Samples of train", "Label maps of train", "Label maps", "Masks"} <= set(titles(tmp_path / "page.html"))

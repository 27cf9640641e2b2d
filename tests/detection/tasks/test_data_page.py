"""Mirrors detection/tasks/data_page.py: the page of a data set in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from detection.tasks.check import check_card
from detection.tasks.init import Wishes, init_folder

Inspect = Callable[..., dict[str, Any]]


@pytest.fixture
def page(made_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """The page of a folder with polygons, one image twice, and a broken one."""
    folder = made_folder("labelme")
    images = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))
    images[1].write_bytes(images[0].read_bytes())
    images[2].write_bytes(images[2].read_bytes()[:500])
    project = init_folder(folder, tmp_path / "run", wishes=Wishes(start="none"), say=lambda _: None)
    path = tmp_path / "data.html"
    check_card(str(project.card), Path(), page=path, config=project.config)
    return path


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_reaches_over_the_edge_overlaps_or_is_pale(page: Path, inspect_page: Inspect, width: int) -> None:
    seen = inspect_page(page, width)
    assert seen == {"width": width, "over": 0, "outside": [], "overlap": [], "pale": []}


def test_every_part_of_the_data_has_a_section(page: Path) -> None:
    found = re.findall(r"<h2[^>]*>([^<]+)</h2>", page.read_text())
    assert found[0] == "Findings"
    assert [title for title in found if not title.startswith("Samples of")][1:] == [
        "Classes",
        "Objects per image",
        "Sizes and anchors",
        "Splits compared",
        "Masks",
    ]


def test_keypoints_have_a_table_and_are_drawn(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    points = [10, 20, 2, 30, 20, 1]
    record = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [5, 5, 40, 40], "keypoints": points}
    file = make_coco({7: "a.jpg"}, [record, record | {"id": 2, "keypoints": [0] * 6}])
    content = json.loads(file.read_text())
    content["categories"] = [{"id": 3, "name": "cat", "keypoints": ["left_eye", "right_eye"]}]
    file.write_text(json.dumps(content))
    card = file.parent / "cats.yaml"
    splits = {"train": {"annotations": file.name, "images": "train"}}
    card.write_text(yaml.safe_dump({"format": "coco", "root": str(file.parent), "splits": splits}))
    assert check_card(str(card), Path(), images=False, page=tmp_path / "page.html") == 0
    rows = re.findall(r"<tr>(.*?)</tr>", (tmp_path / "page.html").read_text(), re.DOTALL)
    cells = [re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", row) for row in rows]
    assert ["left_eye", "right_eye", "0.025", "50.0", "0.0"] in cells
    assert ["right_eye", "left_eye", "0.025", "0.0", "50.0"] in cells

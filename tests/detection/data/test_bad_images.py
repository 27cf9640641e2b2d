"""Mirrors detection/data/bad_images.py."""

from pathlib import Path

import pytest

from detection.data import bad_images
from detection.data.bad_images import usable_images
from detection.data.readers.coco import read_coco


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """The names of the images that were looked at, of sets of any size."""
    found, check = [], bad_images.check_header

    def look(path, **options):
        found.append(Path(path).name)
        check(path, **options)

    monkeypatch.setattr(bad_images, "LEAST_IMAGES", 0)
    monkeypatch.setenv("RESDET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bad_images, "check_header", look)
    return found


def test_good_images_are_opened_once_and_bad_or_changed_ones_again(make_coco, opened) -> None:
    folder = make_coco({1: "a.jpg", 2: "b.jpg", 3: "c.jpg"}, []).parent
    entry = {"annotations": "train.json", "images": "train"}
    index, _ = read_coco(folder, entry, ("cat",), drop=True, exif="apply")
    for _ in range(2):
        assert usable_images(index, "error") == (index, [])
    assert sorted(opened) == ["a.jpg", "b.jpg", "c.jpg"]
    Path(index.paths[1]).write_bytes(b"no image")
    first = usable_images(index, "error")[1]
    assert [problem.file for problem in first] == [index.paths[1]]
    opened.clear()
    assert (usable_images(index, "error")[1], opened) == (first, ["b.jpg"])

"""Mirrors detection/data/bad_images.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from detection.data import bad_images
from detection.data.bad_images import usable_images
from detection.data.index import AnnotationIndex
from detection.data.readers.coco import read_coco

IMAGES = {1: "a.jpg", 2: "b.jpg", 3: "c.jpg"}


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that were looked at, of sets of any size."""
    found, check = list[str](), bad_images.check_header
    monkeypatch.setattr(bad_images, "LEAST_IMAGES", 0)
    monkeypatch.setenv("RESDET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        bad_images, "check_header", lambda path, **options: (found.append(Path(path).name), check(path, **options))
    )
    return found


@pytest.fixture
def index(make_coco: Callable[..., Path]) -> AnnotationIndex:
    entry = {"annotations": "train.json", "images": "train"}
    return read_coco(make_coco(IMAGES, []).parent, entry, ("cat",), drop=True, exif="apply")[0]


def test_good_images_are_opened_once(index: AnnotationIndex, opened: list[str]) -> None:
    assert usable_images(index, "error") == (index, [])
    assert sorted(opened) == ["a.jpg", "b.jpg", "c.jpg"]
    assert usable_images(index, "error") == (index, [])
    assert len(opened) == 3


def test_an_image_that_changed_is_seen(index: AnnotationIndex, opened: list[str]) -> None:
    usable_images(index, "error")
    Path(index.paths[1]).write_bytes(b"no image")
    assert [problem.file for problem in usable_images(index, "error")[1]] == [index.paths[1]]


def test_bad_images_are_looked_at_again(index: AnnotationIndex, opened: list[str]) -> None:
    Path(index.paths[1]).write_bytes(b"no image")
    first, opened[:] = usable_images(index, "error")[1], []
    assert usable_images(index, "error")[1] == first != []
    assert opened == ["b.jpg"]

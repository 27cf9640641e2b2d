"""Mirrors detection/data/kept_index.py."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from detection.data import kept_index
from detection.data.index import AnnotationIndex
from detection.data.packed_strings import PackedStrings
from detection.data.problems import Problem
from detection.data.readers import coco
from detection.data.readers.coco import read_coco

MakeCOCO = Callable[..., Path]
IMAGES = {7: "a.jpg", 900: "b.jpg"}
OBJECT = {"image_id": 7, "category_id": 3, "segmentation": [[10, 20, 40, 20, 40, 25]]}
RECORDS = [
    {"id": 1, "bbox": [10, 20, 30, 5], **OBJECT},
    {"id": 2, "bbox": [10, 20, 300, 5], **OBJECT},
]  # cut at the border


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which small files are kept too."""
    monkeypatch.setattr(kept_index, "LEAST_BYTES", 0)
    monkeypatch.setenv("RESDET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes another parse of the annotations an error."""
    return lambda: monkeypatch.setattr(coco, "list_blocks", lambda *_: pytest.fail("it was read again"))


def read(file: Path, *fields: str) -> tuple[AnnotationIndex, list[Problem]]:
    entry = {"annotations": file.name, "images": "train"}
    return read_coco(file.parent, entry, ("dog", "cat"), drop=True, exif="apply", fields=fields or ("masks",))


def plain(value: Any) -> Any:
    """Returns an index, or a part of one, as values that compare."""
    if isinstance(value, AnnotationIndex):
        return {own.name: plain(getattr(value, own.name)) for own in fields(value)}
    if isinstance(value, PackedStrings):
        return [value.bytes_of(row) for row in range(len(value))]
    if isinstance(value, dict):
        return {name: plain(own) for name, own in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


def kept(folder: Path) -> list[Path]:
    return [*folder.glob("*.safetensors")]


def test_an_index_is_the_same_from_the_file_and_as_kept(
    make_coco: MakeCOCO, folder: Path, unread: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_coco(IMAGES, RECORDS)
    monkeypatch.setenv("RESDET_CACHE", "off")
    index, problems = read(file)
    assert not folder.exists()
    monkeypatch.setenv("RESDET_CACHE", str(folder.parent))
    first = read(file)
    unread()
    for found, notes in (first, read(file)):
        assert plain(found) == plain(index)
        assert notes == problems != []


def test_keypoints_are_kept_with_their_names(
    make_coco: MakeCOCO, folder: Path, unread: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_coco(IMAGES, [{**RECORDS[0], "keypoints": [11, 21, 2, 0, 0, 0]}])
    content = json.loads(file.read_text())
    content["categories"][0] |= {"keypoints": ["nose", "left_eye"], "skeleton": [[1, 2]]}
    file.write_text(json.dumps(content))
    assert read(file)[0].keypoints is None  # another file
    monkeypatch.setenv("RESDET_CACHE", "off")
    index, _ = read(file, "keypoints")
    monkeypatch.setenv("RESDET_CACHE", str(folder.parent))
    read(file, "keypoints")
    unread()
    found, _ = read(file, "keypoints")
    assert found.keypoints == index.keypoints is not None
    assert plain(found) == plain(index)


def test_a_file_of_the_same_size_and_time_but_other_content_is_read(make_coco: MakeCOCO, folder: Path) -> None:
    file = make_coco(IMAGES, RECORDS)
    before = file.stat()
    read(file)
    file.write_text(file.read_text().replace("[10, 20, 30, 5]", "[11, 20, 30, 5]"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert read(file)[0].boxes[0, 0] == 11


def test_an_image_that_is_gone_is_missed(make_coco: MakeCOCO, folder: Path) -> None:
    file = make_coco(IMAGES, RECORDS)
    read(file)
    (file.parent / "train" / "b.jpg").unlink()
    assert [problem.kind for problem in read(file)[1] if problem.severity == "error"] == ["missing image"]


def test_errors_are_not_kept(make_coco: MakeCOCO, folder: Path) -> None:
    file = make_coco(IMAGES, [*RECORDS, RECORDS[0]])
    assert read(file)[1] == read(file)[1]
    assert kept(folder) == []


def test_sizes_that_came_out_of_images_are_not_kept(make_coco: MakeCOCO, folder: Path) -> None:
    file = make_coco(IMAGES, RECORDS)
    content = json.loads(file.read_text())
    for image in content["images"]:
        del image["height"], image["width"]
    file.write_text(json.dumps(content))
    assert len(read(file)[0]) == 2
    assert kept(folder) == []


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"x" * 99, lambda data: data[:-9] + b"\7" * 9])
def test_a_broken_file_is_written_anew_with_a_note(
    damage: Callable[[bytes], bytes], make_coco: MakeCOCO, folder: Path, unread: Callable[[], None]
) -> None:
    file = make_coco(IMAGES, RECORDS)
    index, problems = read(file)
    expected = plain(index)
    (path,) = kept(folder)
    broken = damage(path.read_bytes())
    path.unlink()  # else the map of ``index`` changes
    path.write_bytes(broken)
    index, others = read(file)
    assert plain(index) == expected
    assert [(note.severity, note.file) for note in others if note not in problems] == [("note", str(path))]
    unread()
    assert read(file)[1] == problems


def test_a_folder_that_cannot_be_written_is_a_note(
    make_coco: MakeCOCO, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_coco(IMAGES, RECORDS)
    (folder.parent.parent / "file").touch()
    monkeypatch.setenv("RESDET_CACHE", str(folder.parent.parent / "file"))
    index, problems = read(file)
    assert len(index.boxes) == 2
    assert "RESDET_CACHE" in problems[-1].kind

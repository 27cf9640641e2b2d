"""Mirrors detection/data/label_maps.py, and what keeps label maps: the digest of an index and its kept file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from detection.data import kept_index
from detection.data.images import ImageError
from detection.data.index import AnnotationIndex, index_digest
from detection.data.label_maps import LabelMaps
from detection.data.packed_strings import PackedStrings
from detection.masks import encode
from detection.structures import VOID

VALUES = {7: 0, 8: 1, 0: VOID, 255: VOID}
STORED = np.array([[7, 7, 8], [0, 255, 8]], np.uint8)


def maps_of(*files: Path | str) -> LabelMaps:
    return LabelMaps(class_names=("road", "car"), files=PackedStrings.pack([*map(str, files)]), values=VALUES)


def save(path: Path, image: NDArray[np.generic], *, palette: bool = False) -> Path:
    picture = Image.fromarray(image)
    if palette:
        picture.putpalette([*range(256)] * 3)
    picture.save(path)
    return path


@pytest.mark.parametrize("palette", [False, True])
def test_values_become_labels(tmp_path: Path, palette: bool) -> None:
    maps = maps_of(save(tmp_path / "a.png", STORED, palette=palette), "")
    assert maps.read(0, (2, 3)).tolist() == [[0, 0, 1], [VOID, VOID, 1]]
    assert maps.read(1, (1, 2)).tolist() == [[VOID, VOID]]
    assert maps.labelled().tolist() == [True, False]
    assert maps.take(torch.tensor([1, 0])).labelled().tolist() == [False, True]
    assert LabelMaps.concatenate([maps, maps]) is not None


@pytest.mark.parametrize(
    ("image", "size", "message"),
    [
        (STORED, (3, 2), "3x2 pixels, its image 2x3"),
        (STORED + 2, (2, 3), "value 1, 2, 9, 10 .*0, 7-8, 255"),
        (np.zeros((2, 3, 3), np.uint8), (2, 3), "RGB"),
        (STORED.astype(np.uint16), (2, 3), "I;16"),
    ],
)
def test_what_is_no_label_is_named_with_its_file(
    tmp_path: Path, image: NDArray[np.generic], size: tuple[int, int], message: str
) -> None:
    file = save(tmp_path / "a.png", image)
    with pytest.raises(ImageError, match=f"a\\.png.*{message}"):
        maps_of(file).read(0, size)


def test_masks_make_label_maps_with_void_where_two_lie() -> None:
    masks = np.zeros((2, 3, 4), np.bool_)
    masks[0, :2, :2], masks[1, 1:, 1:3] = True, True
    rows = [[label, encode(mask)["counts"].decode()] for label, mask in zip((1, 2), masks, strict=True)]
    maps = replace(maps_of(""), objects=PackedStrings.pack([json.dumps(rows)]))
    assert maps.read(0, (3, 4)).tolist() == [[1, 1, 0, 0], [1, VOID, 2, 0], [0, 2, 2, 0]]
    assert maps.labelled().tolist() == [True]


@pytest.fixture
def index(make_index: Callable[..., AnnotationIndex], tmp_path: Path) -> AnnotationIndex:
    files = [save(tmp_path / name, STORED) for name in ("a.png", "b.png")]
    return replace(
        make_index([[], []], paths=[str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")], sizes=[(2, 3)] * 2),
        label_maps=maps_of(*files),
    )


def test_the_digest_counts_names_and_values_of_label_images_but_no_folder(index: AnnotationIndex) -> None:
    digest = index_digest(index)
    assert index_digest(replace(index, label_maps=maps_of("elsewhere/a.png", "b.png"))) == digest
    assert index_digest(replace(index, label_maps=maps_of("b.png", "a.png"))) != digest
    other = replace(maps_of("a.png", "b.png"), values=VALUES | {9: 1})
    assert index_digest(replace(index, label_maps=other)) != digest
    assert index_digest(replace(index, label_maps=None)) != digest


def test_a_kept_index_has_its_label_maps(
    index: AnnotationIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_index, "LEAST_BYTES", 0)
    monkeypatch.setenv("RESDET_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "annotations.json"
    file.write_text("{}", encoding="utf-8")
    objects = PackedStrings.pack(["[]", '[[1, "x"]]'])
    assert index.label_maps is not None
    files = [*index.label_maps.files]
    index = replace(index, label_maps=replace(index.label_maps, objects=objects))
    assert kept_index.kept_index(file, [], lambda: (index, [], True))[1] == []
    again, _ = kept_index.kept_index(file, [], lambda: pytest.fail("it was read again"))
    assert index_digest(again) == index_digest(index)
    assert again.label_maps is not None
    assert again.label_maps.values == VALUES
    assert [*again.label_maps.files] == files

"""Mirrors detection/data/label_maps.py, and what keeps label maps: the digest of an index and its kept file."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from detection.data import kept_index
from detection.data.images import ImageError
from detection.data.index import index_digest
from detection.data.label_maps import LabelMaps
from detection.data.packed_strings import PackedStrings
from detection.masks import encode
from detection.structures import VOID

VALUES = {7: 0, 8: 1, 0: VOID, 255: VOID}
STORED = np.array([[7, 7, 8], [0, 255, 8]], np.uint8)


def maps_of(*files):
    return LabelMaps(class_names=("road", "car"), files=PackedStrings.pack([*map(str, files)]), values=VALUES)


@pytest.mark.parametrize("palette", [False, True])
def test_values_become_labels(tmp_path, palette) -> None:
    picture = Image.fromarray(STORED)
    if palette:
        picture.putpalette([*range(256)] * 3)
    picture.save(tmp_path / "a.png")
    maps = maps_of(tmp_path / "a.png", "")
    assert maps.read(0, (2, 3)).tolist() == [[0, 0, 1], [VOID, VOID, 1]]
    assert (maps.read(1, (1, 2)).tolist(), maps.labelled().tolist()) == ([[VOID, VOID]], [True, False])
    assert maps.take(torch.tensor([1, 0])).labelled().tolist() == [False, True]
    joined = LabelMaps.concatenate([maps, maps])
    assert joined is not None
    assert (joined.labelled().tolist(), LabelMaps.concatenate([None])) == ([True, False] * 2, None)
    for other in (None, replace(maps, class_names=("road", "tree")), replace(maps, values={7: 0, 8: 1})):
        with pytest.raises(ValueError, match="can't be joined"):
            LabelMaps.concatenate([maps, other])


def test_what_is_no_label_is_named_with_its_file(draw, tmp_path) -> None:
    for image, size, message in [
        (STORED, (3, 2), "3x2 pixels, its image 2x3"),
        (STORED + 2, (2, 3), "values 1, 2, 9, 10 are .*0, 7-8, 255"),
        (np.zeros((2, 3, 3), np.uint8), (2, 3), "RGB"),
        (STORED.astype(np.uint16), (2, 3), "I;16"),
    ]:
        with pytest.raises(ImageError, match=f"a\\.png.*{message}"):
            maps_of(draw(tmp_path / "a.png", image)).read(0, size)


def test_masks_make_label_maps_with_void_where_two_lie() -> None:
    masks = np.zeros((2, 3, 4), np.bool_)
    masks[0, :2, :2], masks[1, 1:, 1:3] = True, True
    rows = [[label, encode(mask)["counts"].decode()] for label, mask in zip((1, 2), masks, strict=True)]
    maps = replace(maps_of(""), objects=PackedStrings.pack([json.dumps(rows)]))
    assert maps.read(0, (3, 4)).tolist() == [[1, 1, 0, 0], [1, VOID, 2, 0], [0, 2, 2, 0]]
    assert maps.labelled().tolist() == [True]


def test_the_digest_and_the_kept_index_count_label_maps_but_no_folder(make_index, draw, tmp_path, monkeypatch) -> None:
    plain, files = make_index([[], []], sizes=[(2, 3)] * 2), [str(draw(tmp_path / f"{name}.png")) for name in "ab"]
    index = replace(plain, label_maps=maps_of(*files))
    same = replace(index, label_maps=maps_of("elsewhere/a.png", "b.png"))
    swapped = replace(index, label_maps=maps_of("b.png", "a.png"))
    valued = replace(index, label_maps=replace(maps_of(*files), values=VALUES | {9: 1}))
    objects = PackedStrings.pack(["[]", '[[1, "x"]]'])
    drawn = replace(index, label_maps=replace(maps_of(*files), objects=objects))
    assert index_digest(same) == index_digest(index)
    assert len({index_digest(each) for each in (index, swapped, valued, plain, drawn)}) == 5
    monkeypatch.setattr(kept_index, "LEAST_BYTES", 0)
    monkeypatch.setenv("RESDET_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "annotations.json"
    file.write_text("{}", encoding="utf-8")
    assert kept_index.kept_index(file, [], lambda: (drawn, [], True))[1] == []
    again, _ = kept_index.kept_index(file, [], lambda: pytest.fail("it was read again"))
    assert index_digest(again) == index_digest(drawn)
    assert again.label_maps is not None
    assert (again.label_maps.values, [*again.label_maps.files]) == (VALUES, files)

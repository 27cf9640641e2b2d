"""Mirrors detection/masks.py; pycocotools is the reference."""

from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from detection.masks import decode, empty_rle, encode, is_empty, to_rle

SIZE = (60, 80)
SQUARE = [[1, 1, 4, 1, 4, 3, 1, 3]]
# pycocotools 2.0.11 on numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def to_mask(segmentation: object, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return decode([to_rle(segmentation, size)], size)[0]


def reference(segmentation: object, size: tuple[int, int] = SIZE) -> Any:
    """What pycocotools makes of an annotation."""
    coco: Any = COCO()
    coco.imgs = {1: {"height": size[0], "width": size[1]}}
    return coco.annToMask({"image_id": 1, "segmentation": segmentation})


def test_masks_by_hand() -> None:
    mask = to_mask(SQUARE, (5, 6))
    assert mask.dtype == torch.bool
    assert mask.nonzero().tolist() == [[y, x] for y in (1, 2) for x in (1, 2, 3)]
    for counts in ([1, 2, 3], "123", b"123"):  # they go down the columns and begin with background
        assert to_mask({"size": [3, 2], "counts": counts}, (3, 2)).long().tolist() == [[0, 0], [1, 0], [1, 0]]


def test_polygons_are_those_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        points = rng.integers(3, 12, rng.integers(1, 4))
        polygons = [(rng.uniform(-0.2, 1.2, (n, 2)) * (80, 60)).round(2).ravel().tolist() for n in points]
        np.testing.assert_array_equal(to_mask(polygons).numpy(), reference(polygons))


def test_run_lengths_are_those_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for density in (0.003, 0.1, 0.5, 0.9, 0.997) * 20:
        height, width = (int(side) for side in rng.integers(20, 120, 2))
        mask = rng.random((height, width)) < density
        rle = encode(mask)
        assert to_rle({"size": [height, width], "counts": rle["counts"].decode()}, (height, width)) == rle
        np.testing.assert_array_equal(reference(rle, (height, width)), mask)
        runs = np.diff(np.flatnonzero(np.diff(mask.ravel("F"), prepend=False, append=not mask[-1, -1])), prepend=0)
        plain = {"size": [height, width], "counts": runs.tolist()}
        np.testing.assert_array_equal(to_mask(plain, (height, width)).numpy(), mask)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], r"segmentation is \[\], expected polygons or an RLE"),
        (None, "segmentation is None, expected polygons or an RLE"),
        ("123", "segmentation is '123', expected"),
        ([[1, 1, 4, 1]], r"polygon 1 is \[1, 1, 4, 1\], expected x and y of at least 3 points"),
        ([*SQUARE, [1, 1, 4, 1, 4, 3, 1]], "polygon 2 .* expected x and y of at least 3 points"),
        ([1, 1, 4, 1, 4, 3], "polygon 1 is 1, expected"),
        ([[[1, 1], [4, 1], [4, 3]]], "polygon 1 .* expected x and y"),
        ([["a"] * 6], "polygon 1 .* expected numbers"),
        ([[1, 1, 4, 1, 4, float("nan")]], "polygon 1 .* expected pixels of the image"),
        ([[1, 1, 4, 1, 4, 1e9]], "polygon 1 .* expected pixels of the image"),
        ([[90, 1, 95, 1, 95, 9]], "covers no pixel of the image"),
        ({"size": [80, 60], "counts": [4800]}, r"RLE size is \[80, 60\], the image has \[height, width\] \[60, 80\]"),
        ({"counts": [4800]}, "RLE size is None"),
        ({"size": [60, 80]}, "RLE counts are None, expected run lengths"),
        ({"size": [60, 80], "counts": [10, -1, 4791]}, "expected run lengths"),
        ({"size": [60, 80], "counts": ["x"]}, "expected run lengths"),
        ({"size": [60, 80], "counts": [10, 20, 9999]}, r"RLE counts sum to 10029, the image has 60 \* 80 pixels"),
        ({"size": [60, 80], "counts": "99"}, "RLE counts sum to 18"),
        ({"size": [60, 80], "counts": ""}, "RLE counts sum to 0"),
        ({"size": [60, 80], "counts": "9e"}, "RLE counts are b'9e', which is no compressed RLE"),
        ({"size": [60, 80], "counts": "é !"}, "which is no compressed RLE"),
        ({"size": [60, 80], "counts": [4800, 0]}, "covers no pixel"),
        ([[1, 2] * 5000 + [float("nan"), 0]], r"^.{60,120}$"),  # a long value is cut in the message
    ],
)
def test_what_is_no_mask_is_refused(segmentation: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_rle(segmentation, SIZE)


def test_masks_come_back_from_their_code() -> None:
    masks = torch.rand(4, 7, 5) > 0.5
    assert torch.equal(decode([encode(mask.numpy()) for mask in masks], (7, 5)), masks)
    assert (decode([], (7, 5)).shape, decode([], (7, 5)).dtype) == ((0, 7, 5), torch.bool)
    assert is_empty(empty_rle((7, 5)))
    assert not decode([empty_rle((7, 5))], (7, 5)).any()
    assert not is_empty(to_rle(SQUARE, SIZE))

"""Mirrors detection/masks.py, mask_geometry.py and mask_pasting.py.

The references are pycocotools, torchvision and ``grid_sample``.
"""

import tracemalloc
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes
from torchvision.ops import roi_align

from detection.config.detection import MaskConfig
from detection.mask_geometry import MaskGeometry, crop_and_resize
from detection.mask_pasting import paste
from detection.masks import decode, empty_rle, encode, is_empty, to_rle

SIZE = (60, 80)
SQUARE = [[1, 1, 4, 1, 4, 3, 1, 3]]
# pycocotools 2.0.11 on numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def to_mask(segmentation: object, size: tuple[int, int] = SIZE) -> Tensor:
    return decode([to_rle(segmentation, size)], size)[0]


def reference(segmentation: object, size: tuple[int, int] = SIZE) -> Any:
    coco: Any = COCO()
    coco.imgs = {1: {"height": size[0], "width": size[1]}}
    return coco.annToMask({"image_id": 1, "segmentation": segmentation})


def test_masks_by_hand_and_back_from_their_code() -> None:
    mask = to_mask(SQUARE, (5, 6))
    assert mask.dtype == torch.bool
    assert mask.nonzero().tolist() == [[y, x] for y in (1, 2) for x in (1, 2, 3)]
    for counts in ([1, 2, 3], "123", b"123"):  # they go down the columns and begin with background
        assert to_mask({"size": [3, 2], "counts": counts}, (3, 2)).long().tolist() == [[0, 0], [1, 0], [1, 0]]
    masks = torch.rand(4, 7, 5) > 0.5
    assert torch.equal(decode([encode(mask.numpy()) for mask in masks], (7, 5)), masks)
    assert (decode([], (7, 5)).shape, decode([], (7, 5)).dtype) == ((0, 7, 5), torch.bool)
    assert is_empty(empty_rle((7, 5)))
    assert not decode([empty_rle((7, 5))], (7, 5)).any()
    assert not is_empty(to_rle(SQUARE, SIZE))


def test_polygons_and_run_lengths_are_those_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        points = rng.integers(3, 12, rng.integers(1, 4))
        polygons = [(rng.uniform(-0.2, 1.2, (n, 2)) * (80, 60)).round(2).ravel().tolist() for n in points]
        np.testing.assert_array_equal(to_mask(polygons).numpy(), reference(polygons))
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


# Geometry

GEOMETRIES: tuple[MaskGeometry, ...] = get_args(MaskGeometry)
every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES)
float_boxes = pytest.mark.parametrize("geometry", ["exact", "detectron2"])


def random_boxes(count: int, size: tuple[int, int]) -> Tensor:
    """(count, 4) inside an image of ``size``, from two pixels to all of it."""
    scale = torch.tensor([size[1], size[0], size[1], size[0]]).float()
    first, second = torch.rand(count, 2), torch.rand(count, 2)
    boxes = torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=1) * (scale - 2)
    return boxes + torch.tensor([0.0, 0, 2, 2])


def random_masks_and_boxes(count: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.rand(5, 50, 70) > 0.5, random_boxes(count, (50, 70)), torch.randint(0, 5, (count,))


def rectangle(x1: int, y1: int, x2: int, y2: int, size: tuple[int, int] = SIZE) -> Tensor:
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[0, y1:y2, x1:x2] = True
    return mask


def extent(mask: Tensor) -> list[int]:
    """(x1, y1, x2, y2) of the pixels of ``mask`` (H, W)."""
    rows, columns = mask.nonzero().unbind(1)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def pasted(masks: Tensor, boxes, geometry: MaskGeometry, size: tuple[int, int] = SIZE, **options) -> Tensor:
    return decode(paste(masks, torch.as_tensor(boxes), size, geometry=geometry, **options), size)


def by_grid_sample(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities (N, H, W) by the rule of Detectron2: ``grid_sample`` at the centres of all pixels, in float64."""
    x1, y1, x2, y2 = boxes.double()[:, :, None].unbind(1)
    y = (torch.arange(size[0]).double() + 0.5 - y1) / (y2 - y1) * 2 - 1
    x = (torch.arange(size[1]).double() + 0.5 - x1) / (x2 - x1) * 2 - 1
    grid = torch.stack([x[:, None].expand(-1, size[0], -1), y[:, :, None].expand(-1, -1, size[1])], dim=3)
    return functional.grid_sample(masks.double()[:, None], grid, align_corners=False)[:, 0]


@pytest.mark.parametrize(
    ("geometry", "box", "cells", "row"),
    [
        # 4 cells of 1.5 pixels with 4 samples an axis; the mask falls from 1 at 2.5 to 0 at 3.5: 1, 0.92, 0.08 and 0.
        ("exact", [0.0, 0, 6, 6], 4, [1, 1, 0, 0]),
        # Cells of 1.5 pixels have 2 samples an axis, at 0.375 and 1.125: the third cell's at 3.375 and 4.125.
        ("detectron2", [0.0, 0, 6, 6], 4, [1, 1, 0, 0]),
        # One sample in each of the cells of 0.5 pixels, at 2.25, 2.75 and 3.25: 1, 0.75 and 0.25.
        ("detectron2", [2.0, 2, 3.5, 3.5], 3, [1, 1, 0]),
        # Samples at 0.5, 1.5, 2.5, 3.5 of each cell, between the pixels 0 1, 1 2, 2 3 (a half) and 3 4 (none).
        ("torchvision", [0.0, 0, 8, 8], 2, [(1 + 1 + 0.5 + 0) / 4, 0]),
    ],
)
def test_targets_by_hand(geometry: MaskGeometry, box: list[float], cells: int, row: list[float]) -> None:
    targets = crop_and_resize(rectangle(0, 0, 3, 80), torch.tensor([box]), cells, geometry=geometry)
    assert targets.dtype == torch.float32
    assert targets[0, 1].tolist() == row
    assert MaskConfig().geometry == "exact"


def test_targets_are_those_of_the_references() -> None:
    masks, boxes, rows = random_masks_and_boxes()
    regions = torch.cat([rows[:, None], boxes], dim=1)
    expected = roi_align(masks[:, None].float(), regions, 14, sampling_ratio=4, aligned=True)[:, 0]
    exact = crop_and_resize(masks, boxes, 14, rows=rows, geometry="exact")
    clear = (expected - 0.5).abs() > 1e-5
    assert torch.equal(exact[clear], (expected > 0.5).float()[clear])
    targets = crop_and_resize(masks, boxes, 28, rows=rows, geometry="torchvision")
    assert torch.equal(targets, project_masks_on_boxes(masks, boxes, rows, 28))


@every_geometry
def test_rows_choose_the_mask_and_boxes_may_lie_anywhere(geometry: MaskGeometry) -> None:
    masks, boxes, rows = random_masks_and_boxes(9)
    chosen = crop_and_resize(masks, boxes, 14, rows=rows, geometry=geometry)
    assert torch.equal(chosen, crop_and_resize(masks[rows], boxes, 14, geometry=geometry))
    mask, none = torch.ones(1, *SIZE, dtype=torch.bool), torch.zeros(0).long()
    boxes = torch.tensor([[0.0, 0, 80, 60], [3.3, 4.4, 9.1, 30.2], [100, 70, 120, 90], [-30, -30, -10, -5]])
    targets = crop_and_resize(mask, boxes, 7, rows=torch.zeros(4).long(), geometry=geometry)
    assert targets.flatten(1).amin(dim=1)[:2].tolist() == [1, 1]
    assert not targets[2:].any()
    for count in (0, 3):
        masks = torch.ones(count, 9, 9, dtype=torch.bool)
        assert crop_and_resize(masks, torch.zeros(0, 4), 14, rows=none, geometry=geometry).shape == (0, 14, 14)
        padded = crop_and_resize(masks, torch.zeros(4, 4), 7, rows=torch.zeros(4).long(), geometry=geometry)
        assert padded.shape == (4, 7, 7)
        assert padded.isfinite().all()


@float_boxes
def test_a_full_mask_covers_the_pixels_whose_centres_lie_in_its_box(geometry: MaskGeometry) -> None:
    masks = pasted(torch.ones(2, 28, 28), [[10.0, 20, 38, 48], [10.4, 20.6, 38.6, 47.4]], geometry)
    assert [extent(mask) for mask in masks] == [[10, 20, 38, 48], [10, 21, 39, 47]]
    assert masks[0].sum() == 28 * 28


def test_pasted_by_hand() -> None:
    full = pasted(torch.ones(1, 28, 28), [[10.0, 20, 38, 48]], "torchvision")[0]
    assert extent(full) == [10, 20, 39, 49]  # a pixel more than by the others
    # Cells of 4 pixels with centres at 2 and 6: 0.8 to 2, then down to 0.2 at 6, and on at 0.2. Pixel centres at
    # 0.5, 1.5, 2.5, .. have 0.8, 0.8, 0.725, 0.575, 0.425, 0.275, 0.2, 0.2.
    mask, box = torch.tensor([[[0.8, 0.2], [0.8, 0.2]]]), [[0.0, 0, 8, 8]]
    for threshold, columns in ((0.79, 2), (0.7, 3), (0.57, 4), (0.42, 5), (0.27, 6), (0.19, 8)):
        assert extent(pasted(mask, box, "exact", threshold=threshold)[0]) == [0, 0, columns, 8]
    # Detectron2's falls to 0 at -2 and at 10: a share of 1 - 1.5 / 4 and 1 - 0.5 / 4 at the first two pixels.
    row = [0.8 * 0.625, 0.8 * 0.875, 0.725, 0.575, 0.425, 0.275, 0.2 * 0.875, 0.2 * 0.625]
    for threshold in (0.15, 0.3, 0.45, 0.6, 0.71):
        found = pasted(mask, box, "detectron2", threshold=threshold)[0, 3, :8]
        assert found.tolist() == [value >= threshold for value in row]


@pytest.mark.parametrize("side", [7, 28])
@pytest.mark.parametrize("geometry", ["detectron2", "torchvision"])
def test_probabilities_are_those_of_the_reference(side: int, geometry: MaskGeometry) -> None:
    torch.manual_seed(side)
    masks, boxes = torch.rand(40, side, side), random_boxes(40, SIZE)
    if geometry == "detectron2":
        boxes[:5] += torch.tensor([30.3, 20.2, 30.3, 20.2])  # over the border of the image
        expected = by_grid_sample(masks, boxes, SIZE)
    else:
        expected = paste_masks_in_image(masks[:, None], boxes, SIZE)[:, 0]
    for threshold in np.linspace(0.05, 0.95, 19).tolist():
        differs = pasted(masks, boxes, geometry, threshold=threshold) != (expected >= threshold)
        assert ((expected[differs] - threshold).abs() < 1e-5).all()


@every_geometry
def test_boxes_beyond_the_image_are_cut_and_take_no_memory(geometry: MaskGeometry) -> None:
    boxes = [[-40.0, -30, 40, 30], [70, 50, 500, 400], [200, 200, 220, 210], [-20, -20, -5, -9]]
    masks = pasted(torch.ones(4, 28, 28), boxes, geometry)
    assert masks[0].sum() == pytest.approx(30 * 40, rel=0.05)
    assert extent(masks[1]) == pytest.approx([70, 50, 80, 60], abs=1)
    assert not masks[2:].any()
    assert paste(torch.zeros(0, 28, 28), torch.zeros(0, 4), SIZE, geometry=geometry) == []
    huge = torch.tensor([[-1e6, -1e6, 1e6, 1e6]] + [[0.0, 0, 900, 900]] * 7)
    tracemalloc.start()
    rles = paste(torch.ones(8, 28, 28), huge, (1000, 1000), geometry=geometry)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert decode(rles[:1], (1000, 1000)).all()
    assert peak < 3e6  # that of one image
    small, pixels = [[10.0, 10, 10, 10], [10.2, 10.2, 11.4, 11.4]], [1, 4] if geometry == "torchvision" else [0, 1]
    half = pasted(torch.ones(2, 28, 28, dtype=torch.bfloat16), small, geometry)
    assert [int(mask.sum()) for mask in half] == pixels


@float_boxes
@pytest.mark.parametrize("box", [[10.5, 20.5, 38.5, 48.5], [7.5, 3.5, 22.5, 57.5], [30.0, 12.0, 36.0, 17.0]])
def test_a_rectangle_around_a_box_at_half_pixels_comes_back(geometry: MaskGeometry, box: list[float]) -> None:
    x1, y1, x2, y2 = map(int, box)
    mask = rectangle(x1, y1, x2, y2)
    around = torch.tensor([box]) + torch.tensor([-4.0, -3, 2, 2])
    target = crop_and_resize(mask, around, 28, geometry=geometry)
    assert (pasted(target, around, geometry) != mask).sum() == 0
    mask, tight = rectangle(30, 12, 36, 17), torch.tensor([[30.0, 12, 36, 17]])  # torchvision's do not
    assert (pasted(crop_and_resize(mask, tight, 28, geometry="torchvision"), tight, "torchvision") != mask).sum() > 5

"""Mirrors detection/masks.py; pycocotools and torchvision are the references."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.roi_heads import maskrcnn_loss, paste_masks_in_image, project_masks_on_boxes

from detection.masks import crop_and_resize, decode, empty_rle, encode, is_empty, paste, to_rle

SIZE = (60, 80)
SQUARE = [[1, 1, 4, 1, 4, 3, 1, 3]]


def to_mask(segmentation: object, size: tuple[int, int] = SIZE) -> Tensor:
    return decode([to_rle(segmentation, size)], size)[0]


def reference(segmentation: object, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """What pycocotools makes of an annotation."""
    coco: Any = COCO()
    coco.imgs = {1: {"height": size[0], "width": size[1]}}
    return coco.annToMask({"image_id": 1, "segmentation": segmentation})


def random_boxes(count: int, size: tuple[int, int]) -> Tensor:
    """(count, 4) inside an image of ``size``, from two pixels to all of it."""
    scale = torch.tensor([size[1], size[0], size[1], size[0]]).float()
    first, second = torch.rand(count, 2), torch.rand(count, 2)
    boxes = torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=1) * (scale - 2)
    return boxes + torch.tensor([0.0, 0, 2, 2])


# COCO's segmentations


def test_a_square_covers_its_pixels() -> None:
    mask = to_mask(SQUARE, (5, 6))
    assert mask.dtype == torch.bool
    assert mask.nonzero().tolist() == [[y, x] for y in (1, 2) for x in (1, 2, 3)]


@pytest.mark.parametrize("counts", [[1, 2, 3], "123", b"123"], ids=["plain", "text", "bytes"])
def test_run_lengths_go_down_the_columns_and_begin_with_background(counts: object) -> None:
    assert to_mask({"size": [3, 2], "counts": counts}, (3, 2)).tolist() == [
        [False, False],
        [True, False],
        [True, False],
    ]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11 on numpy 2
def test_polygons_are_those_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        points = rng.integers(3, 12, rng.integers(1, 4))
        polygons = [(rng.uniform(-0.2, 1.2, (n, 2)) * (80, 60)).round(2).ravel().tolist() for n in points]
        np.testing.assert_array_equal(to_mask(polygons).numpy(), reference(polygons))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
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
        ({"size": [60, 80], "counts": [10, 20]}, r"RLE counts sum to 30, the image has 60 \* 80 pixels"),
        ({"size": [60, 80], "counts": [10, 20, 9999]}, "RLE counts sum to 10029"),
        ({"size": [60, 80], "counts": "99"}, "RLE counts sum to 18"),
        ({"size": [60, 80], "counts": ""}, "RLE counts sum to 0"),
        ({"size": [60, 80], "counts": "9e"}, "RLE counts are b'9e', which is no compressed RLE"),
        ({"size": [60, 80], "counts": "é !"}, "which is no compressed RLE"),
        ({"size": [60, 80], "counts": [4800]}, "covers no pixel"),
        ({"size": [60, 80], "counts": [4800, 0]}, "covers no pixel"),
    ],
)
def test_what_is_no_mask_is_refused(segmentation: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_rle(segmentation, SIZE)


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(ValueError, match=r"^.{60,120}$"):
        to_rle([[1, 2] * 5000 + [float("nan"), 0]], SIZE)


def test_masks_come_back_from_their_code() -> None:
    masks = torch.rand(4, 7, 5) > 0.5
    assert torch.equal(decode([encode(mask.numpy()) for mask in masks], (7, 5)), masks)
    assert decode([], (7, 5)).shape == (0, 7, 5)
    assert decode([], (7, 5)).dtype == torch.bool


def test_an_empty_mask_has_no_pixel() -> None:
    assert is_empty(empty_rle((7, 5)))
    assert not decode([empty_rle((7, 5))], (7, 5)).any()
    assert not is_empty(to_rle(SQUARE, SIZE))


# training targets


def test_targets_are_means_of_samples() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :4, :4] = True
    # A cell has samples at 0.5, 1.5, 2.5, 3.5 in each direction, between the pixels 0 1, 1 2, 2 3 and 3 4.
    share = (1 + 1 + 1 + 0.5) / 4
    cells = crop_and_resize(mask, torch.tensor([[0.0, 0, 8, 8]]), 2)
    assert cells.dtype == torch.float32
    assert cells.tolist() == [[[share**2, 0], [0, 0]]]
    assert torch.equal(crop_and_resize(mask, torch.tensor([[1.0, 1, 3, 3]]), 4), torch.ones(1, 4, 4))


def test_targets_and_losses_are_those_of_torchvision() -> None:
    torch.manual_seed(0)
    masks, boxes = torch.rand(5, 50, 70) > 0.5, random_boxes(30, (50, 70))
    rows, labels = torch.randint(0, 5, (30,)), torch.randint(0, 3, (5,))
    targets = crop_and_resize(masks, boxes, 28, rows=rows)
    assert torch.equal(targets, project_masks_on_boxes(masks, boxes, rows, 28))
    assert torch.equal(targets, crop_and_resize(masks[rows], boxes, 28))
    logits = torch.randn(30, 3, 28, 28)
    loss = functional.binary_cross_entropy_with_logits(logits[torch.arange(30), labels[rows]], targets)
    assert float(loss) == pytest.approx(float(maskrcnn_loss(logits, [boxes], [masks], [labels], [rows])), abs=1e-6)


@pytest.mark.parametrize("count", [0, 3])
def test_no_boxes_have_no_targets(count: int) -> None:
    masks = torch.zeros(count, 10, 10, dtype=torch.bool)
    assert crop_and_resize(masks, torch.zeros(0, 4), 14, rows=torch.zeros(0).long()).shape == (0, 14, 14)


# pasting


def test_a_full_mask_fills_its_box() -> None:
    (rle,) = paste(torch.ones(1, 28, 28), torch.tensor([[10.0, 20, 38, 48]]), SIZE)
    rows, columns = decode([rle], SIZE)[0].nonzero().unbind(1)
    assert rle["size"] == [60, 80]
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (20, 48, 10, 38)


@pytest.mark.parametrize("side", [7, 14, 28])
def test_pasted_probabilities_are_those_of_torchvision(side: int) -> None:
    torch.manual_seed(side)
    masks, boxes = torch.rand(40, side, side), random_boxes(40, SIZE)
    expected = paste_masks_in_image(masks[:, None], boxes, SIZE)[:, 0]
    for threshold in np.linspace(0.05, 0.95, 19).tolist():
        pasted = decode(paste(masks, boxes, SIZE, threshold=threshold), SIZE)
        differs = pasted != (expected >= threshold)
        assert ((expected[differs] - threshold).abs() < 1e-5).all()


def test_boxes_beyond_the_image_are_cut() -> None:
    boxes = torch.tensor([[-40.0, -30, 40, 30], [70, 50, 500, 400], [200, 200, 220, 210], [-20, -20, -5, -9]])
    pasted = decode(paste(torch.ones(4, 28, 28), boxes, SIZE), SIZE)
    assert pasted[0].sum() == pytest.approx(30 * 40, rel=0.05)
    assert pasted[1].nonzero().amin(dim=0).tolist() == pytest.approx([50, 70], abs=1)
    assert pasted[1].nonzero().amax(dim=0).tolist() == [59, 79]
    assert not pasted[2:].any()


def test_a_huge_box_and_many_masks_take_one_image_of_memory() -> None:
    boxes = torch.tensor([[-1e6, -1e6, 1e6, 1e6]] + [[0.0, 0, 900, 900]] * 7)
    tracemalloc.start()
    rles = paste(torch.ones(8, 28, 28), boxes, (1000, 1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert decode(rles[:1], (1000, 1000)).all()
    assert peak < 3e6


def test_no_detections_paste_nothing() -> None:
    assert paste(torch.zeros(0, 28, 28), torch.zeros(0, 4), SIZE) == []


def test_half_precision_and_boxes_without_area_are_pasted() -> None:
    boxes = torch.tensor([[10.0, 10, 10, 10], [10.2, 10.2, 11.4, 11.4]])
    pasted = decode(paste(torch.ones(2, 28, 28, dtype=torch.bfloat16), boxes, SIZE), SIZE)
    assert [int(mask.sum()) for mask in pasted] == [1, 4]

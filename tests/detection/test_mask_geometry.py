"""Mirrors detection/mask_geometry.py and mask_pasting.py; torchvision and ``grid_sample`` are the references."""

from __future__ import annotations

import tracemalloc
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.roi_heads import maskrcnn_loss, paste_masks_in_image, project_masks_on_boxes
from torchvision.ops import roi_align

from detection.config.detection import MaskConfig
from detection.mask_geometry import MaskGeometry, crop_and_resize
from detection.mask_pasting import paste
from detection.masks import decode

SIZE = (60, 80)
GEOMETRIES: tuple[MaskGeometry, ...] = get_args(MaskGeometry)
FLOAT_BOXES: tuple[MaskGeometry, ...] = ("exact", "detectron2")

every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES)


def random_boxes(count: int, size: tuple[int, int]) -> Tensor:
    """(count, 4) inside an image of ``size``, from two pixels to all of it."""
    scale = torch.tensor([size[1], size[0], size[1], size[0]]).float()
    first, second = torch.rand(count, 2), torch.rand(count, 2)
    boxes = torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=1) * (scale - 2)
    return boxes + torch.tensor([0.0, 0, 2, 2])


def rectangle(x1: int, y1: int, x2: int, y2: int, size: tuple[int, int] = SIZE) -> Tensor:
    """A mask (1, H, W) of whole pixels."""
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[0, y1:y2, x1:x2] = True
    return mask


def extent(mask: Tensor) -> list[int]:
    """(x1, y1, x2, y2) of the pixels of ``mask`` (H, W)."""
    rows, columns = mask.nonzero().unbind(1)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def by_grid_sample(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities (N, H, W) by the rule of Detectron2: ``grid_sample`` at the centres of all pixels, in float64."""
    x1, y1, x2, y2 = boxes.double()[:, :, None].unbind(1)
    y = (torch.arange(size[0]).double() + 0.5 - y1) / (y2 - y1) * 2 - 1
    x = (torch.arange(size[1]).double() + 0.5 - x1) / (x2 - x1) * 2 - 1
    grid = torch.stack([x[:, None].expand(-1, size[0], -1), y[:, :, None].expand(-1, -1, size[1])], dim=3)
    return functional.grid_sample(masks.double()[:, None], grid, align_corners=False)[:, 0]


def test_the_config_has_these_geometries() -> None:
    assert MaskConfig().geometry == "exact"
    assert [MaskConfig(geometry=name).geometry for name in GEOMETRIES] == [*GEOMETRIES]


class TestCropAndResize:
    """Training targets."""

    def test_by_hand(self) -> None:
        # 4 cells of 1.5 pixels. Of 4 samples a cell and axis, at 3/16, 9/16, 15/16 and 21/16 from its start, the mask
        # of the pixels up to 3 has: all of the first cell; in the second 1.6875, 2.0625, 2.4375, 2.8125, where it falls
        # from 1 at 2.5 to 0 at 3.5.
        mask, box = rectangle(0, 0, 3, 80), torch.tensor([[0.0, 0, 6, 6]])
        targets = crop_and_resize(mask, box, 4, geometry="exact")
        assert targets.dtype == torch.float32
        assert targets[0, 1].tolist() == [1, 1, 0, 0]  # shares of 1, 0.92, 0.08 and 0

    def test_detectron2_by_hand(self) -> None:
        # Cells of 1.5 pixels have 2 samples an axis, at 0.375 and 1.125: the third cell's at 3.375 and 4.125.
        mask, box = rectangle(0, 0, 3, 80), torch.tensor([[0.0, 0, 6, 6]])
        assert crop_and_resize(mask, box, 4, geometry="detectron2")[0, 1].tolist() == [1, 1, 0, 0]
        # One sample in each of the cells of 0.5 pixels, at 2.25, 2.75 and 3.25: 1, 0.75 and 0.25.
        box = torch.tensor([[2.0, 2, 3.5, 3.5]])
        assert crop_and_resize(mask, box, 3, geometry="detectron2")[0, 1].tolist() == [1, 1, 0]

    def test_torchvision_by_hand(self) -> None:
        mask = rectangle(0, 0, 4, 4, (8, 8))
        # A cell has samples at 0.5, 1.5, 2.5, 3.5 in each direction, between the pixels 0 1, 1 2, 2 3 and 3 4.
        share = (1 + 1 + 1 + 0.5) / 4
        cells = crop_and_resize(mask, torch.tensor([[0.0, 0, 8, 8]]), 2, geometry="torchvision")
        assert cells.tolist() == [[[share**2, 0], [0, 0]]]

    def test_exact_targets_are_those_of_aligned_roi_align(self) -> None:
        torch.manual_seed(0)
        masks, boxes, rows = torch.rand(5, 50, 70) > 0.5, random_boxes(30, (50, 70)), torch.randint(0, 5, (30,))
        regions = torch.cat([rows[:, None], boxes], dim=1)
        expected = roi_align(masks[:, None].float(), regions, 14, sampling_ratio=4, aligned=True)[:, 0]
        exact = crop_and_resize(masks, boxes, 14, rows=rows, geometry="exact")
        clear = (expected - 0.5).abs() > 1e-5
        assert torch.equal(exact[clear], (expected > 0.5).float()[clear])

    def test_torchvisions_targets_and_losses(self) -> None:
        torch.manual_seed(0)
        masks, boxes = torch.rand(5, 50, 70) > 0.5, random_boxes(30, (50, 70))
        rows, labels = torch.randint(0, 5, (30,)), torch.randint(0, 3, (5,))
        targets = crop_and_resize(masks, boxes, 28, rows=rows, geometry="torchvision")
        assert torch.equal(targets, project_masks_on_boxes(masks, boxes, rows, 28))
        logits = torch.randn(30, 3, 28, 28)
        loss = functional.binary_cross_entropy_with_logits(logits[torch.arange(30), labels[rows]], targets)
        assert float(loss) == pytest.approx(float(maskrcnn_loss(logits, [boxes], [masks], [labels], [rows])), abs=1e-6)

    @every_geometry
    def test_rows_choose_the_mask(self, geometry: MaskGeometry) -> None:
        torch.manual_seed(0)
        masks, boxes, rows = torch.rand(5, 50, 70) > 0.5, random_boxes(9, (50, 70)), torch.randint(0, 5, (9,))
        chosen = crop_and_resize(masks, boxes, 14, rows=rows, geometry=geometry)
        assert torch.equal(chosen, crop_and_resize(masks[rows], boxes, 14, geometry=geometry))

    @every_geometry
    def test_a_box_inside_its_mask_is_full_and_one_outside_the_image_is_empty(self, geometry: MaskGeometry) -> None:
        mask = torch.ones(1, *SIZE, dtype=torch.bool)
        boxes = torch.tensor([[0.0, 0, 80, 60], [3.3, 4.4, 9.1, 30.2], [100, 70, 120, 90], [-30, -30, -10, -5]])
        targets = crop_and_resize(mask, boxes, 7, rows=torch.zeros(4).long(), geometry=geometry)
        assert targets.flatten(1).amin(dim=1)[:2].tolist() == [1, 1]
        assert not targets[2:].any()

    @every_geometry
    @pytest.mark.parametrize("count", [0, 3])
    def test_no_boxes_have_no_targets(self, geometry: MaskGeometry, count: int) -> None:
        masks = torch.zeros(count, 10, 10, dtype=torch.bool)
        none = torch.zeros(0).long()
        assert crop_and_resize(masks, torch.zeros(0, 4), 14, rows=none, geometry=geometry).shape == (0, 14, 14)

    @every_geometry
    @pytest.mark.parametrize("count", [0, 3])
    def test_padded_boxes_have_finite_targets(self, geometry: MaskGeometry, count: int) -> None:
        masks = torch.ones(count, 9, 9, dtype=torch.bool)
        targets = crop_and_resize(masks, torch.zeros(4, 4), 7, rows=torch.zeros(4).long(), geometry=geometry)
        assert targets.shape == (4, 7, 7)
        assert targets.isfinite().all()


class TestPaste:
    """Probabilities in boxes, on the image."""

    @pytest.mark.parametrize("geometry", FLOAT_BOXES)
    def test_a_full_mask_covers_the_pixels_whose_centres_lie_in_its_box(self, geometry: MaskGeometry) -> None:
        boxes = torch.tensor([[10.0, 20, 38, 48], [10.4, 20.6, 38.6, 47.4]])
        pasted = decode(paste(torch.ones(2, 28, 28), boxes, SIZE, geometry=geometry), SIZE)
        assert [extent(mask) for mask in pasted] == [[10, 20, 38, 48], [10, 21, 39, 47]]
        assert pasted[0].sum() == 28 * 28

    def test_torchvisions_full_mask_covers_a_pixel_more(self) -> None:
        (rle,) = paste(torch.ones(1, 28, 28), torch.tensor([[10.0, 20, 38, 48]]), SIZE, geometry="torchvision")
        assert rle["size"] == [60, 80]
        assert extent(decode([rle], SIZE)[0]) == [10, 20, 39, 49]

    def test_exact_by_hand(self) -> None:
        # Cells of 4 pixels with centres at 2 and 6: 0.8 to 2, then down to 0.2 at 6, and on at 0.2. Pixel centres at
        # 0.5, 1.5, 2.5, .. have 0.8, 0.8, 0.725, 0.575, 0.425, 0.275, 0.2, 0.2.
        mask, box = torch.tensor([[[0.8, 0.2], [0.8, 0.2]]]), torch.tensor([[0.0, 0, 8, 8]])
        for threshold, columns in ((0.79, 2), (0.7, 3), (0.57, 4), (0.42, 5), (0.27, 6), (0.19, 8)):
            (rle,) = paste(mask, box, SIZE, threshold=threshold, geometry="exact")
            assert extent(decode([rle], SIZE)[0]) == [0, 0, columns, 8]

    def test_detectron2_by_hand(self) -> None:
        # As above, but outside the centres of the cells the mask falls to 0 at -2 and at 10: a share of 1 - 1.5 / 4 and
        # 1 - 0.5 / 4 at the first two pixels, in both directions.
        mask, box = torch.tensor([[[0.8, 0.2], [0.8, 0.2]]]), torch.tensor([[0.0, 0, 8, 8]])
        row = [0.8 * 0.625, 0.8 * 0.875, 0.725, 0.575, 0.425, 0.275, 0.2 * 0.875, 0.2 * 0.625]
        for threshold in (0.15, 0.3, 0.45, 0.6, 0.71):
            (rle,) = paste(mask, box, SIZE, threshold=threshold, geometry="detectron2")
            assert decode([rle], SIZE)[0, 3, :8].tolist() == [value >= threshold for value in row]

    @pytest.mark.parametrize("side", [7, 14, 28])
    def test_detectron2s_probabilities_are_those_of_grid_sample(self, side: int) -> None:
        torch.manual_seed(side)
        masks, boxes = torch.rand(40, side, side), random_boxes(40, SIZE)
        boxes[:5] += torch.tensor([30.3, 20.2, 30.3, 20.2])  # over the border of the image
        expected = by_grid_sample(masks, boxes, SIZE)
        for threshold in np.linspace(0.05, 0.95, 19).tolist():
            pasted = decode(paste(masks, boxes, SIZE, threshold=threshold, geometry="detectron2"), SIZE)
            differs = pasted != (expected >= threshold)
            assert ((expected[differs] - threshold).abs() < 1e-5).all()

    @pytest.mark.parametrize("side", [7, 14, 28])
    def test_torchvisions_probabilities(self, side: int) -> None:
        torch.manual_seed(side)
        masks, boxes = torch.rand(40, side, side), random_boxes(40, SIZE)
        expected = paste_masks_in_image(masks[:, None], boxes, SIZE)[:, 0]
        for threshold in np.linspace(0.05, 0.95, 19).tolist():
            pasted = decode(paste(masks, boxes, SIZE, threshold=threshold, geometry="torchvision"), SIZE)
            differs = pasted != (expected >= threshold)
            assert ((expected[differs] - threshold).abs() < 1e-5).all()

    @every_geometry
    def test_boxes_beyond_the_image_are_cut(self, geometry: MaskGeometry) -> None:
        boxes = torch.tensor([[-40.0, -30, 40, 30], [70, 50, 500, 400], [200, 200, 220, 210], [-20, -20, -5, -9]])
        pasted = decode(paste(torch.ones(4, 28, 28), boxes, SIZE, geometry=geometry), SIZE)
        assert pasted[0].sum() == pytest.approx(30 * 40, rel=0.05)
        assert extent(pasted[1]) == pytest.approx([70, 50, 80, 60], abs=1)
        assert not pasted[2:].any()

    @every_geometry
    def test_a_huge_box_and_many_masks_take_one_image_of_memory(self, geometry: MaskGeometry) -> None:
        boxes = torch.tensor([[-1e6, -1e6, 1e6, 1e6]] + [[0.0, 0, 900, 900]] * 7)
        tracemalloc.start()
        rles = paste(torch.ones(8, 28, 28), boxes, (1000, 1000), geometry=geometry)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert decode(rles[:1], (1000, 1000)).all()
        assert peak < 3e6

    @every_geometry
    def test_no_detections_paste_nothing(self, geometry: MaskGeometry) -> None:
        assert paste(torch.zeros(0, 28, 28), torch.zeros(0, 4), SIZE, geometry=geometry) == []

    @pytest.mark.parametrize(
        ("geometry", "pixels"), [("exact", [0, 1]), ("torchvision", [1, 4]), ("detectron2", [0, 1])]
    )
    def test_half_precision_and_boxes_without_area(self, geometry: MaskGeometry, pixels: list[int]) -> None:
        boxes = torch.tensor([[10.0, 10, 10, 10], [10.2, 10.2, 11.4, 11.4]])
        pasted = decode(paste(torch.ones(2, 28, 28, dtype=torch.bfloat16), boxes, SIZE, geometry=geometry), SIZE)
        assert [int(mask.sum()) for mask in pasted] == pixels


class TestRoundTrip:
    """Perfect targets, pasted."""

    @pytest.mark.parametrize("geometry", FLOAT_BOXES)
    @pytest.mark.parametrize("box", [[10.5, 20.5, 38.5, 48.5], [7.5, 3.5, 22.5, 57.5], [30.0, 12.0, 36.0, 17.0]])
    def test_a_rectangle_around_a_box_at_half_pixels_comes_back(self, geometry: MaskGeometry, box: list[float]) -> None:
        x1, y1, x2, y2 = (int(number) for number in box)
        mask, around = rectangle(x1, y1, x2, y2), torch.tensor([box]) + torch.tensor([-4.0, -3, 2, 2])
        target = crop_and_resize(mask, around, 28, geometry=geometry)
        (rle,) = paste(target, around, SIZE, geometry=geometry)
        assert (decode([rle], SIZE) != mask).sum() == 0

    def test_torchvisions_do_not(self) -> None:
        mask, box = rectangle(30, 12, 36, 17), torch.tensor([[30.0, 12, 36, 17]])
        target = crop_and_resize(mask, box, 28, geometry="torchvision")
        (rle,) = paste(target, box, SIZE, geometry="torchvision")
        assert (decode([rle], SIZE) != mask).sum() > 5

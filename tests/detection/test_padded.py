"""Mirrors detection/padded.py."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from detection.padded import Found, Regions, Targets
from detection.structures import Target

BOXES = [[1.0, 2, 3, 4], [5.0, 6, 7, 8], [9.0, 10, 11, 12]]


@dataclass(frozen=True, slots=True)
class Aged(Target):
    """Objects of a data set that says one thing more of them."""

    ages: Tensor = field(default_factory=lambda: torch.zeros(0, 2))


def rectangle(height: int, width: int, *rows: int) -> Tensor:
    """One mask (H, W) for each row, of which that row is set."""
    masks = torch.zeros(len(rows), height, width, dtype=torch.bool)
    masks[torch.arange(len(rows)), list(rows)] = True
    return masks


def test_every_image_keeps_its_objects_and_the_rest_is_zero(make_target) -> None:
    for most, rows in ((0, 8), (1, 8), (8, 8), (9, 16), (16, 16), (17, 24)):  # a multiple of eight
        targets = Targets.pad([make_target([BOXES[0]] * most), make_target()])
        assert (targets.boxes.shape, targets.valid.sum(dim=1).tolist()) == ((2, rows, 4), [most, 0])
    first = make_target(BOXES, [2, 1, 3], [False, True, False])
    targets = Targets.pad([first, make_target(), make_target(BOXES[1:2], [1])])
    assert len(targets) == 3
    assert targets.valid.tolist() == [[True] * 3 + [False] * 5, [False] * 8, [True] + [False] * 7]
    assert targets.boxes[0, :3].tolist() == BOXES
    assert targets.boxes[2, :1].tolist() == BOXES[1:2]
    assert targets.labels.tolist() == [[2, 1, 3] + [0] * 5, [0] * 8, [1] + [0] * 7]
    assert targets.wanted.tolist() == [[True, False, True] + [False] * 5, [False] * 8, [True] + [False] * 7]
    assert not targets.boxes[~targets.valid].any()
    assert not targets.ignore[~targets.valid].any()
    assert (targets.boxes.dtype, targets.labels.dtype) == (torch.float32, torch.int64)
    assert targets.ignore.dtype == targets.valid.dtype == torch.bool
    assert (targets.masks, targets.mask_rows, targets.others) == (None, None, {})
    double = Target(torch.zeros(1, 4, dtype=torch.float64), torch.tensor([0]), torch.tensor([False]))
    assert Targets.pad([double]).boxes.dtype == torch.float64


def test_masks_lie_image_after_image_and_every_object_knows_its_row(make_target) -> None:
    masks = rectangle(4, 6, 1, 3), rectangle(2, 2), rectangle(5, 3, 4)
    images = [make_target(BOXES[: len(own)], masks=own) for own in masks]
    targets: Any = Targets.pad(images)
    assert targets.masks.shape == (3, 5, 6)
    for row, image in enumerate(images):
        own, (height, width) = targets.masks[targets.mask_rows[row, : len(image)]], image.masks.shape[1:]
        assert torch.equal(own[:, :height, :width], image.masks)
        assert own.sum() == image.masks.sum()  # the padding is empty
    assert ((targets.mask_rows >= 0) & (targets.mask_rows < 3)).all()
    none: Any = Targets.pad([make_target(masks=rectangle(4, 6))] * 2)  # which has a row to point at
    assert none.masks.shape == (1, 4, 6)
    assert not none.masks.any()
    assert not none.mask_rows.any()
    mixed = Targets.pad([images[0], make_target(BOXES[:1])])
    assert (mixed.masks, mixed.mask_rows) == (None, None)


def test_all_fields_move_together_and_further_ones_come_along(make_target) -> None:
    plain = make_target(BOXES)
    aged = Aged(plain.boxes, plain.labels, plain.ignore, ages=torch.tensor([[4.0, 1], [5, 1], [6, 1]]))
    targets = Targets.pad([aged, aged[:1]])
    assert targets.others["ages"].shape == (2, 8, 2)
    assert targets.others["ages"][..., 0].tolist() == [[4, 5, 6] + [0] * 5, [4] + [0] * 7]
    assert targets.to("meta").others["ages"].is_meta
    full = make_target(BOXES[:1], masks=rectangle(4, 6, 1))
    full = replace(full, keypoints=torch.ones(1, 2, 3), label_map=torch.zeros(4, 6, dtype=torch.uint8))
    moved = Targets.pad([full]).to("meta")
    assert all(getattr(moved, own.name).is_meta for own in fields(moved) if own.name != "others")
    assert Targets.pad([make_target()]).to("cpu").masks is None


def test_regions_come_back_as_they_were(make_proposals) -> None:
    images = [make_proposals(*BOXES, scores=[0.5, 0.0, -2.0]), make_proposals(), make_proposals(BOXES[2])]
    regions = Regions.pad(images)
    assert regions.boxes.shape == (3, 3, 4)
    assert regions.valid.sum(dim=1).tolist() == [3, 0, 1]
    assert not regions.boxes[~regions.valid].any()
    assert not regions.scores[~regions.valid].any()
    for found, image in zip(regions.ragged(), images, strict=True):
        assert torch.equal(found.boxes, image.boxes)
        assert torch.equal(found.scores, image.scores)
    none = Regions.pad([make_proposals(), make_proposals()])
    assert none.boxes.shape == (2, 1, 4)
    assert not none.valid.any()
    assert [len(image) for image in none.ragged()] == [0, 0]


# Gaps stay, as between members of an ensemble.
@pytest.mark.parametrize(
    ("valid", "width"), [("11000 10000", 2), ("00000 00000", 1), ("11111 00000", 5), ("10010 00001", 5)]
)
def test_valid_rows_are_taken_wherever_they_are(valid: str, width: int) -> None:
    mask, scores = torch.tensor([[mark == "1" for mark in row] for row in valid.split()]), torch.arange(10.0).view(2, 5)
    regions = Regions(boxes=torch.arange(40.0).view(2, 5, 4), valid=mask, scores=scores)
    trimmed = regions.trimmed()
    assert trimmed.boxes.shape == (2, width, 4)
    assert trimmed.scores.shape == trimmed.valid.shape == (2, width)
    for row in range(2):
        expected = scores[row][mask[row]].tolist()
        for found in (trimmed.ragged()[row], regions.ragged()[row]):
            assert found.scores.tolist() == expected
            assert found.boxes[:, 0].tolist() == [4 * number for number in expected]


def test_each_image_gets_its_own_detections_without_the_padding() -> None:
    found: Any = Found(
        boxes=torch.arange(24.0).view(2, 3, 4),
        valid=torch.tensor([[True, True, False], [False, False, False]]),
        scores=torch.tensor([[0.9, 0.4, 0.0], [0.0, 0.0, 0.0]]),
        labels=torch.tensor([[4, 2, 0], [0, 0, 0]]),
        masks=torch.arange(6.0).view(2, 3, 1, 1).expand(-1, -1, 2, 2),
    )
    first, second = found.ragged()
    assert (first.scores.tolist(), first.labels.tolist()) == (pytest.approx([0.9, 0.4]), [4, 2])
    assert first.boxes.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert first.masks[:, 0, 0].tolist() == [0, 1]
    assert (second.boxes.shape, second.masks.shape) == ((0, 4), (0, 2, 2))
    assert [image.masks for image in replace(found, masks=None).ragged()] == [None, None]
    assert found.trimmed().masks.shape == (2, 2, 2, 2)
    assert found.trimmed().labels.tolist() == [[4, 2], [0, 0]]

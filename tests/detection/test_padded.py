"""Mirrors detection/padded.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import pytest
import torch
from torch import Tensor

from detection.padded import Found, Regions, Targets
from detection.structures import Proposals, Target

MakeTarget = Callable[..., Target]
MakeProposals = Callable[..., Proposals]
BOXES = [[1.0, 2, 3, 4], [5.0, 6, 7, 8], [9.0, 10, 11, 12]]


@dataclass(frozen=True, slots=True)
class Aged(Target):
    """Objects of a data set that says one thing more of them."""

    ages: Tensor = field(default_factory=lambda: torch.zeros(0, 2))


def rectangle(height: int, width: int, *rows: int) -> Tensor:
    """One mask (H, W) for each row, of which that row is set."""
    masks = torch.zeros(len(rows), height, width, dtype=torch.bool)
    for number, row in enumerate(rows):
        masks[number, row] = True
    return masks


class TestTargets:
    """Objects of several images."""

    def test_every_image_keeps_its_objects_and_the_rest_is_zero(self, make_target: MakeTarget) -> None:
        images = [make_target(BOXES, [2, 1, 3], [False, True, False]), make_target(), make_target(BOXES[1:2], [1])]
        targets = Targets.pad(images)
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
        assert targets.masks is None
        assert targets.mask_rows is None

    @pytest.mark.parametrize(("most", "rows"), [(0, 8), (1, 8), (8, 8), (9, 16), (16, 16), (17, 24)])
    def test_rows_are_a_multiple_of_eight(self, most: int, rows: int, make_target: MakeTarget) -> None:
        targets = Targets.pad([make_target([BOXES[0]] * most, [0] * most), make_target()])
        assert targets.boxes.shape == (2, rows, 4)
        assert targets.valid.sum(dim=1).tolist() == [most, 0]

    def test_masks_lie_image_after_image_and_every_object_knows_its_row(self, make_target: MakeTarget) -> None:
        images = [
            make_target(BOXES[:2], [0, 0], masks=rectangle(4, 6, 1, 3)),
            make_target(masks=rectangle(2, 2)),
            make_target(BOXES[:1], [0], masks=rectangle(5, 3, 4)),
        ]
        targets = Targets.pad(images)
        assert targets.masks is not None
        assert targets.mask_rows is not None
        assert targets.masks.shape == (3, 5, 6)
        for row, image in enumerate(images):
            own = targets.masks[targets.mask_rows[row, : len(image)]]
            assert image.masks is not None
            height, width = image.masks.shape[1:]
            assert torch.equal(own[:, :height, :width], image.masks)
            assert own.sum() == image.masks.sum()  # the padding is empty
        assert ((targets.mask_rows >= 0) & (targets.mask_rows < 3)).all()

    def test_masks_of_no_object_have_a_row_to_point_at(self, make_target: MakeTarget) -> None:
        targets = Targets.pad([make_target(masks=rectangle(4, 6))] * 2)
        assert targets.masks is not None
        assert targets.mask_rows is not None
        assert targets.masks.shape == (1, 4, 6)
        assert not targets.masks.any()
        assert not targets.mask_rows.any()

    def test_one_image_without_masks_leaves_the_batch_without(self, make_target: MakeTarget) -> None:
        with_masks = make_target(BOXES[:1], [0], masks=rectangle(4, 6, 1))
        targets = Targets.pad([with_masks, make_target(BOXES[:1], [0])])
        assert targets.masks is None
        assert targets.mask_rows is None

    def test_float64_stays(self) -> None:
        target = Target(torch.zeros(1, 4, dtype=torch.float64), torch.tensor([0]), torch.tensor([False]))
        assert Targets.pad([target]).boxes.dtype == torch.float64

    def test_further_fields_of_a_target_come_along(self, make_target: MakeTarget) -> None:
        plain = make_target(BOXES, [0, 1, 2])
        aged = Aged(plain.boxes, plain.labels, plain.ignore, ages=torch.tensor([[4.0, 1], [5, 1], [6, 1]]))
        targets = Targets.pad([aged, aged[:1]])
        assert targets.others["ages"].shape == (2, 8, 2)
        assert targets.others["ages"][..., 0].tolist() == [[4, 5, 6] + [0] * 5, [4] + [0] * 7]
        assert targets.to("meta").others["ages"].is_meta
        assert not Targets.pad([plain]).others

    def test_all_fields_move_together(self, make_target: MakeTarget) -> None:
        target = make_target(BOXES[:1], [0], masks=rectangle(4, 6, 1))
        full = replace(target, keypoints=torch.ones(1, 2, 3), label_map=torch.zeros(4, 6, dtype=torch.uint8))
        moved = Targets.pad([full]).to("meta")
        parts = [getattr(moved, field.name) for field in fields(moved) if field.name != "others"]
        assert all(isinstance(part, Tensor) and part.is_meta for part in parts)
        assert Targets.pad([make_target()]).to("cpu").masks is None


class TestRegions:
    """Proposals of several images."""

    def test_come_back_as_they_were(self, make_proposals: MakeProposals) -> None:
        images = [make_proposals(*BOXES, scores=[0.5, 0.0, -2.0]), make_proposals(), make_proposals(BOXES[2])]
        regions = Regions.pad(images)
        assert regions.boxes.shape == (3, 3, 4)
        assert regions.valid.sum(dim=1).tolist() == [3, 0, 1]
        assert not regions.boxes[~regions.valid].any()
        assert not regions.scores[~regions.valid].any()
        for found, image in zip(regions.ragged(), images, strict=True):
            assert torch.equal(found.boxes, image.boxes)
            assert torch.equal(found.scores, image.scores)

    def test_none_at_all_are_one_row_of_padding(self, make_proposals: MakeProposals) -> None:
        regions = Regions.pad([make_proposals(), make_proposals()])
        assert regions.boxes.shape == (2, 1, 4)
        assert not regions.valid.any()
        assert [len(image) for image in regions.ragged()] == [0, 0]

    def test_ragged_takes_the_valid_rows_wherever_they_are(self) -> None:
        # Of an ensemble, whose members' proposals stand beside each other.
        valid = torch.tensor([[True, False, True], [False, False, True]])
        regions = Regions(boxes=torch.arange(24.0).view(2, 3, 4), valid=valid, scores=torch.arange(6.0).view(2, 3))
        assert [image.scores.tolist() for image in regions.ragged()] == [[0, 2], [5]]
        assert [image.boxes[:, 0].tolist() for image in regions.ragged()] == [[0, 8], [20]]

    @pytest.mark.parametrize(
        ("valid", "width"),
        [
            ([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], 2),
            ([[0, 0, 0, 0, 0], [0, 0, 0, 0, 0]], 1),
            ([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], 5),
            ([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0]], 4),  # a gap stays
        ],
    )
    def test_trimmed_keeps_every_valid_row(self, valid: list[list[int]], width: int) -> None:
        mask = torch.tensor(valid, dtype=torch.bool)
        regions = Regions(boxes=torch.arange(40.0).view(2, 5, 4), valid=mask, scores=torch.arange(10.0).view(2, 5))
        trimmed = regions.trimmed()
        assert trimmed.boxes.shape == (2, width, 4)
        assert trimmed.scores.shape == trimmed.valid.shape == (2, width)
        for found, image in zip(trimmed.ragged(), regions.ragged(), strict=True):
            assert torch.equal(found.boxes, image.boxes)
            assert torch.equal(found.scores, image.scores)


class TestFound:
    """Detections of several images."""

    def found(self, *, masks: bool) -> Found:
        return Found(
            boxes=torch.arange(24.0).view(2, 3, 4),
            valid=torch.tensor([[True, True, False], [False, False, False]]),
            scores=torch.tensor([[0.9, 0.4, 0.0], [0.0, 0.0, 0.0]]),
            labels=torch.tensor([[4, 2, 0], [0, 0, 0]]),
            masks=torch.arange(6.0).view(2, 3, 1, 1).expand(-1, -1, 2, 2) if masks else None,
        )

    def test_each_image_gets_its_own_without_the_padding(self) -> None:
        first, second = self.found(masks=True).ragged()
        assert (first.scores.tolist(), first.labels.tolist()) == (pytest.approx([0.9, 0.4]), [4, 2])
        assert first.boxes.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert first.masks is not None
        assert first.masks[:, 0, 0].tolist() == [0, 1]
        assert second.boxes.shape == (0, 4)
        assert second.masks is not None
        assert second.masks.shape == (0, 2, 2)

    def test_without_masks(self) -> None:
        assert [image.masks for image in self.found(masks=False).ragged()] == [None, None]

    def test_trimmed_takes_the_masks_along(self) -> None:
        trimmed = self.found(masks=True).trimmed()
        assert trimmed.masks is not None
        assert trimmed.masks.shape == (2, 2, 2, 2)
        assert trimmed.labels.tolist() == [[4, 2], [0, 0]]

"""Mirrors detection/structures.py."""

from typing import Any

import pytest
import torch
from torch import Tensor

from detection.structures import Detections, ImageBatch, Proposals, Target


def target(count: int, *, masks: bool = False) -> Target:
    return Target(
        boxes=torch.arange(4.0 * count).reshape(count, 4),
        labels=torch.arange(count),
        ignore=torch.arange(count) % 2 == 1,
        masks=torch.arange(count)[:, None, None].expand(count, 2, 3) > 0 if masks else None,
    )


def test_boxes_of_another_shape_and_rows_of_another_length_are_refused() -> None:
    for shape in ((4,), (2, 5), (1, 2, 4), (0,)):
        with pytest.raises(ValueError, match=r"boxes must have shape \(N, 4\), got"):
            Proposals(boxes=torch.zeros(shape), scores=torch.zeros(shape[0]))
    two = {"labels": torch.zeros(2).long(), "ignore": torch.zeros(2).bool(), "masks": torch.zeros(2, 3, 3).bool()}
    for name in two:
        with pytest.raises(ValueError, match=f"{name} has 3 rows, boxes have 2"):
            Target(boxes=torch.zeros(2, 4), **two | {name: torch.zeros(3, 3, 3)})


def test_rows_are_picked_in_every_field() -> None:
    picked = target(3, masks=True)[torch.tensor([True, False, True])]
    assert picked.boxes[:, 0].tolist() == [0, 8]
    assert (picked.labels.tolist(), picked.ignore.tolist()) == ([0, 2], [False, False])
    assert picked.masks is not None
    assert picked.masks[:, 0, 0].tolist() == [False, True]
    picked = target(3)[torch.tensor([2, 0])]
    assert (picked.labels.tolist(), picked.masks) == ([2, 0], None)
    masks = torch.arange(5.0)[:, None, None].expand(5, 28, 28)
    found: Any = Detections(boxes=torch.zeros(5, 4), scores=torch.arange(5.0), labels=torch.arange(5), masks=masks)
    assert found[1:3].scores.tolist() == found[1:3].masks[:, 0, 0].tolist() == [1, 2]
    assert len(found[:0]) == 0
    empty = target(0, masks=True)
    assert [len(empty), len(empty[torch.zeros(0).bool()]), len(empty[torch.zeros(0).long()])] == [0, 0, 0]


def test_rows_and_batches_move_together() -> None:
    moved = target(2, masks=True).to("meta")
    batch = ImageBatch.from_images([torch.zeros(3, 2, 5, dtype=torch.uint8)], [7]).to("meta")
    parts = (moved.boxes, moved.labels, moved.ignore, moved.masks, batch.pixels, batch.sizes, batch.seeds)
    assert all(isinstance(part, Tensor) and part.is_meta for part in parts)
    assert target(2).to("cpu").masks is None
    stayed = ImageBatch.from_images([torch.zeros(3, 2, 5, dtype=torch.uint8)]).to("cpu")
    assert (stayed.size_list(), stayed.seeds) == ([(2, 5)], None)


def test_images_are_padded_at_the_right_and_at_the_bottom() -> None:
    low, high = torch.full((3, 2, 5), 7, dtype=torch.uint8), torch.full((3, 4, 3), 9, dtype=torch.uint8)
    batch = ImageBatch.from_images([low, high])
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    assert batch.pixels.shape == (2, 3, 4, 5)
    assert batch.sizes.tolist() == [[2, 5], [4, 3]]
    assert batch.size_list() == [(2, 5), (4, 3)]
    assert batch.pixels[0, 0].tolist() == [[7] * 5, [7] * 5, [0] * 5, [0] * 5]
    assert batch.pixels[1, 2].tolist() == [[9, 9, 9, 0, 0]] * 4
    image = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    alone = ImageBatch.from_images([image])
    assert len(alone) == 1
    assert torch.equal(alone.pixels[0], image)


def test_what_is_no_batch_is_refused_not_converted() -> None:
    wrong = [torch.zeros(1, 3, 4, 4, dtype=dtype) for dtype in (torch.float32, torch.int64, torch.bool)]
    wrong += [torch.zeros(shape, dtype=torch.uint8) for shape in ((3, 4, 4), (1, 1, 4, 4), (1, 4, 4, 3))]
    for pixels in wrong:
        with pytest.raises(ValueError, match=r"must be \(N, 3, H, W\) uint8"):
            ImageBatch(pixels, torch.tensor([[4, 4]] * len(pixels)))
        with pytest.raises(ValueError, match="uint8"):
            ImageBatch.from_images([pixels[0]])
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="at least one image"):
        ImageBatch.from_images([])
    with pytest.raises(ValueError, match=r"sizes must be \(2, 2\), got \(1, 2\)"):
        ImageBatch(images, torch.tensor([[4, 4]]))
    with pytest.raises(ValueError, match=r"seeds must be \(2,\), got \(1,\)"):
        ImageBatch.from_images([*images], [7])


def test_seeds_belong_to_the_images_or_come_from_torch() -> None:
    images = [torch.zeros(3, 2, 5, dtype=torch.uint8)] * 2
    assert ImageBatch.from_images(images, [7, 2**31 - 1]).draw_seeds().tolist() == [7, 2**31 - 1]
    batch = ImageBatch.from_images(images)
    torch.manual_seed(3)
    first, second = batch.draw_seeds(), batch.draw_seeds()
    torch.manual_seed(3)
    assert torch.equal(batch.draw_seeds(), first)
    assert len(set(first.tolist() + second.tolist())) == 4
    assert batch.seeds is None
    assert ((first >= 0) & (first < 2**31)).all()

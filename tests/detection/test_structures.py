"""Mirrors detection/structures.py."""

from __future__ import annotations

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


# rows


@pytest.mark.parametrize("shape", [(4,), (2, 5), (1, 2, 4), (0,)])
def test_boxes_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"boxes must have shape \(N, 4\), got"):
        Proposals(boxes=torch.zeros(shape), scores=torch.zeros(shape[0]))


@pytest.mark.parametrize("name", ["labels", "ignore", "masks"])
def test_rows_of_another_length_are_named(name: str) -> None:
    values = {
        "boxes": torch.zeros(2, 4),
        "labels": torch.zeros(2, dtype=torch.int64),
        "ignore": torch.zeros(2, dtype=torch.bool),
        "masks": torch.zeros(2, 3, 3, dtype=torch.bool),
    }
    with pytest.raises(ValueError, match=f"{name} has 3 rows, boxes have 2"):
        Target(**values | {name: torch.zeros(3, 3, 3)})


def test_a_boolean_mask_picks_rows_of_every_field() -> None:
    picked = target(3, masks=True)[torch.tensor([True, False, True])]
    assert picked.boxes[:, 0].tolist() == [0, 8]
    assert picked.labels.tolist() == [0, 2]
    assert picked.ignore.tolist() == [False, False]
    assert picked.masks is not None
    assert picked.masks[:, 0, 0].tolist() == [False, True]


def test_an_index_tensor_picks_rows_in_its_order() -> None:
    picked = target(3)[torch.tensor([2, 0])]
    assert (picked.labels.tolist(), picked.masks) == ([2, 0], None)


def test_a_slice_picks_rows() -> None:
    detections = Detections(boxes=torch.zeros(5, 4), scores=torch.arange(5.0), labels=torch.arange(5))
    assert detections[1:3].scores.tolist() == [1, 2]
    assert len(detections[:0]) == 0


def test_no_objects() -> None:
    empty = target(0, masks=True)
    assert len(empty) == 0
    assert len(empty[torch.zeros(0, dtype=torch.bool)]) == 0
    assert len(empty[torch.zeros(0, dtype=torch.int64)]) == 0


def test_rows_move_together() -> None:
    moved = target(2, masks=True).to("meta")
    fields = (moved.boxes, moved.labels, moved.ignore, moved.masks)
    assert all(isinstance(rows, Tensor) and rows.is_meta for rows in fields)
    assert target(2).to("cpu").masks is None


# batches


def test_images_are_padded_at_the_right_and_at_the_bottom() -> None:
    low = torch.full((3, 2, 5), 7, dtype=torch.uint8)
    high = torch.full((3, 4, 3), 9, dtype=torch.uint8)
    batch = ImageBatch.from_images([low, high])
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    assert batch.pixels.shape == (2, 3, 4, 5)
    assert batch.sizes.tolist() == [[2, 5], [4, 3]]
    assert batch.size_list() == [(2, 5), (4, 3)]
    assert batch.pixels[0, 0].tolist() == [[7] * 5, [7] * 5, [0] * 5, [0] * 5]
    assert batch.pixels[1, 2].tolist() == [[9, 9, 9, 0, 0]] * 4


def test_one_image_is_copied_without_padding() -> None:
    image = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    batch = ImageBatch.from_images([image])
    assert len(batch) == 1
    assert torch.equal(batch.pixels[0], image)


def test_a_batch_needs_an_image() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        ImageBatch.from_images([])


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_pixels_of_another_type_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"must be \(N, 3, H, W\) uint8"):
        ImageBatch(torch.zeros(1, 3, 4, 4, dtype=dtype), torch.tensor([[4, 4]]))


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 1, 4, 4), (1, 4, 4, 3)])
def test_pixels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(N, 3, H, W\) uint8"):
        ImageBatch(torch.zeros(shape, dtype=torch.uint8), torch.tensor([[4, 4]] * shape[0]))


@pytest.mark.parametrize(
    "image",
    [torch.full((3, 4, 4), 0.5), torch.ones(1, 4, 4, dtype=torch.uint8), torch.ones(4, 4, dtype=torch.uint8)],
    ids=["float", "one channel", "no channels"],
)
def test_images_that_are_not_rgb_uint8_are_refused_not_converted(image: Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        ImageBatch.from_images([image])


def test_a_size_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sizes must be \(2, 2\), got \(1, 2\)"):
        ImageBatch(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([[4, 4]]))


def test_seeds_of_draws_belong_to_the_images() -> None:
    images = [torch.zeros(3, 2, 5, dtype=torch.uint8)] * 2
    both, alone = ImageBatch.from_images(images, [7, 2**31 - 1]), ImageBatch.from_images(images[:1], [7])
    assert both.draw_seeds().tolist() == [7, 2**31 - 1]
    assert alone.draw_seeds().tolist() == [7]
    with pytest.raises(ValueError, match=r"seeds must be \(2,\), got \(1,\)"):
        ImageBatch.from_images(images, [7])


def test_a_batch_without_seeds_takes_them_from_torch() -> None:
    batch = ImageBatch.from_images([torch.zeros(3, 2, 5, dtype=torch.uint8)] * 2)
    torch.manual_seed(3)
    first, second = batch.draw_seeds(), batch.draw_seeds()
    torch.manual_seed(3)
    assert torch.equal(batch.draw_seeds(), first)
    assert len(set(first.tolist() + second.tolist())) == 4
    assert batch.seeds is None
    assert ((first >= 0) & (first < 2**31)).all()


def test_a_batch_moves_and_keeps_its_sizes() -> None:
    images = [torch.zeros(3, 2, 5, dtype=torch.uint8)]
    moved = ImageBatch.from_images(images, [7]).to("meta")
    assert all(isinstance(part, Tensor) and part.is_meta for part in (moved.pixels, moved.sizes, moved.seeds))
    stayed = ImageBatch.from_images(images).to("cpu")
    assert (stayed.size_list(), stayed.seeds) == ([(2, 5)], None)


def test_masks_of_detections_are_rows_and_may_be_missing() -> None:
    boxes, scores, labels = torch.zeros(3, 4), torch.arange(3.0), torch.arange(3)
    assert Detections(boxes=boxes, scores=scores, labels=labels)[:2].masks is None
    masks = torch.arange(3.0)[:, None, None].expand(3, 28, 28)
    picked = Detections(boxes=boxes, scores=scores, labels=labels, masks=masks)[torch.tensor([2, 0])]
    assert picked.masks is not None
    assert picked.masks[:, 0, 0].tolist() == [2, 0]
    with pytest.raises(ValueError, match="masks has 2 rows, boxes have 3"):
        Detections(boxes=boxes, scores=scores, labels=labels, masks=masks[:2])

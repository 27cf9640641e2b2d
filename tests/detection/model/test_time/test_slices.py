"""Mirrors detection/model/test_time/slices.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from detection.data.transforms import Resize
from detection.model.test_time.slices import Cutting, Merge, Sliced, merge_slices
from detection.structures import Detections, ImageBatch, Target


def found(*rows: tuple[list[float], float, int]) -> Detections:
    return Detections(
        boxes=torch.tensor([box for box, _, _ in rows]).reshape(-1, 4),
        scores=torch.tensor([score for _, score, _ in rows]),
        labels=torch.tensor([label for _, _, label in rows], dtype=torch.int64),
    )


def bright_squares(images: ImageBatch) -> list[Detections]:
    """Finds bright regions of at least 8 pixels a side, as a network does that has learnt objects of that size."""
    assert len(set(images.size_list())) == 1  # padding changes what a network finds
    results = []
    for pixels, (height, width) in zip(images.pixels, images.size_list(), strict=True):
        bright = pixels[0, :height, :width] > 127
        boxes = [box for box in components(bright) if min(box[2] - box[0], box[3] - box[1]) >= 8]
        results.append(found(*((box, 0.5 + (box[2] - box[0]) * 1e-4, 0) for box in boxes)))
    return results


def components(bright: Tensor) -> list[list[float]]:
    """The boxes of connected regions: labels spread from neighbour to neighbour."""
    labels = torch.arange(1, bright.numel() + 1, dtype=torch.float32).view(1, 1, *bright.shape) * bright
    while True:
        spread = functional.max_pool2d(labels, 3, stride=1, padding=1) * bright
        if torch.equal(spread, labels):
            break
        labels = spread
    boxes = []
    for label in labels.unique():
        rows, columns = (labels[0, 0] == label).nonzero(as_tuple=True)
        if label:
            boxes.append([float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)])
    return boxes


def large_image(*squares: tuple[int, int, int]) -> ImageBatch:
    pixels = torch.zeros(3, 256, 384, dtype=torch.uint8)
    for x, y, side in squares:
        pixels[:, y : y + side, x : x + side] = 255
    return ImageBatch.from_images([pixels])


def sliced(*, merge: Merge = "ios", whole: bool = True) -> Sliced:
    cutting = Cutting(128, overlap=0.25, whole=whole, merge=merge)
    return Sliced(bright_squares, cutting=cutting, fit=Resize(128, 192).size)


SMALL = ((20, 20, 10), (125, 60, 10), (300, 240, 10), (190, 121, 12))


def test_small_objects_are_found_that_the_resized_image_loses() -> None:
    image = large_image(*SMALL)
    (whole,) = bright_squares(shrunk := ImageBatch.from_images([image.pixels[0, :, ::2, ::2]]))
    assert shrunk.size_list() == [(128, 192)]
    assert len(whole) == 0
    (own,) = sliced()(image)
    assert sorted(own.boxes.tolist()) == sorted([x, y, x + side, y + side] for x, y, side in SMALL)


def test_keypoints_move_with_their_boxes() -> None:
    def corners(images: ImageBatch) -> list[Detections]:
        return [replace(own, keypoints=with_score(own.boxes.view(-1, 2, 2))) for own in bright_squares(images)]

    def with_score(points: Tensor) -> Tensor:
        return torch.cat([points, torch.full_like(points[..., :1], 0.5)], dim=2)

    cut = Sliced(corners, cutting=Cutting(128, overlap=0.25), fit=Resize(128, 192).size)
    (own,) = cut(large_image(*SMALL))
    assert len(own) == len(SMALL)
    assert own.keypoints is not None
    assert own.keypoints.equal(with_score(own.boxes.view(-1, 2, 2)))


def test_an_object_larger_than_a_window_is_one_detection() -> None:
    (own,) = sliced()(large_image((60, 20, 200)))
    assert own.boxes.tolist() == [[60, 20, 260, 220]]
    (pieces,) = sliced(whole=False)(large_image((60, 20, 200)))
    assert len(pieces) > 1


def test_an_image_no_larger_than_a_window_is_looked_at_once() -> None:
    calls = list[int]()

    def count(images: ImageBatch) -> list[Detections]:
        calls.append(len(images))
        return bright_squares(images)

    small = ImageBatch.from_images([torch.zeros(3, 100, 90, dtype=torch.uint8)])
    (own,) = Sliced(count, cutting=Cutting(128), fit=lambda size: size)(small)
    assert (calls, len(own)) == ([1], 0)


def test_each_image_of_a_batch_is_cut_within_its_own_size() -> None:
    batch = ImageBatch.from_images([large_image(*SMALL).pixels[0], torch.full((3, 40, 50), 255, dtype=torch.uint8)])
    first, second = sliced()(batch)
    assert len(first) == len(SMALL)
    torch.testing.assert_close(second.boxes, torch.tensor([[0.0, 0.0, 50.0, 40.0]]))


def test_views_are_resized_as_whole_images_are(make_target: Callable[..., Target]) -> None:
    seen = list[Tensor]()

    def see(images: ImageBatch) -> list[Detections]:
        seen.extend(images.pixels)
        return [found() for _ in range(len(images))]

    image = torch.randint(0, 255, (3, 60, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Sliced(see, cutting=Cutting(128), fit=Resize(100, 200).size)(ImageBatch.from_images([image]))
    expected = Resize(100, 200)(image.permute(1, 2, 0).numpy(), make_target())[0]
    assert (seen[0].permute(1, 2, 0).int() - torch.from_numpy(expected).int()).abs().max() <= 1


@pytest.mark.parametrize(("rule", "kept"), [("ios", [1]), ("nms", [0, 1])])
def test_a_cut_piece_goes_though_its_score_is_better(rule: Merge, kept: list[int]) -> None:
    own = found(([0, 0, 20, 100], 0.9, 0), ([0, 0, 100, 100], 0.6, 0))
    merged = merge_slices(own, torch.tensor([True, False]), rule=rule, nms_iou=0.3)
    assert merged.boxes.tolist() == own.boxes[kept].tolist()


def test_a_whole_object_within_a_larger_one_stays() -> None:
    own = found(([0, 0, 100, 100], 0.9, 0), ([10, 10, 30, 30], 0.5, 0))
    assert len(merge_slices(own, torch.tensor([False, False]), rule="ios", nms_iou=0.3)) == 2


def test_another_class_suppresses_nothing() -> None:
    own = found(([0, 0, 50, 50], 0.9, 0), ([0, 0, 50, 50], 0.8, 1), ([0, 0, 50, 49], 0.7, 1))
    merged = merge_slices(own, torch.zeros(3, dtype=torch.bool), rule="ios", nms_iou=0.3)
    assert (merged.labels.tolist(), merged.scores.tolist()) == ([0, 1], pytest.approx([0.9, 0.8]))


def test_masks_go_with_their_boxes() -> None:
    masks = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    own = found(([0, 0, 9, 9], 0.4, 0), ([50, 50, 59, 59], 0.9, 0), ([0, 0, 9, 8], 0.3, 0))
    own = Detections(boxes=own.boxes, scores=own.scores, labels=own.labels, masks=masks)
    merged = merge_slices(own, torch.zeros(3, dtype=torch.bool), rule="nms", nms_iou=0.3)
    assert merged.masks is not None
    torch.testing.assert_close(merged.masks, masks[[1, 0]])

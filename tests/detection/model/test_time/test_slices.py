"""Mirrors detection/model/test_time/slices.py."""

from dataclasses import replace
from unittest.mock import Mock

import cv2
import torch
from torch import Tensor

from detection.data.transforms import Resize
from detection.model.test_time.slices import Cutting, Merge, Sliced, merge_slices
from detection.structures import Detections, ImageBatch


def found(*rows: tuple[list[float], float, int]) -> Detections:
    boxes, scores, labels = (torch.tensor([row[place] for row in rows]) for place in range(3))
    return Detections(boxes.reshape(-1, 4), scores, labels.long())


def bright_squares(images: ImageBatch) -> list[Detections]:
    """Finds bright regions of at least 8 pixels a side, as a network does that has learnt objects of that size."""
    assert len(set(images.size_list())) == 1  # padding changes what a network finds
    results = []
    for pixels, (height, width) in zip(images.pixels, images.size_list(), strict=True):
        bright = (pixels[0, :height, :width] > 127).byte().numpy()
        _, _, regions, _ = cv2.connectedComponentsWithStats(bright)
        boxes = [[float(x), float(y), float(x + w), float(y + h)] for x, y, w, h, _ in regions[1:] if min(w, h) >= 8]
        results.append(found(*((box, 0.5 + (box[2] - box[0]) * 1e-4, 0) for box in boxes)))
    return results


def large_image(*squares: tuple[int, int, int]) -> ImageBatch:
    pixels = torch.zeros(3, 256, 384, dtype=torch.uint8)
    for x, y, side in squares:
        pixels[:, y : y + side, x : x + side] = 255
    return ImageBatch.from_images([pixels])


def sliced(*, merge: Merge = "ios", whole: bool = True) -> Sliced:
    cutting = Cutting(128, overlap=0.25, whole=whole, merge=merge)
    return Sliced(bright_squares, cutting=cutting, fit=Resize(128, 192).size)


SMALL = ((20, 20, 10), (125, 60, 10), (300, 240, 10), (190, 121, 12))


def test_small_objects_are_found_in_each_image_of_a_batch_that_the_resized_image_loses() -> None:
    image = large_image(*SMALL)
    (whole,) = bright_squares(shrunk := ImageBatch.from_images([image.pixels[0, :, ::2, ::2]]))
    assert shrunk.size_list() == [(128, 192)]
    assert len(whole) == 0
    (own,) = sliced()(image)
    assert sorted(own.boxes.tolist()) == sorted([x, y, x + side, y + side] for x, y, side in SMALL)
    # Each image of a batch is cut within its own size.
    batch = ImageBatch.from_images([large_image(*SMALL).pixels[0], torch.full((3, 40, 50), 255, dtype=torch.uint8)])
    first, second = sliced()(batch)
    assert len(first) == len(SMALL)
    torch.testing.assert_close(second.boxes, torch.tensor([[0.0, 0.0, 50.0, 40.0]]))


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


def test_an_object_larger_than_a_window_is_one_detection_and_a_small_image_one_view() -> None:
    (own,) = sliced()(large_image((60, 20, 140)))
    assert own.boxes.tolist() == [[60, 20, 200, 160]]
    (pieces,) = sliced(whole=False)(large_image((60, 20, 140)))
    assert len(pieces) > 1
    look, small = Mock(wraps=bright_squares), ImageBatch.from_images([torch.zeros(3, 100, 90, dtype=torch.uint8)])
    (own,) = Sliced(look, cutting=Cutting(128), fit=lambda size: size)(small)
    assert ([len(call.args[0]) for call in look.call_args_list], len(own)) == ([1], 0)


def test_views_are_resized_as_whole_images_are(make_target) -> None:
    see = Mock(side_effect=lambda images: [found() for _ in range(len(images))])
    image = torch.randint(0, 255, (3, 60, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Sliced(see, cutting=Cutting(128), fit=Resize(100, 200).size)(ImageBatch.from_images([image]))
    expected = torch.from_numpy(Resize(100, 200)(image.permute(1, 2, 0).numpy(), make_target())[0])
    seen = see.call_args_list[0].args[0].pixels[0].permute(1, 2, 0)
    assert (seen.int() - expected.int()).abs().max() <= 1


def merged(*rows: tuple[list[float], float, int], cut: tuple[bool, ...] = (), rule: Merge = "ios") -> list[float]:
    """The scores that are left of these detections, of which some are cut by their window."""
    own = found(*rows)
    own = replace(own, masks=own.scores[:, None, None].expand(-1, 4, 4))  # masks go with their boxes
    left = merge_slices(own, torch.tensor(cut or [False] * len(own)), rule=rule, nms_iou=0.3)
    assert left.masks is not None
    assert left.masks[:, 0, 0].tolist() == left.scores.tolist()
    expected = [box for score in left.scores for box, own_score, _ in rows if abs(own_score - score) < 1e-6]
    assert left.boxes.tolist() == expected
    return [round(score, 4) for score in left.scores.tolist()]


def test_merging_by_hand() -> None:
    # A cut piece goes though its score is better, unless the rule is NMS alone.
    piece, whole = ([0.0, 0, 20, 100], 0.9, 0), ([0.0, 0, 100, 100], 0.6, 0)
    assert merged(piece, whole, cut=(True, False)) == [0.6]
    assert merged(piece, whole, cut=(True, False), rule="nms") == [0.9, 0.6]
    # A whole object within a larger one stays; another class suppresses nothing.
    assert merged(([0.0, 0, 100, 100], 0.9, 0), ([10.0, 10, 30, 30], 0.5, 0)) == [0.9, 0.5]
    assert merged(([0.0, 0, 50, 50], 0.9, 0), ([0.0, 0, 50, 50], 0.8, 1), ([0.0, 0, 50, 49], 0.7, 1)) == [0.9, 0.8]
    rows = ([0.0, 0, 9, 9], 0.4, 0), ([50.0, 50, 59, 59], 0.9, 0), ([0.0, 0, 9, 8], 0.3, 0)
    assert merged(*rows, rule="nms") == [0.9, 0.4]

"""Mirrors detection/data/transforms.py: boxes and masks must follow the pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from detection.data.transforms import PADDING, Augment, Jitter, RandomResize, Resize
from detection.structures import Target

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]

SIZE = (90, 120)
MIDDLE: Box = (45, 35, 75, 60)
GREENS = (255, 190, 120)  # of the rectangles; the background has none

MOVES: dict[str, Mapping[str, Any]] = {
    "flip": {"HorizontalFlip": {"p": 1}},
    "upside down": {"VerticalFlip": {"p": 1}},
    "transpose": {"Transpose": {"p": 1}},
    "quarter turns": {"RandomRotate90": {"p": 1}},
    "rotate": {"Rotate": {"limit": [-30, 30], "p": 1}},
    "rotate all in": {"SafeRotate": {"limit": [-30, 30], "p": 1}},
    "affine": {"Affine": {"scale": [0.7, 1.3], "rotate": [-15, 15], "shear": [-8, 8], "p": 1}},
    "shift": {"Affine": {"translate_percent": [-0.1, 0.1], "p": 1}},
    "scale": {"RandomScale": {"scale_limit": 0.3, "p": 1}},
    "perspective": {"Perspective": {"scale": [0.05, 0.1], "p": 1}},
    "crop": {"RandomCrop": {"height": 50, "width": 60, "p": 1}},
    "centre": {"CenterCrop": {"height": 50, "width": 40, "p": 1}},
    "crop and resize": {"RandomResizedCrop": {"size": [80, 100], "scale": [0.5, 1.0], "p": 1}},
    "safe crop": {"RandomSizedBBoxSafeCrop": {"height": 80, "width": 70, "p": 1}},
    "pad": {"PadIfNeeded": {"min_height": 150, "min_width": 140, "p": 1}},
}
COLORS: list[Mapping[str, Any]] = [
    {"ColorJitter": {"p": 1}},
    {"RandomBrightnessContrast": {"p": 1}},
    {"GaussianBlur": {"p": 1}},
    {"ToGray": {"p": 1}},
]


def scene(*boxes: Box, size: tuple[int, int] = SIZE, masks: bool = True) -> tuple[Pixels, Target]:
    """Black with one filled rectangle per box, each of its own green, and the target that fits; label n is object n."""
    image = np.zeros((*size, 3), np.uint8)
    stack = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, green, (x1, y1, x2, y2) in zip(stack, GREENS, boxes, strict=False):
        image[y1:y2, x1:x2, 1] = green
        mask[y1:y2, x1:x2] = True
    target = Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.arange(len(boxes)),
        ignore=torch.arange(len(boxes)) == 1,
        masks=stack if masks else None,
    )
    return image, target


def box_of(pixels: NDArray[Any]) -> list[int] | None:
    rows, columns = np.nonzero(pixels)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else None


def run(steps: Sequence[Mapping[str, Any]], image: Pixels, target: Target, *seed: int) -> tuple[Pixels, Target]:
    return Augment(steps)(image, target, seed=seed)


def assert_same(first: tuple[Pixels, Target], second: tuple[Pixels, Target]) -> None:
    np.testing.assert_array_equal(first[0], second[0])
    torch.testing.assert_close(astuple(first[1]), astuple(second[1]), rtol=0, atol=0)


# resizing


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((375, 500), (600, 800)),  # 600 / 375 = 1.6
        ((500, 375), (800, 600)),
        ((333, 500), (600, 901)),  # 500 * 600 / 333 = 900.9
        ((300, 600), (500, 1000)),  # twice would give 1200
        ((600, 1000), (600, 1000)),
        ((1200, 1600), (600, 800)),
        ((480, 640), (600, 800)),
        ((1, 5000), (1, 1000)),  # never without pixels
    ],
)
def test_the_600_and_1000_rule_by_hand(size: tuple[int, int], resized: tuple[int, int]) -> None:
    assert Resize(600, 1000).size(size) == resized


def test_resizing_scales_pixels_boxes_and_masks() -> None:
    image, target = scene((20, 10, 40, 30), size=(60, 90))
    resized, moved = Resize(120, 400)(image, target)
    assert (resized.shape, resized.dtype) == ((120, 180, 3), np.uint8)
    assert moved.boxes.tolist() == [[40, 20, 80, 60]]
    assert box_of(resized[..., 1] > 127) == [40, 20, 80, 60]
    assert moved.masks is not None
    assert box_of(moved.masks[0].numpy()) == [40, 20, 80, 60]
    assert (moved.labels.tolist(), moved.ignore.tolist()) == ([0], [False])


def test_sides_that_round_differently_keep_the_box_on_its_pixels() -> None:
    resized, moved = Resize(100, 400)(*scene((20, 10, 88, 50), size=(61, 89)))
    assert resized.shape[:2] == (100, 146)
    np.testing.assert_allclose(box_of(resized[..., 1] > 127) or [], moved.boxes[0], atol=1)


@pytest.mark.parametrize("masks", [False, True])
def test_resizing_without_objects(masks: bool) -> None:
    resized, moved = Resize(30, 50)(*scene(size=(60, 80), masks=masks))
    assert resized.shape == (30, 40, 3)
    assert moved.boxes.shape == (0, 4)
    assert masks == (moved.masks is not None and moved.masks.shape == (0, 30, 40))


def test_resizing_leaves_its_arguments() -> None:
    image, target = scene(MIDDLE)
    image.setflags(write=False)
    Resize(45, 300)(image, target)
    assert target.boxes.tolist() == [list(map(float, MIDDLE))]


# random scales


def test_one_of_the_sides_is_drawn() -> None:
    image, target = scene(MIDDLE)
    resize, drawn = RandomResize((45, 90, 180), 1000), list[int]()
    for seed in range(120):
        resized = resize(image, target, seed=(0, seed))
        drawn.append(resized[0].shape[0])
        assert_same(resized, Resize(drawn[-1], 1000)(image, target))
    assert all(25 <= drawn.count(side) <= 55 for side in (45, 90, 180))  # 40 each expected, deviation 5.2
    assert_same(resize(image, target, seed=(0, 7)), resize(image, target, seed=(0, 7)))


def test_jitter_of_factor_one_fits_the_image_into_the_canvas_and_pads() -> None:
    image, target = scene((20, 10, 40, 30), size=(60, 90))
    canvas, moved = Jitter(180, 1.0, 1.0)(image, target, seed=(0,))
    resized, expected = Resize(120, 1000)(image, target)
    assert canvas.shape == (180, 180, 3)
    np.testing.assert_array_equal(canvas[:120], resized)
    assert (canvas[120:] == PADDING).all()
    assert moved.boxes.tolist() == [[40, 20, 80, 60]]
    assert moved.masks is not None
    assert expected.masks is not None
    assert torch.equal(moved.masks[:, :120], expected.masks)
    assert not moved.masks[:, 120:].any()


def test_jitter_crops_what_exceeds_the_canvas() -> None:
    image, target = scene((0, 0, 45, 60), (45, 0, 90, 60), size=(60, 90))
    corners = set()
    for seed in range(40):
        canvas, moved = Jitter(90, 2.0, 2.0)(image, target, seed=(seed,))  # 120 x 180 pixels before the crop
        assert not (canvas[:, :, 1] == 0).any()  # no background, and no padding either
        left = 90 - int(moved.boxes[0, 2]) if 0 in moved.labels else 90
        corners.add(left)
        for label, box in zip(moved.labels.tolist(), moved.boxes.tolist(), strict=True):
            assert box == ([0, 0, 90 - left, 90] if label == 0 else [90 - left, 0, 90, 90])
    assert len(corners) > 20
    assert min(corners) >= 0
    assert max(corners) <= 90


@pytest.mark.parametrize("seed", range(12))
def test_jitter_keeps_boxes_and_masks_on_their_pixels(seed: int) -> None:
    image, target = scene(MIDDLE)
    image.setflags(write=False)
    canvas, moved = Jitter(100, 0.3, 3.0)(image, target, seed=(seed,))
    visible = box_of((canvas[..., 1] > 127) & (canvas[..., 0] == 0))
    assert (canvas.shape, canvas.dtype, len(moved)) == ((100, 100, 3), np.uint8, int(visible is not None))
    if visible is not None:
        assert moved.masks is not None
        np.testing.assert_allclose(moved.boxes[0], visible, atol=1.01)
        np.testing.assert_allclose(box_of(moved.masks[0].numpy()) or [], visible, atol=1.01)


def test_jitter_draws_from_its_range_by_the_seed_alone() -> None:
    image, target = scene((0, 0, 120, 90))
    jitter = Jitter(120, 0.25, 0.75)
    widths = [jitter(image, target, seed=(0, seed))[1].boxes[0, 2].item() for seed in range(60)]
    assert 30 <= min(widths) < 36
    assert 84 < max(widths) <= 90
    assert_same(jitter(image, target, seed=(0, 5)), jitter(image, target, seed=(0, 5)))


def test_jitter_drops_what_is_smaller_than_a_pixel() -> None:
    image, target = scene((10, 10, 30, 30), (40, 40, 49, 80), size=(100, 100))
    _, moved = Jitter(100, 0.1, 0.1)(image, target, seed=(0,))  # the second becomes 0.9 pixels wide
    assert moved.labels.tolist() == [0]
    torch.testing.assert_close(moved.boxes, torch.tensor([[1.0, 1, 3, 3]]))


def test_jitter_drops_objects_whose_mask_is_left_out_but_keeps_unknown_masks() -> None:
    image, target = scene((10, 10, 90, 90), (10, 10, 90, 90), size=(100, 100))
    assert target.masks is not None
    masks = torch.zeros_like(target.masks)
    masks[0, 11, 11] = True  # between the points that a tenth of the size takes
    _, moved = Jitter(100, 0.1, 0.1)(image, replace(target, masks=masks), seed=(0,))
    assert moved.labels.tolist() == [1]


@pytest.mark.parametrize("masks", [False, True])
def test_jitter_without_objects(masks: bool) -> None:
    canvas, moved = Jitter(50, 0.1, 2.0)(*scene(masks=masks), seed=(3,))
    assert canvas.shape == (50, 50, 3)
    assert moved.boxes.shape == (0, 4)
    assert masks == (moved.masks is not None and moved.masks.shape == (0, 50, 50))


# steps that can't be applied


CROP = {"RandomCrop": {"height": 100, "width": 50, "p": 1}}


def test_a_crop_larger_than_the_image_names_step_sizes_and_repair() -> None:
    steps = [MOVES["flip"], CROP]
    expected = r"data\.augment, step 2, .*RandomCrop.* failed on an image of 120x90 pixels: .*put .PadIfNeeded: "
    with pytest.raises(ValueError, match=expected + r".min_height: 100, min_width: 50"):
        run(steps, *scene(MIDDLE), 0)
    with pytest.raises(ValueError, match=expected):
        Augment(steps).pixels(scene()[0], seed=(0,))
    padded = [MOVES["flip"], {"PadIfNeeded": {"min_height": 100, "min_width": 50}}, CROP]
    assert run(padded, *scene(MIDDLE), 0)[0].shape == (100, 50, 3)  # the repair works


def test_a_step_that_needs_what_is_not_there_is_named() -> None:
    step = {"RandomCropNearBBox": {"p": 1}}
    with pytest.raises(
        ValueError, match=r"step 1, .*NearBBox.*cropping_bbox.*; change the arguments of RandomCropNear"
    ):
        run([step], *scene(MIDDLE), 0)


# moves


@pytest.mark.parametrize("name", MOVES)
def test_box_and_mask_bound_the_moved_pixels(name: str) -> None:
    image, target = scene(MIDDLE)
    image.setflags(write=False)
    seen = 0
    for seed in range(8):
        moved_image, moved = run([MOVES[name]], image, target, seed)
        visible = box_of(moved_image[..., 1] > 127)
        assert (len(moved) == 1) == (visible is not None)
        if visible is None:
            continue
        seen += 1
        np.testing.assert_allclose(moved.boxes[0], visible, atol=1.01)
        assert moved.masks is not None
        assert moved.masks.shape == (1, *moved_image.shape[:2])
        assert moved.masks.dtype == torch.bool
        np.testing.assert_allclose(box_of(moved.masks[0].numpy()) or [], visible, atol=1.01)
    assert seen >= 4


def test_a_flip_by_hand() -> None:
    moved_image, moved = run([MOVES["flip"]], *scene((10, 20, 40, 50)), 0)
    assert moved.boxes.tolist() == [[80, 20, 110, 50]]
    assert box_of(moved_image[..., 1]) == [80, 20, 110, 50]


def test_several_moves_in_a_row_keep_boxes_on_their_pixels() -> None:
    steps = [MOVES["flip"], MOVES["rotate"], {"ColorJitter": {"hue": 0, "p": 1}}, MOVES["scale"]]
    for seed in range(8):
        moved_image, moved = run(steps, *scene(MIDDLE), seed)
        # Each step bounds the box of the step before, so only the last one's box can be as tight as the pixels.
        visible = np.array(box_of(moved_image[..., 1] > 90) or [], dtype=float)
        np.testing.assert_allclose(moved.boxes[0], visible, atol=1.5)


def test_objects_that_leave_the_picture_go_with_their_labels_and_masks() -> None:
    boxes: list[Box] = [(5, 5, 20, 20), (50, 40, 70, 60), (100, 70, 115, 85)]
    step = {"Crop": {"x_min": 40, "y_min": 30, "x_max": 120, "y_max": 90, "p": 1}}
    moved_image, moved = run([step], *scene(*boxes), 0)
    assert moved_image.shape == (60, 80, 3)
    assert moved.labels.tolist() == [1, 2]
    assert moved.ignore.tolist() == [True, False]
    torch.testing.assert_close(moved.boxes, torch.tensor([[10.0, 10, 30, 30], [60, 40, 75, 55]]))
    assert moved.masks is not None
    assert [box_of(mask.numpy()) for mask in moved.masks] == [[10, 10, 30, 30], [60, 40, 75, 55]]


def test_all_objects_may_leave_the_picture() -> None:
    step = {"Crop": {"x_min": 0, "y_min": 0, "x_max": 30, "y_max": 20, "p": 1}}
    _, moved = run([step], *scene(MIDDLE), 0)
    assert moved.boxes.shape == (0, 4)
    assert moved.boxes.dtype == torch.float32
    assert moved.masks is not None
    assert (moved.masks.shape, len(moved.labels)) == ((0, 20, 30), 0)


def test_objects_cut_by_the_border_keep_what_is_visible() -> None:
    step = {"Crop": {"x_min": 60, "y_min": 0, "x_max": 120, "y_max": 90, "p": 1}}
    _, moved = run([step], *scene(MIDDLE), 0)
    torch.testing.assert_close(moved.boxes, torch.tensor([[0.0, 35, 15, 60]]))


def test_boxes_keep_their_fractions_and_may_touch_every_border() -> None:
    _, target = scene(masks=False)
    boxes = torch.tensor([[0.0, 0.0, 120.0, 90.0], [10.25, 0.5, 119.75, 89.5]])
    target = Target(boxes=boxes, labels=torch.tensor([3, 4]), ignore=torch.tensor([True, False]))
    _, moved = run([MOVES["flip"]], np.zeros((*SIZE, 3), np.uint8), target, 0)
    torch.testing.assert_close(moved.boxes, torch.tensor([[0.0, 0.0, 120.0, 90.0], [0.25, 0.5, 109.75, 89.5]]))
    assert (moved.labels.tolist(), moved.ignore.tolist()) == ([3, 4], [True, False])


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
@pytest.mark.parametrize("step", [*MOVES.values(), *COLORS], ids=lambda step: next(iter(step)))
def test_no_objects(step: Mapping[str, Any], masks: bool) -> None:
    moved_image, moved = run([step], *scene(masks=masks), 0)
    assert moved_image.dtype == np.uint8
    assert moved.boxes.shape == (0, 4)
    assert (len(moved.labels), len(moved.ignore)) == (0, 0)
    if masks:
        assert moved.masks is not None
        assert moved.masks.shape == (0, *moved_image.shape[:2])


# colours


@pytest.mark.parametrize("step", COLORS, ids=lambda step: next(iter(step)))
def test_colours_alone_change_pixels_and_nothing_else(step: Mapping[str, Any]) -> None:
    image, target = scene(MIDDLE, (5, 5, 9, 9))
    image.setflags(write=False)
    changed, same = run([step], image, target, 3)
    assert (changed.shape, changed.dtype) == (image.shape, np.uint8)
    assert (changed != image).any()
    assert_same((image, target), (image, same))


def test_a_pipeline_without_steps_gives_its_input() -> None:
    image, target = scene(MIDDLE)
    same_image, same_target = run([], image, target, 0)
    assert same_image is image
    assert same_target is target


# chance


def test_the_same_seed_gives_the_same_and_another_seed_another_result() -> None:
    steps = [MOVES["rotate"], COLORS[0], MOVES["flip"]]
    image, target = scene(MIDDLE)
    again, first = Augment(steps), run(steps, image, target, 0, 7)
    assert (again(image, target, seed=(0, 8))[0] != first[0]).any()
    assert (again(image, target, seed=(1, 7))[0] != first[0]).any()
    assert_same(again(image, target, seed=(0, 7)), first)  # whatever was drawn before


def test_numbers_drawn_elsewhere_change_nothing() -> None:
    steps = [MOVES["affine"], COLORS[1]]
    first = run(steps, *scene(MIDDLE), 5)
    torch.rand(3)
    np.random.default_rng().random(3)
    assert_same(run(steps, *scene(MIDDLE), 5), first)


def test_two_steps_draw_different_numbers() -> None:
    steps = [{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}]
    augment, (image, target), corners = Augment(steps), scene((10, 10, 30, 30)), set()
    for seed in range(40):
        _, moved = augment(image, target, seed=(seed,))
        corners.add((moved.boxes[0, 0].item() == 10, moved.boxes[0, 1].item() == 10))
    assert len(corners) == 4  # flipped or not, in both directions independently


def test_two_steps_of_one_kind_draw_different_numbers() -> None:
    twice, (image, target) = Augment([{"HorizontalFlip": {"p": 0.5}}] * 2), scene((10, 10, 30, 30))
    lefts = {twice(image, target, seed=(seed,))[1].boxes[0, 0].item() for seed in range(20)}
    assert lefts == {10.0, 90.0}


def test_a_probability_is_met() -> None:
    flip = Augment([{"HorizontalFlip": {"p": 0.25}}])
    image, target = scene((10, 10, 30, 30), masks=False)
    flipped = sum(flip(image, target, seed=(0, seed))[1].boxes[0, 0].item() == 90 for seed in range(400))
    assert 70 <= flipped <= 130  # 100 expected, deviation 8.7


# pixels alone

PIPELINES: dict[str, Sequence[Mapping[str, Any]]] = {
    "flip": [{"HorizontalFlip": {"p": 0.5}}],
    "crop": [{"RandomCrop": {"height": 50, "width": 60, "p": 1}}],
    "crop and resize": [MOVES["crop and resize"]],
    "pad": [{"PadIfNeeded": {"min_height": 150, "min_width": 140, "p": 1}}],
    "pad, crop and flip": [
        {"Pad": {"padding": 4}},
        {"RandomCrop": {"height": 90, "width": 120}},
        {"HorizontalFlip": {"p": 0.5}},
    ],
    "colour": [{"ColorJitter": {"p": 0.8}}],
    "all": [MOVES["affine"], {"ColorJitter": {"p": 1}}, MOVES["crop"], {"HorizontalFlip": {"p": 0.5}}],
    "nothing": [],
}


@pytest.mark.parametrize("steps", PIPELINES.values(), ids=PIPELINES)
def test_pixels_alone_are_those_of_the_whole_pipeline(steps: Sequence[Mapping[str, Any]]) -> None:
    augment, noise = Augment(steps), np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    noise.setflags(write=False)
    _, target = scene(MIDDLE)
    for seed in range(12):
        expected = augment(noise, target, seed=(3, seed))[0]
        np.testing.assert_array_equal(augment.pixels(noise, seed=(3, seed)), expected)
        np.testing.assert_array_equal(Augment(steps).pixels(noise, seed=(3, seed)), expected)


def test_a_dropout_of_pixels_takes_the_boxes_along() -> None:
    # The hole covers all of the left part of the image from its left border on, or all of the right part.
    hole = {"num_holes_range": [1, 1], "hole_height_range": [90, 90], "hole_width_range": [60, 60], "p": 1}
    augment, lefts = Augment([{"CoarseDropout": {**hole, "fill": 7}}]), set()
    image, target = scene((20, 0, 100, 90), masks=False)
    for seed in range(20):
        changed, moved = augment(image, target, seed=(seed,))
        assert moved.boxes.round().tolist() == [box_of(changed[:, :, 1] == GREENS[0])]
        lefts.add(moved.boxes[0, 0].item())
    assert len(lefts) > 1


def test_a_transform_that_chooses_by_the_boxes_needs_them() -> None:
    augment = Augment([MOVES["safe crop"]])
    assert run([MOVES["safe crop"]], *scene(MIDDLE), 0)[0].shape == (80, 70, 3)
    with pytest.raises(
        ValueError, match=r"data\.augment has a transform that needs 'bboxes', and here are only images"
    ):
        augment.pixels(scene(MIDDLE)[0], seed=(0,))


# mistakes


def test_an_unknown_transform_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no transform 'HorizontlFlip'; did you mean 'HorizontalFlip'\?"):
        Augment([{"HorizontlFlip": {"p": 1}}])


@pytest.mark.parametrize("name", ["Compose", "cv2", "BboxParams", "zzz"])
def test_a_name_that_is_no_transform_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"no transform '{name}'"):
        Augment([{name: {}}])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("HorizontalFlip", {"p": 3}),
        ("HorizontalFlip", {"prob": 0.5}),
        ("RandomCrop", {"height": 5}),
        ("Rotate", {"limit": "much"}),
        ("HorizontalFlip", [0.5]),
    ],
)
def test_arguments_that_do_not_fit_are_refused(name: str, arguments: Any) -> None:
    with pytest.raises(ValueError, match=f"augmentation {name} does not take"):
        Augment([{name: arguments}])


def test_a_transform_without_arguments_takes_its_defaults() -> None:
    Augment([{"HorizontalFlip": None}, {"VerticalFlip": {}}])


@pytest.mark.parametrize("step", [{}, {"HorizontalFlip": {}, "VerticalFlip": {}}])
def test_a_step_of_none_or_two_transforms_is_refused(step: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\{name: arguments\}"):
        Augment([step])

"""Mirrors transforms.py, copy_paste.py and corruptions.py: boxes and masks must follow the pixels."""

from dataclasses import astuple, replace

import numpy as np
import pytest
import torch

from detection.data.copy_paste import choose, paste
from detection.data.corruptions import CORRUPTIONS, STRENGTHS, Corruption
from detection.data.transforms import PADDING, Augment, Jitter, RandomResize, Resize
from detection.structures import Target

SIZE, MIDDLE = (90, 120), (45, 35, 75, 60)
GREENS = (255, 190, 120)  # of the rectangles; the background has none
FLIP, COLOR = {"HorizontalFlip": {"p": 1}}, {"ColorJitter": {"p": 1}}
AFFINE = {"Affine": {"scale": [0.7, 1.3], "rotate": [-15, 15], "shear": [-8, 8], "p": 1}}
RESIZED_CROP = {"RandomResizedCrop": {"size": [80, 100], "scale": [0.5, 1.0], "p": 1}}
MOVES = [
    FLIP,
    AFFINE,
    RESIZED_CROP,
    {"VerticalFlip": {"p": 1}},
    {"Transpose": {"p": 1}},
    {"RandomRotate90": {"p": 1}},
    {"Rotate": {"limit": [-30, 30], "p": 1}},
    {"SafeRotate": {"limit": [-30, 30], "p": 1}},
    {"RandomScale": {"scale_limit": 0.3, "p": 1}},
    {"Perspective": {"scale": [0.05, 0.1], "p": 1}},
    {"RandomCrop": {"height": 50, "width": 60, "p": 1}},
    {"CenterCrop": {"height": 50, "width": 40, "p": 1}},
    {"RandomSizedBBoxSafeCrop": {"height": 80, "width": 70, "p": 1}},
    {"PadIfNeeded": {"min_height": 150, "min_width": 140, "p": 1}},
]
COLORS = [COLOR, {"RandomBrightnessContrast": {"p": 1}}, {"GaussianBlur": {"p": 1}}, {"ToGray": {"p": 1}}]


def scene(*boxes, size=SIZE, masks=True):
    """Black with one filled rectangle per box, each of its own green, and the target that fits; label n is object n."""
    image, stack = np.zeros((*size, 3), np.uint8), torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, green, (x1, y1, x2, y2) in zip(stack, GREENS, boxes, strict=False):
        image[y1:y2, x1:x2, 1] = green
        mask[y1:y2, x1:x2] = True
    image.setflags(write=False)
    labels = torch.arange(len(boxes))
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return image, Target(boxes=rows, labels=labels, ignore=labels == 1, masks=stack if masks else None)


def masks_of(target) -> torch.Tensor:
    assert target.masks is not None
    return target.masks


def box_of(pixels):
    rows, columns = np.nonzero(np.asarray(pixels))
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else None


def run(steps, image, target, *seed):
    return Augment(steps)(image, target, seed=seed or (0,))


def assert_same(first, second) -> None:
    np.testing.assert_array_equal(first[0], second[0])
    torch.testing.assert_close(astuple(first[1]), astuple(second[1]), rtol=0, atol=0)


def test_resizing_is_by_the_600_and_1000_rule_for_pixels_boxes_and_masks() -> None:
    for size, resized in [
        ((375, 500), (600, 800)),  # 600 / 375 = 1.6
        ((500, 375), (800, 600)),
        ((333, 500), (600, 901)),  # 500 * 600 / 333 = 900.9
        ((300, 600), (500, 1000)),  # twice would give 1200
        ((600, 1000), (600, 1000)),
        ((1200, 1600), (600, 800)),
        ((1, 5000), (1, 1000)),  # never without pixels
    ]:
        assert Resize(600, 1000).size(size) == resized
    image, target = scene((20, 10, 40, 30), size=(60, 90))
    resized, moved = Resize(120, 400)(image, target)
    assert (resized.shape, resized.dtype) == ((120, 180, 3), np.uint8)
    assert moved.boxes.tolist() == [[40, 20, 80, 60]]
    assert box_of(resized[..., 1] > 127) == box_of(masks_of(moved)[0]) == [40, 20, 80, 60]
    assert (moved.labels.tolist(), moved.ignore.tolist()) == ([0], [False])
    assert target.boxes.tolist() == [[20, 10, 40, 30]]
    resized, moved = Resize(100, 400)(*scene((20, 10, 88, 50), size=(61, 89)))  # whose sides round differently
    assert resized.shape[:2] == (100, 146)
    np.testing.assert_allclose(box_of(resized[..., 1] > 127) or [], moved.boxes[0], atol=1)


def test_one_of_the_sides_is_drawn() -> None:
    (image, target), resize, drawn = scene(MIDDLE), RandomResize((45, 90, 180), 1000), []
    for seed in range(120):
        resized = resize(image, target, seed=(0, seed))
        drawn.append(resized[0].shape[0])
        assert_same(resized, Resize(drawn[-1], 1000)(image, target))
    assert all(25 <= drawn.count(side) <= 55 for side in (45, 90, 180))  # 40 each expected, deviation 5.2
    assert_same(resize(image, target, seed=(0, 7)), resize(image, target, seed=(0, 7)))


def test_jitter_fits_the_image_into_the_canvas_and_pads_or_crops() -> None:
    image, target = scene((20, 10, 40, 30), size=(60, 90))
    canvas, moved = Jitter(180, 1.0, 1.0)(image, target, seed=(0,))
    resized, expected = Resize(120, 1000)(image, target)
    np.testing.assert_array_equal(canvas[:120], resized)
    assert (canvas.shape, (canvas[120:] == PADDING).all()) == ((180, 180, 3), True)
    assert moved.boxes.tolist() == [[40, 20, 80, 60]]
    assert torch.equal(masks_of(moved)[:, :120], masks_of(expected))
    assert not masks_of(moved)[:, 120:].any()
    (image, target), corners = scene((0, 0, 45, 60), (45, 0, 90, 60), size=(60, 90)), set()
    for seed in range(40):
        canvas, moved = Jitter(90, 2.0, 2.0)(image, target, seed=(seed,))  # 120 x 180 pixels before the crop
        assert not (canvas[:, :, 1] == 0).any()  # no background, and no padding either
        left = 90 - int(moved.boxes[0, 2]) if 0 in moved.labels else 90
        corners.add(left)
        for label, box in zip(moved.labels.tolist(), moved.boxes.tolist(), strict=True):
            assert box == ([0, 0, 90 - left, 90] if label == 0 else [90 - left, 0, 90, 90])
    assert len(corners) > 20
    assert 0 <= min(corners) <= max(corners) <= 90


def test_jitter_keeps_boxes_and_masks_on_their_pixels_and_drops_what_is_too_small() -> None:
    for seed in range(12):
        canvas, moved = Jitter(100, 0.3, 3.0)(*scene(MIDDLE), seed=(seed,))
        visible = box_of((canvas[..., 1] > 127) & (canvas[..., 0] == 0))
        assert (canvas.shape, canvas.dtype, len(moved)) == ((100, 100, 3), np.uint8, int(visible is not None))
        if visible is not None:
            np.testing.assert_allclose(moved.boxes[0], visible, atol=1.01)
            np.testing.assert_allclose(box_of(masks_of(moved)[0]) or [], visible, atol=1.01)
    (image, target), jitter = scene((0, 0, 120, 90)), Jitter(120, 0.25, 0.75)
    widths = [jitter(image, target, seed=(0, seed))[1].boxes[0, 2].item() for seed in range(60)]
    assert 30 <= min(widths) < 36
    assert 84 < max(widths) <= 90
    assert_same(jitter(image, target, seed=(0, 5)), jitter(image, target, seed=(0, 5)))
    image, target = scene((10, 10, 30, 30), (40, 40, 49, 80), size=(100, 100))
    _, moved = Jitter(100, 0.1, 0.1)(image, target, seed=(0,))  # the second becomes 0.9 pixels wide
    assert moved.labels.tolist() == [0]
    torch.testing.assert_close(moved.boxes, torch.tensor([[1.0, 1, 3, 3]]))
    image, target = scene((10, 10, 90, 90), (10, 10, 90, 90), size=(100, 100))
    masks = torch.zeros(2, 100, 100, dtype=torch.bool)
    masks[0, 11, 11] = True  # between the points that a tenth of the size takes
    _, moved = Jitter(100, 0.1, 0.1)(image, replace(target, masks=masks), seed=(0,))
    assert moved.labels.tolist() == [1]


@pytest.mark.parametrize("step", MOVES, ids=lambda step: next(iter(step)))
def test_box_and_mask_bound_the_moved_pixels(step) -> None:
    seen = 0
    for seed in range(8):
        moved_image, moved = run([step], *scene(MIDDLE), seed)
        visible = box_of(moved_image[..., 1] > 127)
        assert (len(moved) == 1) == (visible is not None)
        if visible is not None:
            seen += 1
            np.testing.assert_allclose(moved.boxes[0], visible, atol=1.01)
            assert (masks_of(moved).shape, masks_of(moved).dtype) == ((1, *moved_image.shape[:2]), torch.bool)
            np.testing.assert_allclose(box_of(masks_of(moved)[0]) or [], visible, atol=1.01)
    assert seen >= 4


def test_several_moves_in_a_row_keep_boxes_on_their_pixels_and_fractions() -> None:
    image, target = scene(MIDDLE, MIDDLE)
    exact = replace(target, boxes=torch.tensor([[0.0, 0, 120, 90], [10.25, 0.5, 119.75, 89.5]]), masks=None)
    _, moved = run([FLIP], image, exact)
    torch.testing.assert_close(moved.boxes, torch.tensor([[0.0, 0.0, 120.0, 90.0], [0.25, 0.5, 109.75, 89.5]]))
    assert (moved.labels.tolist(), moved.ignore.tolist()) == ([0, 1], [False, True])
    rotate, scale = {"Rotate": {"limit": [-30, 30], "p": 1}}, {"RandomScale": {"scale_limit": 0.3, "p": 1}}
    for seed in range(8):
        moved_image, moved = run([FLIP, rotate, {"ColorJitter": {"hue": 0, "p": 1}}, scale], *scene(MIDDLE), seed)
        # Each step bounds the box of the step before, so only the last one's box can be as tight as the pixels.
        np.testing.assert_allclose(moved.boxes[0], box_of(moved_image[..., 1] > 90) or [], atol=1.5)


def test_objects_that_leave_the_picture_go_and_cut_ones_keep_what_is_visible() -> None:
    boxes = [(5, 5, 20, 20), (50, 40, 70, 60), (100, 70, 115, 85)]
    crop = {"x_min": 40, "y_min": 30, "x_max": 110, "y_max": 90, "p": 1}
    moved_image, moved = run([{"Crop": crop}], *scene(*boxes))
    assert moved_image.shape == (60, 70, 3)
    assert (moved.labels.tolist(), moved.ignore.tolist()) == ([1, 2], [True, False])
    assert moved.boxes.round().tolist() == [[10, 10, 30, 30], [60, 40, 70, 55]]
    assert [box_of(mask) for mask in masks_of(moved)] == [[10, 10, 30, 30], [60, 40, 70, 55]]
    _, moved = run([{"Crop": crop | {"x_min": 0, "y_min": 0, "x_max": 30, "y_max": 20}}], *scene(MIDDLE))
    assert (moved.boxes.shape, moved.boxes.dtype) == ((0, 4), torch.float32)
    assert (masks_of(moved).shape, len(moved.labels)) == ((0, 20, 30), 0)


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_no_objects(masks) -> None:
    changes = [Resize(30, 50), lambda *scene: Jitter(50, 0.1, 2.0)(*scene, seed=(3,))]
    for change in [*changes, *(lambda *scene, step=step: run([step], *scene) for step in MOVES + COLORS)]:
        image, moved = change(*scene(masks=masks))
        assert (image.dtype, moved.boxes.shape, len(moved.labels), len(moved.ignore)) == (np.uint8, (0, 4), 0, 0)
        assert masks == (moved.masks is not None and moved.masks.shape == (0, *image.shape[:2]))


def test_colours_alone_change_pixels_and_nothing_else() -> None:
    image, target = scene(MIDDLE, (5, 5, 9, 9))
    for step in COLORS:
        changed, same = run([step], image, target, 3)
        assert (changed.shape, changed.dtype, (changed != image).any()) == (image.shape, np.uint8, True)
        assert_same((image, target), (image, same))


def test_a_dropout_of_pixels_takes_the_boxes_along() -> None:
    # The hole covers all of the left part of the image from its left border on, or all of the right part.
    hole = {"num_holes_range": [1, 1], "hole_height_range": [90, 90], "hole_width_range": [60, 60], "p": 1}
    augment, lefts = Augment([{"CoarseDropout": {**hole, "fill": 7}}]), set()
    for seed in range(20):
        changed, moved = augment(*scene((20, 0, 100, 90), masks=False), seed=(seed,))
        assert moved.boxes.round().tolist() == [box_of(changed[:, :, 1] == GREENS[0])]
        lefts.add(moved.boxes[0, 0].item())
    assert len(lefts) > 1


def test_the_seed_alone_decides_and_steps_draw_numbers_of_their_own_by_their_probability() -> None:
    steps, (image, target) = [MOVES[6], COLOR, FLIP], scene(MIDDLE)
    again, first = Augment(steps), run(steps, image, target, 0, 7)
    torch.rand(3)
    assert (again(image, target, seed=(0, 8))[0] != first[0]).any()
    assert (again(image, target, seed=(1, 7))[0] != first[0]).any()
    assert_same(again(image, target, seed=(0, 7)), first)  # whatever was drawn before
    same_image, same_target = run([], image, target)
    assert (same_image is image, same_target is target) == (True, True)

    def lefts_and_tops(*steps, count):
        augment, (image, target) = Augment(steps), scene((10, 10, 30, 30), masks=False)
        return [tuple(augment(image, target, seed=(0, seed))[1].boxes[0, :2].tolist()) for seed in range(count)]

    half = {"HorizontalFlip": {"p": 0.5}}
    assert len(set(lefts_and_tops(half, {"VerticalFlip": {"p": 0.5}}, count=40))) == 4
    assert {left for left, _ in lefts_and_tops(half, half, count=20)} == {10.0, 90.0}  # two of a kind
    flipped = lefts_and_tops({"HorizontalFlip": {"p": 0.25}}, count=400).count((90.0, 10.0))
    assert 70 <= flipped <= 130  # 100 expected, deviation 8.7


PADDED = [{"Pad": {"padding": 4}}, {"RandomCrop": {"height": 90, "width": 120}}, {"HorizontalFlip": {"p": 0.5}}]


@pytest.mark.parametrize("steps", [[RESIZED_CROP], PADDED, [AFFINE, {"ColorJitter": {"p": 0.8}}, MOVES[10]], []])
def test_pixels_alone_are_those_of_the_whole_pipeline(steps) -> None:
    augment, noise = Augment(steps), np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    noise.setflags(write=False)
    for seed in range(12):
        expected = augment(noise, scene(MIDDLE)[1], seed=(3, seed))[0]
        np.testing.assert_array_equal(augment.pixels(noise, seed=(3, seed)), expected)
        np.testing.assert_array_equal(Augment(steps).pixels(noise, seed=(3, seed)), expected)


def test_what_is_no_step_or_cannot_be_applied_is_named_with_the_repair() -> None:
    steps = [FLIP, {"RandomCrop": {"height": 100, "width": 50, "p": 1}}]
    expected = r"data\.augment, step 2, .*RandomCrop.* 120x90 pixels: .*PadIfNeeded: .min_height: 100, min_width: 50"
    with pytest.raises(ValueError, match=expected):
        run(steps, *scene(MIDDLE))
    with pytest.raises(ValueError, match=expected):
        Augment(steps).pixels(scene()[0], seed=(0,))
    padded = [FLIP, {"PadIfNeeded": {"min_height": 100, "min_width": 50}}, steps[1]]
    assert run(padded, *scene(MIDDLE))[0].shape == (100, 50, 3)  # the repair works
    with pytest.raises(ValueError, match=r"step 1, .*RandomCropNearBBox.*cropping_bbox"):
        run([{"RandomCropNearBBox": {"p": 1}}], *scene(MIDDLE))
    with pytest.raises(ValueError, match=r"data\.augment has a transform that needs 'bboxes'"):
        Augment([{"RandomSizedBBoxSafeCrop": {"height": 80, "width": 70, "p": 1}}]).pixels(scene()[0], seed=(0,))
    Augment([{"HorizontalFlip": None}, {"VerticalFlip": {}}])  # of default arguments
    with pytest.raises(ValueError, match="no transform 'HorizontlFlip'; did you mean 'HorizontalFlip'"):
        Augment([{"HorizontlFlip": {"p": 1}}])
    for name in ("Compose", "cv2", "BboxParams"):
        with pytest.raises(ValueError, match=f"no transform '{name}'"):
            Augment([{name: {}}])
    for arguments in ({"p": 3}, {"prob": 0.5}, {"limit": "much"}, [0.5]):
        with pytest.raises(ValueError, match="augmentation Rotate does not take"):
            Augment([{"Rotate": arguments}])
    for step in ({}, {"HorizontalFlip": {}, "VerticalFlip": {}}):
        with pytest.raises(ValueError, match=r"\{name: arguments\}"):
            Augment([step])


def test_pasting_by_hand_takes_chosen_objects_and_leaves_the_arguments() -> None:
    _, objects = scene((0, 0, 20, 20), (40, 0, 60, 20), (80, 0, 100, 20))
    masks_of(objects)[2] = False
    assert choose(objects, np.random.default_rng(0)).labels.tolist() == [0]
    for none in (objects[1:], objects[:0]):
        assert len(choose(none, np.random.default_rng(0))) == 0
    image, target = scene((0, 0, 20, 20), (40, 0, 60, 20), (80, 0, 100, 20))
    other, objects = scene((10, 0, 30, 20), (40, 0, 60, 20))
    before = target.boxes.clone(), masks_of(target).clone()
    pasted, moved = paste(image, target, other + 1, objects)
    # The first is covered from x = 10 on, the second wholly, the third not; then come the new ones.
    assert moved.boxes.tolist() == [[0, 0, 10, 20], [80, 0, 100, 20], [10, 0, 30, 20], [40, 0, 60, 20]]
    assert (moved.labels.tolist(), moved.ignore.tolist()) == ([0, 2, 0, 1], [False, False, False, True])
    assert [box_of(mask) for mask in masks_of(moved)] == moved.boxes.tolist()
    assert not (masks_of(moved)[0] & masks_of(moved)[2]).any()
    expected = image.copy()
    expected[0:20, 10:30], expected[0:20, 40:60] = other[0:20, 10:30] + 1, other[0:20, 40:60] + 1
    np.testing.assert_array_equal(pasted, expected)
    assert torch.equal(target.boxes, before[0])
    assert torch.equal(masks_of(target), before[1])


def test_masks_decide_what_is_pasted_and_objects_of_images_of_other_sizes_are_cut() -> None:
    other, objects = scene((10, 10, 30, 30))
    masks_of(objects)[0, 20:] = False
    pasted, moved = paste(*scene(), other, objects)
    assert box_of(pasted[..., 1]) == [10, 10, 30, 20]
    assert moved.boxes.tolist() == [[10, 10, 30, 30]]  # its own, as annotated
    image, target = scene((0, 0, 20, 20), (40, 0, 60, 20))
    masks_of(target)[0] = False
    _, moved = paste(image, target, *scene((0, 0, 80, 30)))
    assert moved.boxes.tolist() == [[0, 0, 20, 20], [0, 0, 80, 30]]
    assert not masks_of(moved)[0].any()
    others = scene((100, 70, 130, 110), (125, 0, 140, 20), (0, 0, 10, 10), size=(120, 150))
    pasted, moved = paste(*scene(MIDDLE), *others)
    assert (pasted.shape, masks_of(moved).shape) == ((90, 120, 3), (3, 90, 120))
    assert moved.boxes.tolist() == [list(MIDDLE), [100, 70, 120, 90], [0, 0, 10, 10]]  # the second is outside
    pasted, moved = paste(*scene(MIDDLE), *scene((5, 5, 20, 20), size=(40, 30)))
    assert (pasted.shape, moved.boxes.tolist()) == ((90, 120, 3), [list(MIDDLE), [5, 5, 20, 20]])


# Smooth colours with a sharp edge.
IMAGE = np.full((120, 160, 3), (200, 120, 40), np.uint8)
IMAGE[:, 80:] = (30, 90, 160)


@pytest.mark.parametrize("kind", STRENGTHS)
def test_a_higher_level_changes_more(kind) -> None:
    changed = [Corruption(kind, level).change(IMAGE, (0, 1)).astype(int) for level in (1, 2, 3)]
    first, second, third = (np.abs(pixels - IMAGE).mean() for pixels in changed)
    assert 0 < first < second < third


def test_size_and_target_stay_and_a_seed_repeats(make_target) -> None:
    target = make_target([[1.0, 2, 30, 40]])
    for corruption in CORRUPTIONS:
        image, same = corruption(IMAGE, target, seed=(0, 3))
        assert (image.shape, image.dtype, same is target) == (IMAGE.shape, np.uint8, True)
        np.testing.assert_array_equal(image, corruption.change(IMAGE, (0, 3)))


def test_known_values_and_a_blur_that_looks_alike_at_any_resolution() -> None:
    np.testing.assert_array_equal(Corruption("brightness", 2).change(IMAGE, ())[0, 0], [100, 60, 20])
    own, other = (Corruption("noise", 1).change(np.full((200, 200, 3), 128, np.uint8), (0, n)) for n in (1, 2))
    assert not np.array_equal(own, other)  # images draw different noise
    noise = own.astype(float)
    assert noise.mean() == pytest.approx(128, abs=0.2)
    assert noise.std() == pytest.approx(10, abs=0.2)
    assert len(np.unique(noise[..., 0] - noise[..., 1])) > 10  # every channel has its own
    # channels keep their places in JPEG
    assert np.abs(Corruption("jpeg", 1).change(IMAGE, ())[:, :70].astype(int) - IMAGE[:, :70]).max() < 12
    large = IMAGE.repeat(4, axis=0).repeat(4, axis=1)
    for level in (1, 2, 3):
        small, again = (Corruption("blur", level).change(image, ()) for image in (IMAGE, large))
        assert np.abs(small.astype(int) - again[::4, ::4]).mean() < 2

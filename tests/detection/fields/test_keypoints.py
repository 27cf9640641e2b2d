from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detection.data.copy_paste import paste
from detection.data.slices import cut
from detection.data.transforms import Augment, Jitter, Resize
from detection.fields.keypoints import Keypoints, of_coco, to_coco
from detection.fields.table import fields_of
from detection.keypoints import KeypointSpec
from detection.padded import Targets
from detection.structures import Target
from detection.windows import Window

SIZE = (60, 80)
FACE = KeypointSpec(("nose", "left_eye", "right_eye"))
FLIP = {"HorizontalFlip": {"p": 1}}

# In COCO's numbers of pixels: nose, left eye and, not labelled, right eye; then one of which the left eye is hidden.
FACES = ([10, 20, 2, 30, 5, 2, 0, 0, 0], [50, 30, 2, 60, 20, 1, 70, 20, 2])


@pytest.fixture
def faces(make_target) -> Target:
    values = torch.tensor(np.array([of_coco(face, FACE.names) for face in FACES]), dtype=torch.float32)
    return replace(make_target([(5, 5, 40, 40), (45, 15, 75, 40)]), keypoints=values)


def marked() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A picture whose labelled pixels are white."""
    image = np.zeros((*SIZE, 3), np.uint8)
    for x, y, seen in np.array(FACES).reshape(-1, 3):
        image[y, x] = 255 * (seen > 0)
    return image


def places(target: Any) -> list[list[list[float]]]:
    return target.keypoints.tolist()


def augmented(faces: Target, *steps: dict[str, Any], spec: KeypointSpec = FACE) -> tuple[Any, Target]:
    return Augment(list(steps), fields_of(spec))(marked(), faces, seed=(1,))


def test_a_number_of_a_pixel_is_its_middle_and_what_is_not_labelled_is_nowhere() -> None:
    field = Keypoints(FACE)
    packed = [field.pack([10, 20, 2, 7, 7, 0, 79, 59, 1], SIZE), field.unknown(SIZE), field.pack(None, SIZE)]
    values = field.unpack(packed, SIZE)
    assert values.tolist() == [[[10.5, 20.5, 2], [0, 0, 0], [79.5, 59.5, 1]], [[0] * 3] * 3, [[0] * 3] * 3]
    assert to_coco(values)[0] == [10, 20, 2, -0.5, -0.5, 0, 79, 59, 1]
    # Outside its image it is kept for tests and not trained on.
    values = field.unpack([field.pack([100, 20, 2, 10, 20, 2, -5, 3, 2], SIZE)], SIZE)
    assert values[0, 0].tolist() == [100.5, 20.5, 2]
    assert field.to_tensor(values, SIZE)[0].tolist() == [[0, 0, 0], [10.5, 20.5, 2], [0, 0, 0]]
    found = Tensor([[[1.5, 2.5, 0.9]]])
    assert Keypoints().on_image(found, torch.zeros(1, 4), SIZE).tolist() == found.tolist()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([1, 2, 2], "keypoints have 3 numbers, expected 9"),
        ("1 2 3", "expected a list of 9 numbers"),
        ([1, 2, 2, 3, 4, 3, 0, 0, 0], r"visibility of keypoint 'left_eye' is 3, expected 0 .* or 2"),
        ([1, 2, 2, 3, float("nan"), 2, 0, 0, 0], "y of keypoint 'left_eye' is nan, expected a number"),
        ([1, 2, 2, 3, 4, 2, "5", 0, 0], "x of keypoint 'right_eye' is '5'"),
        ([1, 1e39, 2, 3, 4, 2, 5, 0, 0], r"y of keypoint 'nose' is 1e\+39"),
    ],
)
def test_what_is_no_list_of_keypoints_is_named(raw, message) -> None:
    with pytest.raises(ValueError, match=message):
        Keypoints(FACE).pack(raw, SIZE)


@pytest.mark.parametrize(
    ("steps", "swapped"),
    [
        ([FLIP], True),
        ([{"VerticalFlip": {"p": 1}}], True),  # a mirror image too, upside down
        ([{"Transpose": {"p": 1}}], True),
        ([FLIP, {"VerticalFlip": {"p": 1}}], False),  # turned by 180 degrees
        ([{"RandomRotate90": {"p": 1}}], False),
        ([{"Affine": {"scale": 1.0, "translate_px": {"x": 3, "y": 7}, "p": 1}}], False),
        ([{"ColorJitter": {"p": 1, "brightness": 0.01}}], False),
    ],
)
def test_keypoints_lie_on_pixels_and_a_mirror_swaps_sides(faces, steps, swapped) -> None:
    given = places(faces)
    image, target = augmented(faces, *steps)
    first, second = places(target)
    assert [points[2] for points in first] == ([2, 0, 2] if swapped else [2, 2, 0])
    assert [points[2] for points in second] == ([2, 2, 1] if swapped else [2, 1, 2])
    for x, y, _ in (point for point in [*first, *second] if point[2]):
        assert (x % 1, y % 1) == (0.5, 0.5)
        assert image[int(y), int(x)].min() > 200
    assert given == places(faces)  # arguments are not changed


@pytest.mark.parametrize(
    ("step", "scale", "corner"),
    [
        ({"Resize": {"height": 120, "width": 320}}, (4, 2), (0, 0)),
        ({"RandomScale": {"scale_limit": [1.0, 1.0], "p": 1}}, (2, 2), (0, 0)),
        ({"LongestMaxSize": {"max_size": 160}}, (2, 2), (0, 0)),
        ({"SmallestMaxSize": {"max_size": 180}}, (3, 3), (0, 0)),
        ({"CropAndPad": {"px": [0, 0, 0, -40], "sample_independently": False, "p": 1}}, (2, 1), (40, 0)),
    ],
)
def test_scales_lead_middles_of_pixels_to_middles(faces, step, scale, corner) -> None:
    """Counted from the corner of the image a place is multiplied by the scale, between two flips too."""
    image, target = augmented(faces, step)
    for (x, y, _), (old_x, old_y, _) in zip(places(target)[-1], places(faces)[-1], strict=True):
        assert (x, y) == ((old_x - corner[0]) * scale[0], (old_y - corner[1]) * scale[1])
    if corner == (0, 0):
        flipped, turned = augmented(faces, FLIP, step, FLIP)
        assert (places(turned), flipped.shape) == (places(target), image.shape)


def test_a_flip_leads_x_to_width_minus_x_as_it_does_with_boxes_and_swaps_names_with_sides(faces) -> None:
    target = augmented(faces, FLIP)[1]
    assert places(target)[0] == [[69.5, 20.5, 2], [0, 0, 0], [49.5, 5.5, 2]]
    np.testing.assert_allclose(target.boxes[0].tolist(), [40, 5, 75, 40], atol=1e-4)
    plain = augmented(faces, FLIP, spec=KeypointSpec(("a", "b", "c")))[1]
    assert places(plain)[0] == [[69.5, 20.5, 2], [49.5, 5.5, 2], [0, 0, 0]]
    for given in (faces[:0], replace(faces, keypoints=None)):  # images without objects pass and bring none
        moved = augmented(given, FLIP)[1]
        assert (len(moved), moved.keypoints is None) == (len(given), given.keypoints is None)
    assert Targets.pad([faces, faces[:0]]).keypoints is not None


def test_a_crop_leaves_what_it_shows_labelled_and_drops_objects_with_their_keypoints(faces) -> None:
    top = {"Crop": {"x_min": 20, "y_min": 0, "x_max": 80, "y_max": 25, "p": 1}}
    hidden, second = [[0, 0, 0], [10.5, 5.5, 2], [0, 0, 0]], [[0, 0, 0], [40.5, 20.5, 1], [50.5, 20.5, 2]]
    assert places(augmented(faces, top)[1]) == [hidden, second]
    right = {"Crop": {"x_min": 42, "y_min": 0, "x_max": 80, "y_max": 60, "p": 1}}
    assert places(augmented(faces, right)[1]) == [[[8.5, 30.5, 2], [18.5, 20.5, 1], [28.5, 20.5, 2]]]


def test_resizing_canvases_and_windows_move_pixels_with_their_middles(faces) -> None:
    twice = [[21, 41, 2], [61, 11, 2], [0, 0, 0]]
    assert places(Resize(120, 1000)(marked(), faces)[1])[0] == twice
    image, target = Jitter(160, 1.0, 1.0)(marked(), faces, seed=(0,))  # twice as large, in the upper left corner
    assert (image.shape, places(target)[0]) == ((160, 160, 3), twice)
    _, target = cut(marked(), faces, Window((10, 40), (50, 25)), visible=0.5)
    assert places(target) == [[[10.5, 20.5, 2], [20.5, 10.5, 1], [0, 0, 0]]]


def test_what_is_pasted_over_a_keypoint_hides_it(faces) -> None:
    masks, over = torch.zeros(2, *SIZE, dtype=torch.bool), torch.zeros(1, *SIZE, dtype=torch.bool)
    masks[0, 5:40, 5:40] = masks[1, 15:40, 45:75] = over[:, 15:30, 5:20] = True
    _, target = paste(marked(), replace(faces, masks=masks), marked(), replace(faces[1:], masks=over))
    nose_under_it, second = [[10.5, 20.5, 1], [30.5, 5.5, 2], [0, 0, 0]], places(faces)[1]
    assert places(target) == [nose_under_it, second, second]


def test_augmentations_that_cannot_move_keypoints_are_refused(faces, monkeypatch) -> None:
    def cannot(*_: object, **__: object) -> None:
        raise NotImplementedError("apply_to_keypoints is not implemented")

    monkeypatch.setattr("albumentations.HorizontalFlip.apply_to_keypoints", cannot)
    with pytest.raises(ValueError, match=r"step 2, .*HorizontalFlip.*not implemented; .*leave it out"):
        augmented(faces, {"ColorJitter": {}}, FLIP)

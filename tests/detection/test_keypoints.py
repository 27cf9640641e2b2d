"""Mirrors detection/keypoints.py."""

from typing import Any

import numpy as np
import pytest
from pycocotools.cocoeval import Params

from detection.keypoints import COCO_SIGMAS, KeypointSpec

PERSON = KeypointSpec(tuple(COCO_SIGMAS))


def test_sigmas_are_those_of_pycocotools_by_name_or_given_or_the_default() -> None:
    np.testing.assert_allclose(PERSON.sigmas, Params("keypoints").kpt_oks_sigmas, rtol=1e-12)
    assert KeypointSpec(("left_hip", "nose")).sigmas == (0.107, 0.026)
    assert KeypointSpec(("nose", "beak")).sigmas == (0.05, 0.05)
    assert KeypointSpec(("nose", "left_eye"), sigmas=(0.5, 0.25)).sigmas == (0.5, 0.25)


def test_a_flip_swaps_left_and_right_of_a_person() -> None:
    other = PERSON.mirrored
    assert [PERSON.names[place] for place in other[:5]] == ["nose", "right_eye", "left_eye", "right_ear", "left_ear"]
    assert [other[place] for place in other] == [*range(17)]
    assert PERSON.sides[:3] == ("", "left", "right")
    for names in (("eye_left", "eye_right"), ("Left ear", "Right ear")):
        assert (KeypointSpec(names).mirrored, KeypointSpec(names).sides) == ((1, 0), ("left", "right"))
    for names in (("left_wing", "tail"), ("leftover", "rightover")):  # nothing to swap with
        assert (KeypointSpec(names).mirrored, KeypointSpec(names).sides) == ((0, 1), ("", ""))


def test_what_fits_no_keypoints_is_refused() -> None:
    cases: Any = (
        ((), {}, "names"),
        (("a", "a"), {}, "each once"),
        (("a", "b"), {"edges": ((0, 2),)}, r"0\.\.1, got \[0, 2\]"),
        (("a", "b"), {"sigmas": (0.1,)}, r"each of the 2 keypoints a, b, got \[0\.1\]"),
        (("a",), {"sigmas": (0.0,)}, "above 0"),
    )
    for names, options, message in cases:
        with pytest.raises(ValueError, match=message):
            KeypointSpec(names, **options)

"""Mirrors detection/data/corruptions.py."""

import numpy as np
import pytest

from detection.data.corruptions import CORRUPTIONS, STRENGTHS, Corruption

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


def test_known_values() -> None:
    np.testing.assert_array_equal(Corruption("brightness", 2).change(IMAGE, ())[0, 0], [100, 60, 20])
    own, other = (Corruption("noise", 1).change(np.full((200, 200, 3), 128, np.uint8), (0, n)) for n in (1, 2))
    assert not np.array_equal(own, other)  # images draw different noise
    noise = own.astype(float)
    assert noise.mean() == pytest.approx(128, abs=0.2)
    assert noise.std() == pytest.approx(10, abs=0.2)
    assert len(np.unique(noise[..., 0] - noise[..., 1])) > 10  # every channel has its own
    # channels keep their places in JPEG
    assert np.abs(Corruption("jpeg", 1).change(IMAGE, ())[:, :70].astype(int) - IMAGE[:, :70]).max() < 12


def test_blur_looks_alike_at_any_resolution() -> None:
    large = IMAGE.repeat(4, axis=0).repeat(4, axis=1)
    for level in (1, 2, 3):
        small, again = (Corruption("blur", level).change(image, ()) for image in (IMAGE, large))
        assert np.abs(small.astype(int) - again[::4, ::4]).mean() < 2

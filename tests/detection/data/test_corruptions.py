"""Mirrors detection/data/corruptions.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detection.data.corruptions import CORRUPTIONS, STRENGTHS, Corruption, Kind
from detection.structures import Target

RNG = np.random.default_rng(0)
# Smooth colours with a sharp edge.
IMAGE = np.full((120, 160, 3), (200, 120, 40), np.uint8)
IMAGE[:, 80:] = (30, 90, 160)
TARGET = Target(boxes=torch.tensor([[1.0, 2, 30, 40]]), labels=torch.tensor([0]), ignore=torch.tensor([False]))


def change(kind: Kind, level: int) -> float:
    """The mean distance of the pixels to those of the image."""
    changed = Corruption(kind, level).change(IMAGE, (0, 1))
    return float(np.abs(changed.astype(int) - IMAGE).mean())


@pytest.mark.parametrize("kind", STRENGTHS)
def test_a_higher_level_changes_more(kind: Kind) -> None:
    assert 0 < change(kind, 1) < change(kind, 2) < change(kind, 3)


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda corruption: corruption.name)
def test_size_and_target_stay_and_a_seed_repeats(corruption: Corruption) -> None:
    image, target = corruption(IMAGE, TARGET, seed=(0, 3))
    assert (image.shape, image.dtype) == (IMAGE.shape, np.uint8)
    assert target is TARGET
    np.testing.assert_array_equal(image, corruption.change(IMAGE, (0, 3)))


def test_known_values() -> None:
    np.testing.assert_array_equal(Corruption("brightness", 2).change(IMAGE, ())[0, 0], [100, 60, 20])
    noise = Corruption("noise", 1).change(np.full((200, 200, 3), 128, np.uint8), (0, 1)).astype(float)
    assert noise.mean() == pytest.approx(128, abs=0.2)
    assert noise.std() == pytest.approx(10, abs=0.2)
    assert len(np.unique(noise[..., 0] - noise[..., 1])) > 10  # every channel has its own
    # channels keep their places in JPEG
    assert np.abs(Corruption("jpeg", 1).change(IMAGE, ())[:, :70].astype(int) - IMAGE[:, :70]).max() < 12


def test_blur_looks_alike_at_any_resolution() -> None:
    large = IMAGE.repeat(4, axis=0).repeat(4, axis=1)
    for level in (1, 2, 3):
        small = Corruption("blur", level).change(IMAGE, ())
        again = Corruption("blur", level).change(large, ())[::4, ::4]
        assert np.abs(small.astype(int) - again).mean() < 2


def test_images_draw_different_noise() -> None:
    noise = Corruption("noise", 1)
    assert not np.array_equal(noise.change(IMAGE, (0, 1)), noise.change(IMAGE, (0, 2)))

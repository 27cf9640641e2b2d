"""Mirrors data/near_copies.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from detection.data.near_copies import Pair, look_at, pairs_alike


def photo(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Smooth noise, which has detail at all sizes as a photograph has."""
    generator = np.random.default_rng(seed)
    pixels = sum(
        np.asarray(
            Image.fromarray(generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize(
                size, Image.Resampling.BICUBIC
            ),
            dtype=np.float32,
        )
        * weight
        for cells, weight in ((4, 0.6), (10, 0.3), (40, 0.1))
    )
    return Image.fromarray(np.asarray(pixels).astype(np.uint8))


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Thirty pictures of their own."""
    for seed in range(30):
        photo(seed).save(tmp_path / f"{seed:02d}.png")
    return sorted(map(str, tmp_path.glob("*.png")))


def test_different_pictures_are_no_pairs(photos: list[str]) -> None:
    assert pairs_alike(look_at(photos)) == []


def test_a_copied_file_is_the_same(photos: list[str], tmp_path: Path) -> None:
    for name in ("copy.png", "again.png"):
        shutil.copy(photos[3], tmp_path / name)
    paths = [*photos, str(tmp_path / "copy.png"), str(tmp_path / "again.png")]
    assert pairs_alike(look_at(paths)) == [Pair(3, 30, same=True), Pair(3, 31, same=True)]


@pytest.mark.parametrize("change", ["jpeg", "resized", "brighter", "noisy"])
def test_a_changed_copy_is_nearly_the_same(photos: list[str], tmp_path: Path, change: str) -> None:
    original, path = photo(7), tmp_path / "changed.jpg"
    noise = np.random.default_rng(0).normal(0, 6, (120, 160, 3))
    changed = {
        "jpeg": original,
        "resized": original.resize((101, 77)),
        "brighter": ImageEnhance.Brightness(original).enhance(1.15),
        "noisy": Image.fromarray((np.asarray(original) + noise).clip(0, 255).astype(np.uint8)),
    }[change]
    changed.save(path, quality=60)
    assert pairs_alike(look_at([*photos, str(path)])) == [Pair(7, 30, same=False)]


def test_unreadable_files_and_plain_surfaces_are_like_no_other(tmp_path: Path) -> None:
    for number, colour in enumerate(((0, 0, 0), (1, 1, 1), (255, 255, 255))):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    (tmp_path / "4.png").mkdir()
    paths = [*sorted(map(str, tmp_path.iterdir())), str(tmp_path / "missing.png")]
    assert pairs_alike(look_at(paths)) == []
    assert pairs_alike([]) == []

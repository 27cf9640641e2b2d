"""Mirrors data/near_copies.py."""

import shutil

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from detection.data.near_copies import Pair, look_at, pairs_alike


def photo(seed, size=(160, 120)):
    """Smooth noise, which has detail at all sizes as a photograph has."""
    generator, pixels = np.random.default_rng(seed), np.zeros((size[1], size[0], 3), np.float32)
    for cells, weight in ((4, 0.6), (10, 0.3), (40, 0.1)):
        noise = Image.fromarray(generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pixels += np.asarray(noise.resize(size, Image.Resampling.BICUBIC), dtype=np.float32) * weight
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Thirty pictures of their own."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(30):
        photo(seed).save(folder / f"{seed:02d}.png")
    return sorted(map(str, folder.glob("*.png")))


def test_only_copied_files_are_the_same(photos, tmp_path) -> None:
    copies = [shutil.copy(photos[3], tmp_path / name) for name in ("copy.png", "again.png")]
    found = pairs_alike(look_at([*photos, *map(str, copies)]))
    assert found == [Pair(3, 30, same=True), Pair(3, 31, same=True)]


def test_changed_copies_are_nearly_the_same(photos, tmp_path) -> None:
    original, noise = photo(7), np.random.default_rng(0).normal(0, 6, (120, 160, 3))
    changed = [
        original,  # as JPEG
        original.resize((101, 77)),
        ImageEnhance.Brightness(original).enhance(1.15),
        Image.fromarray((np.asarray(original) + noise).clip(0, 255).astype(np.uint8)),
    ]
    looks, path = look_at(photos), tmp_path / "changed.jpg"
    for image in changed:
        image.save(path, quality=60)
        assert pairs_alike([*looks, *look_at([str(path)])]) == [Pair(7, 30, same=False)]


def test_unreadable_files_and_plain_surfaces_are_like_no_other(tmp_path) -> None:
    for number, colour in enumerate(((0, 0, 0), (1, 1, 1), (255, 255, 255))):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    (tmp_path / "4.png").mkdir()
    paths = [*sorted(map(str, tmp_path.iterdir())), str(tmp_path / "missing.png")]
    assert pairs_alike(look_at(paths)) == pairs_alike([]) == []

"""A small stand-in for BSDS500 in its real layout."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

SIZE = (48, 64)


def draw(folder: Path, name: str, split: str, random: np.random.Generator) -> None:
    """A bright rectangle, upright or lying, whose border three annotators drew, one of them beside it."""
    size = SIZE if random.random() < 0.5 else SIZE[::-1]
    top, left = random.integers(8, 14, 2)
    bottom, right = size[0] - random.integers(8, 14), size[1] - random.integers(8, 14)
    pixels = random.normal(60, 10, (*size, 3))
    pixels[top:bottom, left:right] += 120
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / "images" / split / f"{name}.jpg")
    cells = np.empty((1, 3), dtype=object)
    for annotator in range(3):
        inside = np.zeros(size, dtype=bool)
        inside[top:bottom, left : right + (annotator == 2)] = True
        inner = np.zeros(size, dtype=bool)
        inner[top + 1 : bottom - 1, left + 1 : right + (annotator == 2) - 1] = True
        segments = 1 + inside.astype(np.uint16)
        cells[0, annotator] = {"Segmentation": segments, "Boundaries": (inside & ~inner).astype(np.uint8)}
    savemat(folder / "groundTruth" / split / f"{name}.mat", {"groundTruth": cells})


@pytest.fixture(scope="session")
def bsds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data root; 4 images for training, 2 for testing."""
    root = tmp_path_factory.mktemp("data")
    folder, random = root / "BSR" / "BSDS500" / "data", np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 1), ("test", 2)):
        for kind in ("images", "groundTruth"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            draw(folder, f"{1000 + number}", split, random)
    (folder / "images" / "train" / "Thumbs.db").write_bytes(b"")
    return root

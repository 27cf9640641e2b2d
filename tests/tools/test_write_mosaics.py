"""Mirrors tools/write_mosaics.py."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from detection.data.cards import load_dataset

TOOL = Path(__file__).parents[2] / "tools" / "write_mosaics.py"


def test_a_mosaic_has_the_pixels_and_objects_of_its_images(
    make_coco: Callable[..., Path], write_card: Callable[..., str], tmp_path: Path
) -> None:
    names = {number: f"{number}.png" for number in range(1, 5)}
    box: dict[str, Any] = {"category_id": 18, "bbox": [10, 20, 30, 15], "area": 450, "iscrowd": 0}
    make_coco(names, [{"id": 1, "image_id": 4, **box}, {"id": 2, "image_id": 1, **box}])
    index, _ = load_dataset([f"{write_card('coco')}:train"], tmp_path)
    runpy.run_path(str(TOOL))["write_mosaics"](index, tmp_path / "large", side=2, count=1)
    large, problems = load_dataset([f"{tmp_path / 'large' / 'card.yaml'}:test"], tmp_path)
    assert (len(large), problems, large.sizes.tolist()) == (1, [], [[120, 160]])
    np.testing.assert_array_equal(large.image(0)[60:, 80:], index.image(3))
    assert large.boxes.tolist() == [[10, 20, 40, 35], [90, 80, 120, 95]]
    assert large.labels.tolist() == [1, 1]

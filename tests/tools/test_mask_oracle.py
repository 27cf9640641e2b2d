"""Mirrors tools/mask_oracle.py: what perfect masks reach."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from detection.data.cards import load_dataset

TOOL = Path(__file__).parents[2] / "tools" / "mask_oracle.py"


@pytest.mark.data
@pytest.mark.parametrize(
    ("geometry", "ap", "small"),
    [("exact", 0.954, 0.963), ("detectron2", 0.954, 0.963)],
)
def test_perfect_masks_of_coco128_keep_their_shape(
    data_root_for_tests: Path, geometry: str, ap: float, small: float
) -> None:
    index, _ = load_dataset(["coco128:seg_val"], data_root_for_tests, fields=("masks",))
    result = runpy.run_path(str(TOOL))["measure"](index, 28, geometry)
    assert ap < result.AP
    assert result.APs > small


@pytest.mark.data
def test_torchvisions_geometry_loses_small_objects(data_root_for_tests: Path) -> None:
    index, _ = load_dataset(["coco128:seg_val"], data_root_for_tests, fields=("masks",))
    result = runpy.run_path(str(TOOL))["measure"](index, 28, "torchvision")
    assert pytest.approx(88.4, abs=0.3) == 100 * result.AP
    assert 100 * result.APs == pytest.approx(74.4, abs=0.5)

"""Mirrors detection/report/robustness.py, on runs whose detections under corruption are made up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from detection.data.corruptions import CORRUPTIONS
from detection.pages.page import Table
from detection.report.robustness import robustness_numbers, robustness_section, write_robustness

Make = Callable[..., Path]


@pytest.fixture
def corrupted(make_run: Make, tmp_path: Path) -> Callable[[int], Path]:
    """A run whose detections are worse on strongly blurred images and the same on all others."""

    def make(seed: int) -> Path:
        run = make_run(tmp_path / "runs" / str(seed), skill=0.95, seed=seed)
        worse = make_run(tmp_path / "worse" / str(seed), skill=0.4, seed=seed)
        (run / "robustness").mkdir()
        for corruption in CORRUPTIONS:
            source = worse if corruption.name == "blur_3" else run
            shutil.copy(source / "detections.json", run / "robustness" / f"{corruption.name}.json")
        return run

    return make


def test_a_loss_is_found_where_there_is_one(corrupted: Callable[[int], Path]) -> None:
    numbers = robustness_numbers([corrupted(0)])
    assert numbers is not None
    blur, noise = (numbers["corruptions"][name] for name in ("blur_3", "noise_3"))
    assert blur["loss"]["proven"]
    assert blur["loss"]["high"] < 0
    assert blur["loss"]["value"] == pytest.approx(blur["AP"]["value"] - numbers["clean"]["value"])
    assert (noise["loss"]["value"], noise["loss"]["proven"]) == (0, False)
    assert noise["AP"] == numbers["clean"]


def test_seeds_widen_the_interval(corrupted: Callable[[int], Path]) -> None:
    runs = [corrupted(seed) for seed in range(3)]
    numbers = robustness_numbers(runs)
    assert numbers is not None
    assert numbers["seeds"] == 3
    assert numbers["corruptions"]["blur_3"]["loss"]["proven"]


def test_a_run_without_all_corruptions_has_none(corrupted: Callable[[int], Path]) -> None:
    run = corrupted(0)
    (run / "robustness" / "jpeg_2.json").unlink()
    assert robustness_numbers([run]) is None
    assert robustness_numbers([]) is None
    with pytest.raises(ValueError, match="robustness lacks"):
        write_robustness(run)


def test_tables_show_the_variants_that_were_tested(corrupted: Callable[[int], Path]) -> None:
    run = corrupted(0)
    section = robustness_section({"a": robustness_numbers([run]), "b": None}, 0.95)
    lost, reached = section.blocks
    assert isinstance(lost, Table)
    assert isinstance(reached, Table)
    assert lost.header == ["images", "a"]
    assert [row[0] for row in reached.rows] == ["clean", *(corruption.name for corruption in CORRUPTIONS)]
    assert {row[0]: row[1] for row in lost.rows}["blur_3"].endswith("*")
    assert robustness_section({"b": None}, 0.95).blocks == []


def test_the_console_has_a_row_for_each(corrupted: Callable[[int], Path]) -> None:
    run = corrupted(0)
    table = write_robustness(run)
    assert len(table.splitlines()) == 2 + len(CORRUPTIONS)
    assert json.loads((run / "robustness.json").read_text())["seeds"] == 1

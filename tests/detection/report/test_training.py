"""Mirrors detection/report/training.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detection.pages.page import Figure
from detection.report.reading import RunFolder
from detection.report.training import training_figures, training_numbers


@pytest.fixture
def run(make_run: Callable[..., Path], tmp_path: Path) -> RunFolder:
    """A run that looked at its validation set at steps 100 and 200, of 2 images each."""
    folder = make_run(tmp_path / "run")
    return RunFolder(variant="net", seed=3, folder=folder, state="done")


FIGURE = {"key": "bbox.AP", "name": "AP"}


def append(folder: Path, entries: list[dict[str, Any]]) -> None:
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.writelines(json.dumps(entry) + "\n" for entry in entries)


def test_ap_stands_by_epoch_and_by_minute(run: RunFolder) -> None:
    append(run.folder, [{"iteration": 100, "seconds_per_step": 0.6}, {"iteration": 200, "seconds_per_step": 1.2}])
    (run.folder / "manifest.json").write_text(json.dumps([{"data": {"train": {"images": 50}}}]))
    found = training_numbers(run, FIGURE)
    assert (found["seed"], found["train_images"]) == (3, 50)
    assert found["AP"]["iterations"] == [100, 200]
    assert found["epochs"] == [4, 8]
    assert found["minutes"] == pytest.approx([1, 3])
    names = [
        block.name for block in training_figures({"net": {"training": [found]}}, "AP") if isinstance(block, Figure)
    ]
    assert names == ["training_loss", "training_AP_by_epochs", "training_AP_by_minutes"]


def test_a_run_without_times_and_manifest_has_its_iterations(run: RunFolder) -> None:
    found = training_numbers(run, FIGURE)
    assert (found["epochs"], found["minutes"], found["train_images"]) == (None, None, None)
    names = [
        block.name for block in training_figures({"net": {"training": [found]}}, "AP") if isinstance(block, Figure)
    ]
    assert names == ["training_loss"]


def test_arms_that_were_not_trained_have_no_curves() -> None:
    assert training_figures({"yolo": {"training": []}}, "AP") == []

"""Mirrors detection/report/classifiers.py: an experiment of classifiers on a handful of tiny images."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from detection.experiments import runs

BASE = """
backbone: {name: cifar_plain20, norm: bn}
data: {train: [CARD:train], test: [CARD:test], shorter_side: 32, longer_side: 32, augment: [], workers: 0}
solver: {iterations: 30, images_per_step: 4, checkpoint_every: 10, log_every: 10, layout: contiguous}
classification: {crop: 32, shorter_side: 32}
device: cpu
"""
DEPTH = """
base: base.yaml
allowed: [backbone.name]
variants:
  plain20: {}
  resnet20: {backbone: {name: cifar_resnet20}}
seeds: [3]
"""

Compare = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An experiment over red and blue images in CIFAR-10's layout."""
    folder, random = tmp_path_factory.mktemp("work"), np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 8)):
        for channel, name in ((0, "red"), (2, "blue")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 90, (32, 32, 3), dtype=np.uint8)
                pixels[..., channel] += 100
                Image.fromarray(pixels).save(folder / split / name / f"{number:04}.png")
    splits = {split: {"folder": split} for split in ("train", "test")}
    (folder / "card.yaml").write_text(
        yaml.safe_dump({"format": "image_folder", "root": str(folder), "classes": ["red", "blue"], "splits": splits})
    )
    (folder / "base.yaml").write_text(BASE.replace("CARD", str(folder / "card.yaml")))
    (folder / "depth.yaml").write_text(DEPTH)
    return folder


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """The command takes SIGTERM, here in the process of the tests."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def compare(resdet, folder) -> Compare:
    def call(*arguments: str, file: str = "depth.yaml", output: Path = folder / "out") -> Any:
        return resdet("compare", folder / file, "--output-dir", output, *arguments)

    return call


@pytest.mark.slow
def test_an_experiment_that_was_killed_goes_on_and_is_reported_anew_from_its_records(
    folder, tmp_path, compare, monkeypatch
) -> None:
    start, out = runs._start, folder / "out"

    def start_and_kill(run: runs.Run, *arguments: Any) -> Any:
        child = start(run, *arguments)
        if child is not None and str(run) == "resnet20/3":
            while child.process.poll() is None and not any(run.folder.glob("checkpoints/*.state.pt")):
                time.sleep(0.01)
            child.process.kill()
        return child

    with monkeypatch.context() as patch:
        patch.setattr(runs, "_start", start_and_kill)
        assert compare().status == 1
    assert runs.read_status(out / "runs/resnet20/3")["exit"] == -signal.SIGKILL
    again = compare()
    assert again.status == 0, again.err
    assert "plain20/3: done before" in again.out
    metrics = (out / "runs/resnet20/3/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in metrics if "loss/total" in line] == [10, 20, 30]
    report = (out / "report/report.md").read_text()
    for said in ("| plain20 | 1 |", "| `backbone.name` | cifar_plain20 | cifar_resnet20 |", "| plain20 | 0.27 | "):
        assert said in report
    records, kept = tmp_path / "records", ("checkpoints", "tensorboard", "report", "*.jpg")
    shutil.copytree(out, records, ignore=shutil.ignore_patterns(*kept))
    (folder / "test").rename(folder / "away")
    only = compare("--report-only", output=records)
    (folder / "away").rename(folder / "test")
    assert only.status == 0, only.err
    assert (records / "report/report.md").read_text() == report


def test_a_key_that_differs_and_is_not_allowed_is_refused(folder, compare) -> None:
    (folder / "unfair.yaml").write_text(DEPTH.replace("[backbone.name]", "[backbone.norm]"))
    refused = compare(file="unfair.yaml")
    assert refused.status == 1
    assert "backbone.name differs and is not allowed to: plain20 has 'cifar_plain20'" in refused.err


@pytest.mark.parametrize("option", ["--plan", "--robustness", "--latency-on=cpu"])
def test_what_only_detectors_have_is_refused(compare, option) -> None:
    refused = compare(option)
    assert refused.status == 1
    assert option.partition("=")[0] in refused.err

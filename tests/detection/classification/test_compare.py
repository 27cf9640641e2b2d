"""Mirrors detection/classification/compare.py."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection.classification.compare import compare_classifiers, dump_shares, image_statistic, read_shares
from detection.evaluation.jackknife import jackknife

IMAGES = 80


def write(folder: Path, right: Sequence[float], digest: str = "same") -> Path:
    folder.mkdir(parents=True)
    content = {"images": digest, "figures": {"classification.top1": list(right)}}
    (folder / "per_image.json").write_text(json.dumps(content))
    return folder


def answers(share: float, seed: int) -> list[float]:
    return [float(value) for value in np.random.default_rng(seed).random(IMAGES) < share]


def test_the_deviation_over_images_is_that_of_a_share() -> None:
    right = answers(0.7, 0)
    sample = jackknife(image_statistic({"classification.top1": right}), IMAGES)
    share = sum(right) / IMAGES
    assert sample.values.tolist() == [pytest.approx(share)]
    variance = float((sample.influence**2).sum())
    assert math.sqrt(variance) == pytest.approx(math.sqrt(share * (1 - share) / (IMAGES - 1)))


def test_a_clear_difference_is_claimed_and_none_is_not(tmp_path: Path, resdet: Callable[..., Any]) -> None:
    shares = {"weak": 0.2, "strong": 0.8, "same": 0.8}
    runs = {
        name: [write(tmp_path / name / str(seed), answers(share, 10 * place + seed)) for seed in range(3)]
        for place, (name, share) in enumerate(shares.items())
    }
    words = [f"{name}={','.join(map(str, own))}" for name, own in runs.items()]
    outcome = resdet("compare-classifiers", *words, "--output-dir", tmp_path / "report")
    assert outcome.status == 0, outcome.err
    assert "strong is better than weak by " in outcome.out
    assert "no difference shown between strong and same" in outcome.out
    result = json.loads((tmp_path / "report" / "comparison.json").read_text())
    strong = result["variants"]["strong"]["methods"]["classification.top1"]
    assert strong["low"] < strong["value"] < strong["high"]
    assert result["pairs"][0]["methods"]["classification.top1"]["proven"]


def test_one_seed_says_nothing_of_methods(tmp_path: Path) -> None:
    runs = {name: [write(tmp_path / name, answers(share, 1))] for name, share in (("a", 0.2), ("b", 0.9))}
    result = compare_classifiers(runs, tmp_path / "report")
    assert result["variants"]["a"]["methods"] is None
    assert "b is better than a" in (tmp_path / "report" / "report.md").read_text()
    assert "nothing is said of the methods, which takes" in (tmp_path / "report" / "report.md").read_text()


def test_mistakes_are_named(tmp_path: Path) -> None:
    one = write(tmp_path / "one", answers(0.5, 0))
    with pytest.raises(ValueError, match="takes two or more variants"):
        compare_classifiers({"a": [one]}, tmp_path)
    with pytest.raises(ValueError, match=r"absent has no per_image\.json"):
        compare_classifiers({"a": [one], "b": [tmp_path / "absent"]}, tmp_path)
    with pytest.raises(ValueError, match=r"other of b was tested on other images than .*one of a"):
        compare_classifiers({"a": [one], "b": [write(tmp_path / "other", answers(0.5, 0), "else")]}, tmp_path)


def test_shares_are_read_back_whole_and_take_a_bit_where_all_are_right_or_wrong(tmp_path: Path) -> None:
    right, part = [1, 0, 0, 1, 1, 0, 1, 1, 1, 0, 1], [0.5, 1.0]
    text = dump_shares({"images": "digest", "figures": {"top1": right, "F2": part}})
    (tmp_path / "per_image.json").write_text(text)
    assert read_shares(tmp_path) == ("digest", {"top1": right, "F2": part})
    assert json.loads(text)["figures"]["top1"] == {"bits": "m6A=", "count": 11}  # 10011011 101

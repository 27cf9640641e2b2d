"""Mirrors detection/classification/compare.py."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from detection.classification.compare import compare_classifiers, dump_shares, image_statistic, read_shares
from detection.evaluation.jackknife import jackknife

IMAGES = 80


def write(folder: Path, share: float, seed: int = 0, digest: str = "same") -> Path:
    """A run that was right in about this share of the images."""
    folder.mkdir(parents=True)
    figures = {"classification.top1": answers(share, seed)}
    (folder / "per_image.json").write_text(json.dumps({"images": digest, "figures": figures}))
    return folder


def answers(share: float, seed: int) -> list[float]:
    return [float(value) for value in np.random.default_rng(seed).random(IMAGES) < share]


def test_the_deviation_over_images_is_that_of_a_share() -> None:
    right = answers(0.7, 0)
    sample, share = jackknife(image_statistic({"classification.top1": right}), IMAGES), sum(right) / IMAGES
    assert sample.values.tolist() == [pytest.approx(share)]
    deviation = math.sqrt(float((sample.influence**2).sum()))
    assert deviation == pytest.approx(math.sqrt(share * (1 - share) / (IMAGES - 1)))


def test_a_clear_difference_is_claimed_and_none_is_not(tmp_path: Path, resdet) -> None:
    words = []
    for place, (name, share) in enumerate({"weak": 0.2, "strong": 0.8, "same": 0.8}.items()):
        runs = [str(write(tmp_path / name / str(seed), share, 10 * place + seed)) for seed in range(3)]
        words.append(f"{name}={','.join(runs)}")
    outcome = resdet("compare-classifiers", *words, "--output-dir", tmp_path / "report")
    assert outcome.status == 0, outcome.err
    assert "strong is better than weak by " in outcome.out
    assert "no difference shown between strong and same" in outcome.out
    result = json.loads((tmp_path / "report" / "comparison.json").read_text())
    strong = result["variants"]["strong"]["methods"]["classification.top1"]
    assert strong["low"] < strong["value"] < strong["high"]
    assert result["pairs"][0]["methods"]["classification.top1"]["proven"]


def test_one_seed_says_nothing_of_methods(tmp_path: Path) -> None:
    runs = {name: [write(tmp_path / name, share, 1)] for name, share in (("a", 0.2), ("b", 0.9))}
    assert compare_classifiers(runs, tmp_path / "report")["variants"]["a"]["methods"] is None
    said = (tmp_path / "report" / "report.md").read_text()
    assert "b is better than a" in said
    assert "nothing is said of the methods" in said


def test_mistakes_are_named(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one", 0.5), write(tmp_path / "other", 0.5, digest="else")
    for more, message in (
        ({}, "takes two or more variants"),
        ({"b": [tmp_path / "absent"]}, r"absent has no per_image\.json"),
        ({"b": [other]}, r"other of b was tested on other images than .*one of a"),
    ):
        with pytest.raises(ValueError, match=message):
            compare_classifiers({"a": [one], **more}, tmp_path)


def test_shares_are_read_back_whole_and_take_a_bit_where_all_are_right_or_wrong(tmp_path: Path) -> None:
    right, part = [1, 0, 0, 1, 1, 0, 1, 1, 1, 0, 1], [0.5, 1.0]
    text = dump_shares({"images": "digest", "figures": {"top1": right, "F2": part}})
    (tmp_path / "per_image.json").write_text(text)
    assert read_shares(tmp_path) == ("digest", {"top1": right, "F2": part})
    assert json.loads(text)["figures"]["top1"] == {"bits": "m6A=", "count": 11}  # 10011011 101

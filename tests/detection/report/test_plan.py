import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from detection.evaluation.planning import Design, SeedNoise, visible_gap
from detection.report.compare import plan_claims
from detection.report.plan import format_plan, read_pilot, stated_noise

DOCS = Path(__file__).parents[3] / "docs" / "experiments"
OLD_RUNS = Path(__file__).parents[2] / "old_runs"
BCCD = Path(__file__).parents[3] / "configs" / "experiments" / "bccd.yaml"


def test_stated_noise_is_of_one_training_and_of_a_difference_and_takes_no_data(tmp_path) -> None:
    noise = stated_noise(1.0, 0.5, 400)
    assert (noise.seed, noise.own) == (0.01, 0)
    assert noise.shared / math.sqrt(400) == pytest.approx(0.005)
    text = plan_claims(BCCD, tmp_path, stated=(1.0, 0.5), images=1000, gap=2.0)
    assert "1,000 images" in text
    assert "to see 2 AP" in text


def test_a_plan_says_what_is_seen_and_what_one_point_takes() -> None:
    noise, design = SeedNoise(seed=0.005, shared=0.05, own=0.0), Design(variants=2, seeds=5, images=500)
    text = format_plan(noise, design, gap=1.5)
    assert f"a true gap of {100 * visible_gap(noise, design):.1f} AP" in text
    assert "to see 1.5 AP: " in text
    assert [line.split()[0] for line in text.splitlines() if line[:1].isdigit()] == ["2", "3", "5", "8", "12", "20"]
    assert "500 images" in text
    assert "5,000 images" in text
    text = format_plan(noise, replace(design, seeds=1), gap=1)
    assert "with 1 seed nothing is said of methods" in text
    assert "inf" not in text


def test_the_pilot_is_a_report_also_of_an_older_version_unless_it_says_nothing_of_seeds(whole_report, tmp_path) -> None:
    noise, images = read_pilot(whole_report.parent / "report.json")
    assert images == 12
    found = json.loads((whole_report.parent / "report.json").read_text())["planning"]["noise"]
    assert (noise.seed, noise.shared, noise.own) == (found["seed"], found["shared"], found["own"])
    report = OLD_RUNS / "report_before_jackknife.json"
    noise, images = read_pilot(report)
    assert images == 72
    assert 0.01 < noise.seed < 0.05
    assert "4 variants" in plan_claims(BCCD, pilot=report)
    with pytest.raises(ValueError, match=r"no two variants with two seeds each.*--noise"):
        read_pilot(DOCS / "bccd_backbones" / "report.json")
    with pytest.raises(ValueError, match=r"no pilot .*report\.json: .*--pilot.*--noise"):
        plan_claims(BCCD, tmp_path)

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from detection.pages.page import Notice, Text
from detection.report.build import write_report
from detection.report.heads import by_head, heads_section
from detection.report.numbers import experiment_numbers, gather
from detection.report.reading import read_experiment

HEADS = {head: {name: f"{head}.{name}" for name in ("small", "large")} for head in ("roi", "dense")}
SKILLS = {"roi.small": 0.5, "roi.large": 0.95, "dense.small": 0.55, "dense.large": 0.9}
ARMS = [*SKILLS]


def folder(make_experiment: Any, *, broken: Sequence[tuple[str, int]] = (), **plan: Any) -> Path:
    """Writes an experiment with two heads."""
    output = make_experiment(SKILLS, seeds=(0, 1), broken=broken)
    known = json.loads((output / "experiment.json").read_text())
    known["differences"].append({"key": "architecture", "values": {arm: arm.partition(".")[0] for arm in ARMS}})
    (output / "experiment.json").write_text(json.dumps(known | {"heads": HEADS} | plan))
    return output


def section(output: Path) -> tuple[dict[str, Any], str]:
    """Returns the numbers of a report, and the words of its section."""
    experiment = read_experiment(output)
    numbers = experiment_numbers(experiment, gather(experiment, say=print))
    return numbers, " ".join(block.text for block in heads_section(numbers).blocks if isinstance(block, (Notice, Text)))


def test_gains_under_each_head_their_mean_and_what_it_says(make_experiment) -> None:
    page = write_report(folder(make_experiment, pool_seeds=True))
    numbers, text = json.loads((page.parent / "report.json").read_text()), (page.parent / "report.md").read_text()
    assert [(pair["a"], pair["b"]) for pair in numbers["pairs"]] == [(ARMS[0], ARMS[1]), (ARMS[2], ARMS[3])]
    (mean,), (interaction,) = numbers["heads"]["means"], numbers["heads"]["interactions"]
    gains = [pair["methods"]["AP"]["value"] for pair in numbers["pairs"]]
    assert mean["methods"]["AP"]["value"] == pytest.approx(sum(gains) / 2)
    assert mean["methods"]["AP"]["proven"]
    assert interaction["methods"]["AP"]["value"] == pytest.approx(gains[1] - gains[0])
    assert {"AP50", "VOC mAP"} <= interaction["detectors"].keys()
    assert text.count(mean["verdict"].partition(" [")[0]) == 2  # at the top, and in its section
    for part in ("## Across heads", "| head | small | large |", "| mean | +", "| dense \N{MINUS SIGN} roi |"):
        assert part in text
    assert "What differs: configuration keys, between heads." in text
    assert "| architecture | roi | dense |" in text


def test_an_arm_with_one_run_or_none_leaves_what_is_there(make_experiment) -> None:
    output = folder(make_experiment, broken=[("dense.large", 1)])
    numbers, text = section(output)
    (mean,) = numbers["heads"]["means"]
    assert mean["methods"] is None
    assert "which takes a second seed of dense.large" in text
    assert "these detectors, on other images" in mean["verdict"]
    (output / "runs" / "dense.large" / "0" / "status.json").unlink()
    numbers, text = section(output)
    assert (numbers["heads"]["means"], len(numbers["pairs"])) == ([], 1)
    assert "No two variants have finished runs under two heads" in text


def test_what_differs_is_told_by_head_by_variant_or_by_arm() -> None:
    told = {"architecture": "xxyy", "backbone.name": "abab", "parameters": (1, 2, 3, 4)}
    arms = [arm for named in HEADS.values() for arm in named.values()]
    entries = [(key, dict(zip(arms, values, strict=True))) for key, values in told.items()]
    assert by_head(entries, HEADS) == {
        "between heads": [("architecture", {"roi": "x", "dense": "y"})],
        "between variants": [("backbone.name", {"small": "a", "large": "b"})],
        "of every arm": [entries[2]],
    }

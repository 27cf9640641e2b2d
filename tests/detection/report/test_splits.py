import json
from pathlib import Path
from typing import Any

import pytest

from detection.report.reading import read_experiment
from detection.report.splits import copies_text, split_numbers, split_warnings

COPIES = {"count": 2, "examples": [["t/5.jpg", "t/1.jpg"]]}
LEAKAGE = {"test_images": 72, "train_images": 205, "unread": 0, "copies": {"count": 0, "examples": []}}


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def planned(make_experiment) -> Path:
    """An experiment of two variants and two seeds, tested on "card:test"."""
    output = make_experiment({"resnet18": 0.5, "resnet34": 0.9})
    change(output / "experiment.json", base={"data.train": ["card:train"], "data.test": ["card:test"]})
    for result in output.glob("runs/*/*/result.json"):
        change(result, tested_on=["card:test"])
    return output


def manifest(output: Path, run: str, **sets: tuple[int, str]) -> None:
    data = {name: {"images": images, "objects": 9, "sha256": sha} for name, (images, sha) in sets.items()}
    (output / "runs" / run / "manifest.json").write_text(json.dumps([{"data": data}]))


def test_the_planned_test_set_is_no_doubt(planned) -> None:
    for run in ("resnet18/0", "resnet18/1", "resnet34/0"):
        manifest(planned, run, train=(205, "a"), test=(72, "b"))
    found = split_numbers(read_experiment(planned))
    assert (found["tested_on"], found["shared"], found["unlike"]) == (None, [], {"train": [], "test": []})
    assert split_warnings({"splits": found, "leakage": LEAKAGE | {"near_copies": None}}) == []


def test_a_result_of_an_earlier_version_is_of_the_set_of_its_config(whole_experiment) -> None:
    found = split_numbers(read_experiment(whole_experiment))
    assert found["tested_on"] is None
    assert len(found["shared"]) == 1  # the fixture trains and tests on the same images
    (warning,) = split_warnings({"splits": found})
    assert found["shared"][0] in warning


def test_another_split_is_warned_of_in_all_runs_and_left_out_in_one(planned) -> None:
    change(planned / "runs/resnet34/1/result.json", tested_on=["card:val"])
    experiment = read_experiment(planned)
    (run,) = experiment.unfinished
    assert (run.variant, run.seed, run.state) == ("resnet34", 1, "failed")
    assert "card:val" in str(run.error)
    assert split_numbers(experiment)["tested_on"] is None
    for result in planned.glob("runs/*/*/result.json"):
        change(result, tested_on=["card:val"])
    (warning,) = split_warnings({"splits": split_numbers(read_experiment(planned))})
    assert "card:val" in warning
    assert "card:test" in warning


def test_data_that_changed_between_runs_are_warned_of(planned) -> None:
    manifest(planned, "resnet18/0", train=(205, "a"))
    manifest(planned, "resnet18/1", train=(205, "moved"))
    manifest(planned, "resnet34/0", train=(205, "with masks"))
    manifest(planned, "resnet34/1", train=(204, "with masks"))
    found = split_numbers(read_experiment(planned))
    assert found["unlike"] == {"train": ["resnet18, seed 1", "resnet34, seed 1"], "test": []}
    (warning,) = split_warnings({"splits": found})
    assert "resnet34, seed 1" in warning


@pytest.mark.parametrize("kind", ["copies", "near_copies"])
def test_copies_are_warned_of_with_number_and_example(kind) -> None:
    leakage = LEAKAGE | {"near_copies": None} | {kind: COPIES}
    (warning,) = split_warnings({"leakage": leakage})
    for part in ("2 of 72", "5.jpg", "1.jpg"):
        assert part in warning
    texts: Any = copies_text({"leakage": leakage})
    (text,) = texts
    assert "205" in text.text

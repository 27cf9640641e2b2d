"""Mirrors detection/experiments/comparison.py, with a small script in the trainings' place."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from detection.data.digits import write_digits
from detection.experiments.comparison import Comparison, measure_variant
from detection.experiments.detectors import DETECTORS
from detection.experiments.experiment import load_experiment
from detection.experiments.runs import Placement, Programs, read_status, write_status

# The AP is best at a rate of 0.02; rates above 0.03 diverge, and the backbone plain34 at any.
TRAINER = """
import json, pathlib, sys, yaml
option = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if "--costs" in option:
    out = pathlib.Path(option["--output-dir"])
    done = [path.parent for path in out.glob("runs/" + option["--costs"] + "/*/result.json")]
    (out / "costs").mkdir(exist_ok=True)
    content = {"gflops": 1.0, "weights": str(min(done)) if done else None}
    (out / "costs" / (option["--costs"] + ".json")).write_text(json.dumps(content))
    sys.exit()
option = dict(zip(sys.argv[2::2], sys.argv[3::2]))
config = yaml.safe_load(open(sys.argv[1]))
run, rate, name = pathlib.Path(option["--output-dir"]), config["solver"]["base_lr"], config["backbone"]["name"]
if rate > 0.03 or name == "plain34":
    sys.exit("error: loss is not finite")
run.mkdir(exist_ok=True)
lines = [{"iteration": i, "seconds_per_step": 2.0 if name == "resnet34" else 1.0} for i in range(1, 7)]
(run / "metrics.jsonl").write_text("".join(json.dumps(line) + chr(10) for line in lines))
(run / "result.json").write_text(json.dumps({"bbox": {"AP": 0.5 - abs(rate - 0.02)}}))
"""
BASE = """
backbone: {norm: gn, roi_size: 1}
data: {train: [digits:train], test: [digits:test]}
solver: {base_lr: 0.01, iterations: 100, steps: [50, 80], warmup_iterations: 10}
"""
GRID = {"name": "learning_rate_grid", "factors": [1, 2, 4], "validation": ["val.yaml:train"]}
CARD = {"format": "coco", "root": "val/coco", "classes": list("0123456789")}
CARD["splits"] = {"train": {"annotations": "annotations/instances_train.json", "images": "train"}}

Make = Callable[..., Comparison]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with digits, and other digits as val."""
    folder = tmp_path_factory.mktemp("data")
    write_digits(folder, num_train=2, num_test=1)
    write_digits(tmp_path_factory.mktemp("other"), num_train=1, num_test=1).rename(folder / "val")
    return folder


@pytest.fixture
def make(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "val.yaml").write_text(yaml.safe_dump(CARD))
    (tmp_path / "trainer.py").write_text(TRAINER)
    program = (sys.executable, str(tmp_path / "trainer.py"))

    def build(
        *backbones: str, seeds: tuple[int, ...] = (0, 1), say: Callable[[str], None] = print, **keys: Any
    ) -> Comparison:
        variants = {name: [f"backbone.name={name}"] for name in backbones or ("resnet18", "plain18")}
        values = {"base": "base.yaml", "seeds": list(seeds), "allowed": ["backbone.name"], "variants": variants} | keys
        (tmp_path / "swap.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        experiment = load_experiment("swap.yaml", [f"data.root={data}"])
        programs = Programs(program, (*program, "--output-dir", "out"))
        return Comparison(experiment, DETECTORS, Path("out"), programs, say=say)

    return build


def read(path: str) -> Any:
    return json.loads((Path("out") / path).read_text())


def rate(run: str) -> float:
    return yaml.safe_load((Path("out") / run / "config.yaml").read_text())["solver"]["base_lr"]


def test_every_variant_is_trained_with_every_seed_and_measured(make: Make) -> None:
    assert make().run()
    runs = sorted(str(path.parent) for path in Path("out/runs").glob("*/*/result.json"))
    assert runs == [f"out/runs/{name}/{seed}" for name in ("plain18", "resnet18") for seed in (0, 1)]
    seeds = [yaml.safe_load((Path(run) / "config.yaml").read_text())["seed"] for run in runs]
    assert seeds == [0, 1, 0, 1]
    assert read("experiment.json")["differences"][0]["key"] == "backbone.name"
    assert read("costs/plain18.json")["weights"] == "out/runs/plain18/0"


def test_heads_are_trained_with_every_variant_and_known_to_the_report(make: Make) -> None:
    heads = {"slow": {}, "fast": {"solver": {"base_lr": 0.02}}}
    assert make(heads=heads, seeds=(0,)).run()
    arms = [f"{head}.{name}" for head in heads for name in ("resnet18", "plain18")]
    assert sorted(path.parent.parent.name for path in Path("out/runs").glob("*/*/result.json")) == sorted(arms)
    assert (rate("runs/slow.plain18/0"), rate("runs/fast.plain18/0")) == (0.01, 0.02)
    assert read("experiment.json")["heads"]["fast"] == {"resnet18": "fast.resnet18", "plain18": "fast.plain18"}
    assert read("costs/fast.plain18.json")["weights"] == "out/runs/fast.plain18/0"


def test_a_second_call_trains_and_measures_nothing(make: Make) -> None:
    assert make().run()
    said: list[str] = []
    assert make(say=said.append).run()
    assert said == [f"{name}/{seed}: done before" for name in ("resnet18", "plain18") for seed in (0, 1)]


def test_all_runs_share_the_layout_that_was_chosen_first(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for layout in ("contiguous", "channels_last"):
        monkeypatch.setattr("detection.experiments.comparison.layout_of", lambda *_, own=layout: own)
        runs = make().seed_runs(make()._timed(write=True))
        assert {run.config.solver.layout for run in runs} == {"contiguous"}


def test_a_diverging_variant_is_reported_and_the_rest_is_done(make: Make) -> None:
    assert not make("resnet18", "plain34").run()
    assert read_status(Path("out/runs/plain34/1"))["error"] == "loss is not finite"
    assert read_status(Path("out/runs/resnet18/1"))["state"] == "done"
    assert read("costs/plain34.json")["weights"] is None


def test_a_smuggled_difference_stops_before_anything_is_written(make: Make) -> None:
    variants = {"a": ["backbone.name=resnet18"], "b": ["backbone.name=plain18", "solver.base_lr=0.02"]}
    for act in (Comparison.run, Comparison.plan, lambda comparison: comparison.run_one(0)):
        with pytest.raises(
            ValueError, match=r"solver\.base_lr differs and is not allowed to: a has 0\.01, b has 0\.02"
        ):
            act(make(variants=variants))
    assert not Path("out").exists()


def test_a_changed_experiment_does_not_go_on(make: Make) -> None:
    assert make().run()
    before = read("experiment.json")
    with pytest.raises(
        ValueError, match=r"resnet18/0/config\.yaml has solver\.iterations 100, the experiment now gives 90"
    ):
        make(overrides=["solver.iterations=90"]).run()
    assert read("experiment.json") == before


@pytest.mark.slow
def test_runs_of_other_code_are_flagged(make: Make) -> None:
    said: list[str] = []
    assert make().run()
    write_status(Path("out/runs/plain18/1"), "done", code="0" * 64)
    assert make(say=said.append).run()
    (entry,) = [entry for entry in read("experiment.json")["also_changes"] if entry["what"] == "code"]
    assert entry["values"]["plain18"] == "seed 1: 000000000000"
    assert said[0].startswith("warning: the code has changed since these runs: {'plain18': 'seed 1: 0000")


def test_an_index_is_one_run(make: Make) -> None:
    assert make().run_one(2)
    assert [str(path.parent) for path in Path("out").glob("runs/*/*/result.json")] == ["out/runs/plain18/0"]
    assert read("experiment.json")["name"] == "swap"
    with pytest.raises(ValueError, match="--index 4: the runs are numbered from 0 to 3; --dry-run lists them"):
        make().run_one(4)


def test_a_plan_lists_the_runs_with_states_and_hours(make: Make) -> None:
    make("resnet18", "resnet34").run_one(1)
    comparison = make("resnet18", "resnet34")
    plan = comparison.plan()
    rows = [line.split() for line in plan.splitlines()]
    assert rows[1] == ["0", "resnet18/0", "to", "do", "100", "1.00", "0.03"]
    assert rows[2] == ["1", "resnet18/1", "done", "100", "1.00", "0.03"]
    assert rows[4] == ["3", "resnet34/1", "to", "do", "100", "2.00", "0.06"]
    assert plan.endswith("0.1 hours of training left, 0.1 with 1 at once; tests not counted")
    assert not Path("out/plan.json").exists()


def test_equal_time_gives_steps_by_their_length_and_keeps_them(make: Make) -> None:
    protocol = {"name": "equal_time", "minutes": 4}
    with pytest.raises(ValueError, match=r"out/plan\.json is missing: run once with --dry-run"):
        make("resnet18", "resnet34", protocol=protocol).run_one(0)
    assert make("resnet18", "resnet34", protocol=protocol).run()
    solvers = [
        yaml.safe_load(Path(f"out/runs/{name}/0/config.yaml").read_text())["solver"]
        for name in ("resnet18", "resnet34")
    ]
    assert [solver["iterations"] for solver in solvers] == [240, 120]
    assert [solver["steps"] for solver in solvers] == [[120, 192], [60, 96]]
    assert [solver["warmup_iterations"] for solver in solvers] == [24, 12]
    keys = [difference["key"] for difference in read("experiment.json")["differences"]]
    assert keys == ["backbone.name", "solver.iterations", "solver.steps", "solver.warmup_iterations"]
    plan = Path("out/plan.json")
    plan.write_text(plan.read_text().replace("1.0", "1.5"))  # a slower machine would not change what was planned
    assert "160" in make("resnet18", "resnet34", protocol=protocol).plan()
    with pytest.raises(ValueError, match=r"out/plan\.json was made for 4\.0 minutes and .*, the experiment has 5\.0"):
        make("resnet18", "resnet34", protocol=protocol | {"minutes": 5}).run()


@pytest.mark.slow
def test_a_grid_is_searched_on_the_validation_set_and_its_best_rate_trained(make: Make) -> None:
    assert make(protocol=GRID).run()  # 0.04 diverges, which leaves the search with the others
    grid = read("grid.json")
    assert grid["validation"] == ["val.yaml:train"]
    assert grid["variants"]["plain18"] == {
        "scores": {"1": pytest.approx(0.49), "2": 0.5, "4": None},
        "chosen": 2.0,
        "base_lr": 0.02,
        "edge": False,
    }
    assert [rate(f"runs/plain18/{seed}") for seed in (0, 1)] == [0.02, 0.02]
    searched = yaml.safe_load(Path("out/grid/plain18/1/config.yaml").read_text())
    assert searched["data"]["test"] == ["val.yaml:train"]
    assert read_status(Path("out/runs/plain18/1"))["state"] == "done"


@pytest.mark.slow
def test_a_grid_grows_beyond_its_edge_for_all_variants(make: Make) -> None:
    said: list[str] = []
    protocol = GRID | {"factors": [0.5, 1], "extend": 3}
    assert make(protocol=protocol, say=said.append).run()
    assert any("lies at an edge: resnet18/2, plain18/2 are tried too" in line for line in said)
    found = read("grid.json")["variants"]
    assert [list(entry["scores"]) for entry in found.values()] == [["0.5", "1", "2", "4"]] * 2  # 4 diverges: enough
    assert [(entry["chosen"], entry["edge"]) for entry in found.values()] == [(2.0, False)] * 2
    assert rate("runs/resnet18/0") == 0.02


@pytest.mark.slow
def test_a_grid_that_grows_renumbers_no_run(make: Make) -> None:
    comparison = make(protocol=GRID | {"factors": [0.5, 1], "extend": 1})
    numbered = comparison.plan().splitlines()
    assert all(comparison.run_one(index) for index in range(4))
    grown = comparison.plan().splitlines()
    assert [line.split()[:3] for line in grown[1:9]] == [line.split()[:3] for line in numbered[1:9]]
    assert sum("search" in line for line in grown) == 6
    with pytest.raises(ValueError, match=r"not done yet: runs \[8, 9\]"):
        comparison.run_one(4)


@pytest.mark.slow
def test_a_run_over_the_minutes_of_equal_time_is_reported(make: Make) -> None:
    said: list[str] = []
    protocol = {"name": "equal_time", "minutes": 0.05}
    assert make("resnet18", "resnet34", protocol=protocol, say=said.append).run()
    assert any("resnet34/0 took 0.2 minutes of training, 0.05 were allowed" in line for line in said)


def test_an_array_trains_after_the_search(make: Make) -> None:
    comparison = make(protocol=GRID | {"factors": [1, 2]})
    with pytest.raises(
        ValueError, match=r"--index 4 needs the rates that the search finds; not done yet: runs \[0, 1, 2"
    ):
        comparison.run_one(4)
    assert all(comparison.run_one(index) for index in range(4))
    assert comparison.run_one(4)
    assert rate("runs/resnet18/0") == 0.02
    assert "search resnet18/1" in comparison.plan()


@pytest.mark.slow
def test_a_variant_without_a_rate_is_reported(make: Make) -> None:
    said: list[str] = []
    assert not make("resnet18", "plain34", protocol=GRID | {"factors": [1, 2]}, say=said.append).run()
    error = "no learning rate of the grid trained; grid.json and the logs in grid/ tell more"
    assert f"plain34: {error}" in said
    assert read_status(Path("out/runs/plain34/0"))["error"] == error
    assert read_status(Path("out/runs/resnet18/0"))["state"] == "done"
    assert set(read("experiment.json")["hashes"]["initial_weights"]) == {"resnet18", "plain34"}
    assert not make("resnet18", "plain34", protocol=GRID | {"factors": [1, 2]}).run_one(7)


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ({"validation": ["digits:test"]}, r"of data\.test \['digits:test'\] 1 are in"),
        ({"validation": ["digits:train"]}, "protocol.train or else data.train and protocol.validation share 2 images"),
    ],
)
def test_rates_are_not_chosen_on_images_that_are_tested_or_trained_on(
    make: Make, keys: dict[str, Any], names: str
) -> None:
    with pytest.raises(ValueError, match=names):
        make(protocol=GRID | keys).run()
    assert not Path("out/grid").exists()


def test_costs_of_an_unknown_variant(make: Make) -> None:
    with pytest.raises(ValueError, match="--costs vgg: the experiment has the variants resnet18, plain18"):
        measure_variant(make().experiment, DETECTORS, Path("out"), "vgg")


def test_costs_that_cannot_be_measured_are_reported(make: Make) -> None:
    said: list[str] = []
    comparison = make(say=said.append)
    broken = Programs(comparison.programs.train, (sys.executable, "-c", "raise OSError('no disk')"))
    assert not Comparison(comparison.experiment, DETECTORS, Path("out"), broken, Placement(2), said.append).run()
    assert "plain18: costs failed: OSError: no disk" in said

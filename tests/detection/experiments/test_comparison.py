import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from detection.experiments.comparison import Comparison, measure_variant
from detection.experiments.detectors import DETECTORS
from detection.experiments.experiment import load_experiment
from detection.experiments.runs import Programs, read_status, write_status

# The AP is best at a rate of 0.02; rates above 0.03 diverge, and the backbone plain34 at any.
TRAINER = """
if "--costs" in option:
    done = [path.parent for path in run.glob("runs/" + option["--costs"] + "/*/result.json")]
    (run / "costs").mkdir(exist_ok=True)
    content = {"gflops": 1.0, "weights": str(min(done)) if done else None}
    (run / "costs" / (option["--costs"] + ".json")).write_text(json.dumps(content))
    sys.exit()
rate, name = config["solver"]["base_lr"], config["backbone"]["name"]
if rate > 0.03 or name == "plain34":
    sys.exit("error: loss is not finite")
run.mkdir(exist_ok=True)
lines = [{"iteration": i, "seconds_per_step": 2.0 if name == "resnet34" else 1.0} for i in range(1, 7)]
(run / "metrics.jsonl").write_text("".join(json.dumps(line) + chr(10) for line in lines))
(run / "result.json").write_text(json.dumps({"bbox": {"AP": 0.5 - abs(rate - 0.02)}}))
"""
BASE = """
backbone: {norm: gn, roi_size: 1}
data: {train: [coco.yaml:train], test: [coco.yaml:test]}
solver: {base_lr: 0.01, iterations: 100, steps: [50, 80], warmup_iterations: 10, layout: contiguous}
"""
GRID = {"name": "learning_rate_grid", "factors": [1, 2, 4], "validation": ["coco.yaml:val"]}
KIND = replace(DETECTORS, hash_weights=lambda config, _: f"{config.backbone.name} {config.seed}")  # builds no network


@pytest.fixture
def make(tmp_path, card, said, program, write_swap, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = program(TRAINER)

    def build(*backbones: str, seeds: tuple[int, ...] = (0,), **keys: Any) -> Comparison[Any]:
        variants = {name: [f"backbone.name={name}"] for name in backbones or ("resnet18", "plain18")}
        write_swap(BASE, **{"seeds": [*seeds], "variants": variants, **keys})
        experiment = load_experiment("swap.yaml", [f"data.root={tmp_path}"])
        programs = Programs(trainer, (*trainer, "--output-dir", "out"))
        return Comparison(experiment, KIND, Path("out"), programs, say=said.append)

    return build


def read(path: str) -> Any:
    return json.loads((Path("out") / path).read_text())


def solver(run: str) -> dict[str, Any]:
    return yaml.safe_load((Path("out") / run / "config.yaml").read_text())["solver"]


def finished() -> list[str]:
    return sorted(str(path.parent.relative_to("out/runs")) for path in Path("out/runs").glob("*/*/result.json"))


def test_every_variant_is_trained_with_every_seed_and_measured_once(make, said) -> None:
    assert make(seeds=(0, 1)).run()
    assert finished() == [f"{name}/{seed}" for name in ("plain18", "resnet18") for seed in (0, 1)]
    seeds = [yaml.safe_load((Path("out/runs") / run / "config.yaml").read_text())["seed"] for run in finished()]
    assert seeds == [0, 1, 0, 1]
    before = read("experiment.json")
    assert before["differences"][0]["key"] == "backbone.name"
    assert read("costs/plain18.json")["weights"] == "out/runs/plain18/0"
    said.clear()
    assert make(seeds=(0, 1)).run()
    assert said == [f"{name}/{seed}: done before" for name in ("resnet18", "plain18") for seed in (0, 1)]
    with pytest.raises(ValueError, match=r"resnet18/0/config\.yaml has solver\.iterations 100, .* now gives 90"):
        make(seeds=(0, 1), overrides=["solver.iterations=90"]).run()
    assert read("experiment.json") == before
    write_status(Path("out/runs/plain18/1"), "done", code="0" * 64)  # a run of other code
    said.clear()
    assert make(seeds=(0, 1)).run()
    (entry,) = [entry for entry in read("experiment.json")["also_changes"] if entry["what"] == "code"]
    assert entry["values"]["plain18"] == "seed 1: 000000000000"
    assert said[0].startswith("warning: the code has changed since these runs: {'plain18': 'seed 1: 0000")


def test_heads_are_trained_with_every_variant_and_known_to_the_report(make) -> None:
    heads = {"slow": {}, "fast": {"solver": {"base_lr": 0.02}}}
    assert make(heads=heads).run()
    assert finished() == [f"{head}.{name}/0" for head in ("fast", "slow") for name in ("plain18", "resnet18")]
    assert [solver(f"runs/{head}.plain18/0")["base_lr"] for head in heads] == [0.01, 0.02]
    assert read("experiment.json")["heads"]["fast"] == {"resnet18": "fast.resnet18", "plain18": "fast.plain18"}
    assert read("costs/fast.plain18.json")["weights"] == "out/runs/fast.plain18/0"


def test_all_runs_share_the_layout_that_was_chosen_first(make, monkeypatch) -> None:
    for layout in ("contiguous", "channels_last"):
        monkeypatch.setattr("detection.experiments.comparison.layout_of", lambda *_, own=layout: own)
        comparison = make(overrides=["solver.layout=auto"])
        runs = comparison.seed_runs(comparison._timed(write=True))
        assert {run.config.solver.layout for run in runs} == {"contiguous"}


def test_a_diverging_variant_and_failed_costs_are_reported(make, said) -> None:
    assert not make("resnet18", "plain34").run()
    assert read_status(Path("out/runs/plain34/0"))["error"] == "loss is not finite"
    assert read_status(Path("out/runs/resnet18/0"))["state"] == "done"
    assert read("costs/plain34.json")["weights"] is None
    Path("out/costs/resnet18.json").unlink()
    comparison = make("resnet18", "plain34")
    broken = Programs(comparison.programs.train, (sys.executable, "-Sc", "raise OSError('no disk')"))
    assert not replace(comparison, programs=broken).run()
    assert "resnet18: costs failed: OSError: no disk" in said
    with pytest.raises(ValueError, match="--costs vgg: the experiment has the variants resnet18, plain34"):
        measure_variant(comparison.experiment, KIND, Path("out"), "vgg")


def test_a_smuggled_difference_stops_before_anything_is_written(make) -> None:
    variants = {"a": ["backbone.name=resnet18"], "b": ["backbone.name=plain18", "solver.base_lr=0.02"]}
    message = r"solver\.base_lr differs and is not allowed to: a has 0\.01, b has 0\.02"
    for act in (Comparison.run, Comparison.plan, lambda comparison: comparison.run_one(0)):
        with pytest.raises(ValueError, match=message):
            act(make(variants=variants))
    assert not Path("out").exists()


def test_an_index_is_one_run_and_a_plan_lists_them_with_states_and_hours(make) -> None:
    backbones, seeds = ("resnet18", "resnet34"), (0, 1)
    assert make(*backbones, seeds=seeds).run_one(1)
    assert finished() == ["resnet18/1"]
    assert read("experiment.json")["name"] == "swap"
    with pytest.raises(ValueError, match="--index 4: the runs are numbered from 0 to 3; --dry-run lists them"):
        make(*backbones, seeds=seeds).run_one(4)
    plan = make(*backbones, seeds=seeds).plan()
    rows = [line.split() for line in plan.splitlines()]
    assert rows[1] == ["0", "resnet18/0", "to", "do", "100", "1.00", "0.03"]
    assert rows[2] == ["1", "resnet18/1", "done", "100", "1.00", "0.03"]
    assert rows[4] == ["3", "resnet34/1", "to", "do", "100", "2.00", "0.06"]
    assert plan.endswith("0.1 hours of training left, 0.1 with 1 at once; tests not counted")
    assert not Path("out/plan.json").exists()


def test_equal_time_gives_steps_by_their_length_and_keeps_them(make, said) -> None:
    protocol = {"name": "equal_time", "minutes": 0.1}
    with pytest.raises(ValueError, match=r"out/plan\.json is missing: run once with --dry-run"):
        make("resnet18", "resnet34", protocol=protocol).run_one(0)
    plan = Path("out/plan.json")
    plan.parent.mkdir(exist_ok=True)
    assert make("resnet18", "resnet34", protocol=protocol).run()
    assert [solver(f"runs/{name}/0")["iterations"] for name in ("resnet18", "resnet34")] == [6, 3]
    assert any("resnet34/0 took 0.2 minutes of training, 0.1 were allowed" in line for line in said)
    plan.write_text(plan.read_text().replace("0.1", "4").replace("2.0", "1.5"))
    protocol["minutes"] = 4
    configs = make("resnet18", "resnet34", protocol=protocol)._timed(write=True)  # as planned, on a slower machine too
    found = [(c.solver.iterations, c.solver.steps, c.solver.warmup_iterations) for c in configs.values()]
    assert found == [(240, (120, 192), 24), (160, (80, 128), 16)]
    keys = [difference["key"] for difference in read("experiment.json")["differences"]]
    assert keys == ["backbone.name", "solver.iterations", "solver.steps", "solver.warmup_iterations"]
    with pytest.raises(ValueError, match=r"out/plan\.json was made for 4 minutes and .*, the experiment has 5\.0"):
        make("resnet18", "resnet34", protocol=protocol | {"minutes": 5}).run()


@pytest.mark.slow
def test_a_grid_grows_beyond_its_edge_and_its_best_rate_is_trained(make, said) -> None:
    assert make(protocol=GRID | {"factors": [0.5, 1], "extend": 3}).run()
    assert any("lies at an edge of the grid; also trying resnet18/2, plain18/2" in line for line in said)
    grid = read("grid.json")
    assert grid["validation"] == ["coco.yaml:val"]
    scores = {"0.5": pytest.approx(0.485), "1": pytest.approx(0.49), "2": 0.5, "4": None}  # 4 diverges: enough
    entry = {"scores": scores, "chosen": 2.0, "base_lr": 0.02, "edge": False}
    assert grid["variants"] == {"resnet18": entry, "plain18": entry}
    assert solver("runs/plain18/0")["base_lr"] == 0.02
    searched = yaml.safe_load(Path("out/grid/plain18/1/config.yaml").read_text())
    assert searched["data"]["test"] == ["coco.yaml:val"]
    assert read_status(Path("out/runs/plain18/0"))["state"] == "done"


@pytest.mark.slow
def test_a_grid_that_grows_renumbers_no_run(make) -> None:
    comparison = make(protocol=GRID | {"factors": [0.5, 1], "extend": 1})
    numbered = comparison.plan().splitlines()
    assert all(comparison.run_one(index) for index in range(4))
    grown = comparison.plan().splitlines()
    assert [line.split()[:3] for line in grown[1:7]] == [line.split()[:3] for line in numbered[1:7]]
    assert sum("search" in line for line in grown) == 6
    with pytest.raises(ValueError, match=r"runs \[6, 7\] are not done"):
        comparison.run_one(4)


def test_an_array_trains_after_the_search_and_a_variant_without_a_rate_is_reported(make, said) -> None:
    comparison = make("resnet18", "plain34", protocol=GRID | {"factors": [1, 2]})
    with pytest.raises(ValueError, match=r"--index 4 needs the rates .* runs \[0, 1, 2, 3\] are not done"):
        comparison.run_one(4)
    assert [comparison.run_one(index) for index in range(6)] == [True, True, False, False, True, False]
    assert solver("runs/resnet18/0")["base_lr"] == 0.02
    assert not comparison.run()
    error = "no learning rate of the grid trained; grid.json and the logs in grid/ tell more"
    assert f"plain34: {error}" in said
    assert read_status(Path("out/runs/plain34/0"))["error"] == error
    assert set(read("experiment.json")["hashes"]["initial_weights"]) == {"resnet18", "plain34"}


def test_rates_are_not_chosen_on_images_of_test_or_training(make) -> None:
    for validation, names in (
        ("coco.yaml:test", r"of data\.test \['coco\.yaml:test'\] 3 are in"),
        ("coco.yaml:train", "protocol.train or else data.train and protocol.validation share 4 images"),
    ):
        with pytest.raises(ValueError, match=names):
            make(protocol=GRID | {"validation": [validation]}).run()
    assert not Path("out/grid").exists()

import json

import pytest

from detection.config.detection import DetectionConfig, DetectorBackboneConfig, DetectorSolverConfig
from detection.config.sections import SolverConfig
from detection.evaluation.metrics import Metric
from detection.experiments.protocols import choose_rates, grow, over_budget, scale_solver, time_step
from detection.experiments.runs import Placement, Programs, Run, write_status

# Writes metrics of steps that take longer and longer, and what it was asked for beside itself.
TRAINER = """
if config["backbone"]["name"] == "broken":
    sys.exit("error: no such data")
run.mkdir()
pathlib.Path("asked.json").write_text(json.dumps([config["solver"], config["data"]["test"]]))
call = pathlib.Path("calls")
number = len(call.read_text()) if call.exists() else 0
call.write_text("x" * (number + 1))
seconds = [9] * 5 + [s + number / 10 for s in [1, 2, 3, 2, 50] * 3]
lines = [{"iteration": i, "seconds_per_step": s} for i, s in enumerate(seconds, 1)]
lines.append({"iteration": 20, "bbox.AP": 0.0})
(run / "metrics.jsonl").write_text("".join(json.dumps(line) + chr(10) for line in lines))
"""


def test_milestones_and_warm_up_keep_their_places() -> None:
    solver = SolverConfig(iterations=1000, steps=(600, 800), warmup_iterations=50, base_lr=0.3)
    scaled = scale_solver(solver, 250)
    assert (scaled.iterations, scaled.steps, scaled.warmup_iterations, scaled.base_lr) == (250, (150, 200), 12, 0.3)
    assert scale_solver(scaled, 250) == scaled


def test_a_step_s_time_is_the_median_of_trainings(program, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    programs = Programs(program(TRAINER), ())
    solver = DetectorSolverConfig(iterations=90000, log_every=20, checkpoint_every=10, evaluate_every=10)
    time = time_step(DetectionConfig(solver=solver), programs, Placement())
    assert (time.seconds, time.spread) == (2.1, pytest.approx(0.2 / 2.1))  # medians of 2.0, 2.1 and 2.2
    asked, test = json.loads((tmp_path / "asked.json").read_text())
    assert [asked[key] for key in ("iterations", "log_every", "checkpoint_every", "evaluate_every")] == [20, 1, 0, 0]
    assert test == []
    assert asked["base_lr"] < 1e-6  # so that nothing diverges
    broken = DetectionConfig(backbone=DetectorBackboneConfig(name="broken"))
    with pytest.raises(ValueError, match="a training with backbone broken does not start: no such data"):
        time_step(broken, programs, Placement())


def test_the_best_rate_of_each_variant_is_chosen(tmp_path, monkeypatch) -> None:
    def search(**variants: tuple[float | None, ...]) -> list[Run]:
        runs = list[Run]()  # finished, by their APs at the rates 0.5, 1 and 2; None: it failed, -1: no AP
        for variant, values in variants.items():
            for factor, ap in zip(("0.5", "1", "2")[-len(values) :], values, strict=True):
                config = DetectionConfig(solver=DetectorSolverConfig(base_lr=float(factor) / 100))
                runs.append(Run(variant, factor, config, tmp_path / variant / factor))
                write_status(runs[-1].folder, "done" if ap is not None else "failed", code="")
                if ap is not None:
                    content = {"bbox": {"AP": None if ap < 0 else ap}}
                    (runs[-1].folder / "result.json").write_text(json.dumps(content))
        return runs

    grid = choose_rates(search(a=(0.2, 0.4, 0.4), b=(None, -1.0, 0.0), c=(None, None, None), d=(0.3,)), "bbox.AP")
    assert grid["metric"] == "bbox.AP"
    assert grid["variants"] == {
        "a": {"scores": {"0.5": 0.2, "1": 0.4, "2": 0.4}, "chosen": 1.0, "base_lr": 0.01, "edge": False},
        "b": {"scores": {"0.5": None, "1": None, "2": 0.0}, "chosen": 2.0, "base_lr": 0.02, "edge": True},
        "c": {"scores": {"0.5": None, "1": None, "2": None}, "chosen": None, "base_lr": None, "edge": False},
        "d": {"scores": {"2": 0.3}, "chosen": 2.0, "base_lr": 0.02, "edge": False},  # a grid of one rate
    }
    error = Metric("bbox.AP", "error", lower_is_better=True)
    monkeypatch.setattr("detection.evaluation.metrics.METRICS", (error,))
    assert choose_rates(search(e=(0.2, 0.1, 0.3)), "bbox.AP")["variants"]["e"]["chosen"] == 1.0


def test_a_grid_grows_beyond_the_edge_that_one_chose_and_long_runs_are_over_the_budget() -> None:
    for factors, chosen, expected in (
        ((0.5, 2.0, 1.0), [1.0, 1.0], ()),
        ((0.5, 2.0, 1.0), [1.0, 2.0], (4.0,)),
        ((0.5, 2.0, 1.0), [0.5, None], (0.25,)),
        ((0.5, 2.0, 1.0), [0.5, 2.0], (0.25, 4.0)),
        ((0.5, 2.0, 1.0), [None, None], ()),
        ((1.0,), [1.0], ()),
    ):
        assert grow(factors, {str(number): {"chosen": best} for number, best in enumerate(chosen)}) == expected
    assert over_budget(10, {"a/0": 10.9 / 60, "b/0": 11.2 / 60}) == {"b/0": pytest.approx(11.2)}

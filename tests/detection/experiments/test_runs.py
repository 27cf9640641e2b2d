import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detection.config.detection import DetectionConfig, DetectorBackboneConfig, DetectorSolverConfig
from detection.experiments import runs as module
from detection.experiments.runs import Placement, Programs, Run, check_resumable, execute, read_status

# Trains one step after the other, each in a line of metrics.jsonl, and goes on from the last; the backbone's name says
# how it behaves.
TRAINER = """
import signal, time
name, steps = config["backbone"]["name"], config["solver"]["iterations"]
print("called with", sys.argv[1:], "GPU", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
metrics = run / "metrics.jsonl"
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
first = not (run / "again").exists()
for step in range(done + 1, steps + 1):
    if name == "diverging" and step == 2:
        sys.exit("error: loss is not finite at iteration 2")
    if first and step == 2 and name in ("killed", "slow", "preempted"):
        (run / "again").touch()
        if name == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "preempted":
            sys.exit(75)
        signal.signal(signal.SIGINT, lambda *_: sys.exit("error: saved"))
        (run / "waiting.tmp").write_text(str(os.getpid()))
        (run / "waiting.tmp").rename(run / "waiting")
        time.sleep(60)
    with metrics.open("a") as stream:
        record = {"iteration": step, "seconds_per_step": 36.0, "memory_gib": step / 4}
        stream.write(json.dumps(record) + chr(10))
if name != "forgetful":
    (run / "result.json").write_text("{}")
"""


@pytest.fixture
def make(tmp_path):
    def build(name: str, seed: int = 0, **solver: Any) -> Run:
        solver_config = DetectorSolverConfig(iterations=3, **solver)
        config = DetectionConfig(backbone=DetectorBackboneConfig(name=name), solver=solver_config, seed=seed)
        return Run(name, str(seed), config, tmp_path / "runs" / name / str(seed))

    return build


@pytest.fixture
def programs(program) -> Programs:
    return Programs(program(TRAINER), ())


@pytest.fixture
def run_all(programs):
    """The runs that are not done, and what was said."""

    def call(*runs: Run, **options: Any) -> tuple[list[Run], list[str]]:
        said: list[str] = []
        values = {"placement": Placement(), "code": "c0de", "say": said.append} | options
        return execute(runs, programs, **values), said

    return call


def test_a_run_is_trained_described_and_then_skipped(make, run_all) -> None:
    run = make("resnet18")
    assert run_all(run)[0] == []
    status = {"state": "done", "error": None, "exit": 0, "hours": 0.03, "peak_memory_gib": 0.75, "code": "c0de"}
    assert read_status(run.folder) == pytest.approx(status)
    log = (run.folder / "log.txt").read_text()
    assert "'--resume'" in log
    assert run_all(run, retry_failed=True) == ([], ["resnet18/0: done before"])
    assert (run.folder / "log.txt").read_text() == log
    data = replace(run.config.data, root="/elsewhere", workers=7)
    check_resumable([run, replace(run, config=replace(run.config, device="cpu", data=data))])  # it may go on elsewhere
    expected = f"{run.folder}/config.yaml has solver.base_lr 0.001, the experiment now gives 0.5: a run can't change"
    other = make("resnet34")
    with pytest.raises(ValueError, match=re.escape(expected)):
        run_all(other, make("resnet18", base_lr=0.5))
    assert not other.folder.exists()
    (run.folder / "config.yaml").write_text("nothing: 1")
    with pytest.raises(ValueError, match=r"config\.yaml can't be read: no config key 'nothing'.* remove .* to train"):
        check_resumable([run])


def test_a_diverging_run_is_reported_and_tried_again_on_request_only(make, run_all) -> None:
    runs = [make("diverging"), make("resnet18")]
    left, said = run_all(*runs)
    assert left == [runs[0]]
    assert module.is_done(runs[1].folder)
    assert "diverging/0: failed: loss is not finite at iteration 2" in said
    status, log = read_status(runs[0].folder), runs[0].folder / "log.txt"
    assert (status["state"], status["error"]) == ("failed", "loss is not finite at iteration 2")
    assert status["hours"] == pytest.approx(0.01)
    before = "diverging/0: failed before (loss is not finite at iteration 2); --retry-failed tries again"
    assert run_all(runs[0])[1] == [before]
    assert log.read_text().count("called with") == 1
    run_all(runs[0], retry_failed=True)
    assert log.read_text().count("called with") == 2


def test_a_killed_run_is_reported_and_goes_on_at_the_next_start(make, run_all) -> None:
    run = make("killed")
    left, said = run_all(run)
    assert left == [run]
    assert said[-1] == "killed/0: failed: ended by signal 9 (SIGKILL): killed, perhaps because memory ran out"
    metrics = run.folder / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole + '{"iteration": 2, "seco')  # a half-written line
    module.write_status(run.folder, "failed", code="")
    assert read_status(run.folder)["hours"] == pytest.approx(0.01)
    metrics.write_text(whole)
    assert run_all(run)[0] == []
    steps = [json.loads(line)["iteration"] for line in metrics.read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_a_run_that_was_told_to_stop_is_no_failure_and_one_without_a_result_is(make, run_all) -> None:
    run, forgetful = make("preempted"), make("forgetful")
    left, said = run_all(run)
    assert (left, said[-1]) == ([run], "preempted/0: stopped by a signal; the same command continues it")
    assert read_status(run.folder)["state"] == "running"
    assert run_all(run, forgetful)[0] == [forgetful]
    assert read_status(forgetful.folder)["error"].startswith("called with")


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_stops_the_children_and_the_next_start_goes_on(make, run_all, jobs) -> None:
    runs = [make("slow"), make("resnet18")]

    def press_ctrl_c() -> None:
        while not (runs[0].folder / "waiting").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press_ctrl_c).start()
    with pytest.raises(KeyboardInterrupt):
        run_all(*runs, placement=Placement(jobs))
    assert read_status(runs[0].folder)["state"] == "running"
    assert (runs[0].folder / "log.txt").read_text().endswith("error: saved\n")
    assert run_all(*runs)[0] == []
    assert (runs[0].folder / "metrics.jsonl").read_text().count("iteration") == 3


def test_a_child_keeps_the_lock_of_a_killed_parent(make, run_all, programs) -> None:
    run = make("slow")
    script = (
        "import sys; from pathlib import Path; from detection.experiments.runs import *;"
        "from detection.config.detection import *; solver = DetectorSolverConfig(iterations=3);"
        "config = DetectionConfig(backbone=DetectorBackboneConfig(name='slow'), solver=solver);"
        f"run = Run('slow', '0', config, Path({str(run.folder)!r}));"
        f"execute([run], Programs({programs.train!r}, ()), placement=Placement(), code='')"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[3], stdout=subprocess.DEVNULL)
    while not (run.folder / "waiting").exists():
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    (run.folder / "config.yaml").unlink()
    found = run_all(run)
    os.kill(int((run.folder / "waiting").read_text()), signal.SIGKILL)
    assert found == ([run], ["slow/0: skipped, as another process trains it"])
    assert not (run.folder / "config.yaml").exists()


def test_runs_at_once_take_turns_and_share_cores(make, run_all, monkeypatch) -> None:
    runs = [make("resnet18", seed) for seed in range(3)]
    assert run_all(*runs, placement=Placement(2, ("4", "7")))[0] == []
    seen = [re.findall("GPU (.)", (run.folder / "log.txt").read_text())[0] for run in runs]
    assert sorted(seen[:2]) == ["4", "7"]
    assert seen[2] in "47"
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert module.child_environment(Placement(3))["OMP_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in module.child_environment(Placement(1))
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert module.child_environment(Placement(3))["OMP_NUM_THREADS"] == "5"
    with pytest.raises(ValueError, match="--jobs takes a number from 1, got 0"):
        Placement(0)


def test_the_last_error_is_found_and_json_is_written_beside_and_renamed(tmp_path) -> None:
    said = ("a\nerror: no data\nb\n", 1), ("Traceback\n\nRuntimeError: x\n\n", 1), ("", 3)
    assert [module.last_error(*log) for log in said] == ["no data", "RuntimeError: x", "said nothing"]
    module.write_json(tmp_path / "new" / "a.json", {"b": [1]})
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"b": [1]}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]

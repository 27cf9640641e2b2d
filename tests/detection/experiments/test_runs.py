"""Mirrors detection/experiments/runs.py, with a small script in the trainings' place."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detection.config.detection import DetectionConfig, DetectorBackboneConfig, DetectorSolverConfig
from detection.experiments.runs import (
    Placement,
    Programs,
    Run,
    check_resumable,
    child_environment,
    execute,
    is_done,
    last_error,
    read_status,
    write_json,
)

# Trains one step after the other, each in a line of metrics.jsonl, and goes on from the last; the backbone's name says
# how it behaves.
TRAINER = """
import json, os, pathlib, signal, sys, time, yaml
option = dict(zip(sys.argv[2::2], sys.argv[3::2]))
config = yaml.safe_load(open(sys.argv[1]))
run, name, steps = pathlib.Path(option["--output-dir"]), config["backbone"]["name"], config["solver"]["iterations"]
print("called with", sys.argv[1:], "GPU", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
metrics = run / "metrics.jsonl"
if "--weights" not in option:
    done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    for step in range(done + 1, steps + 1):
        if name == "diverging" and step == 2:
            sys.exit("error: loss is not finite at iteration 2")
        if name == "killed" and step == 2 and not (run / "again").exists():
            (run / "again").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "preempted" and not (run / "again").exists():
            (run / "again").touch()
            sys.exit(75)
        if name == "slow" and step == 2 and not (run / "again").exists():
            (run / "again").touch()
            signal.signal(signal.SIGINT, lambda *_: sys.exit("error: saved"))
            (run / "waiting.tmp").write_text(str(os.getpid()))
            (run / "waiting.tmp").rename(run / "waiting")
            time.sleep(60)
        with metrics.open("a") as stream:
            record = {"iteration": step, "seconds_per_step": 36.0, "memory_gib": step / 4}
            stream.write(json.dumps(record) + chr(10))
if name == "forgetful":
    sys.exit()
(run / "result.json").write_text("{}")
"""


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    train = (sys.executable, "-S", "-c", f"import sys; sys.path = {sys.path!r}; exec(open({str(script)!r}).read())")
    return Programs(train, train)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Run]:
    def build(backbone: str, seed: int = 0, **solver: Any) -> Run:
        config = DetectionConfig(
            backbone=DetectorBackboneConfig(name=backbone),
            solver=DetectorSolverConfig(iterations=3, **solver),
            seed=seed,
        )
        return Run(backbone, str(seed), config, tmp_path / "runs" / backbone / str(seed))

    return build


def run_all(runs: list[Run], programs: Programs, **options: Any) -> tuple[list[Run], list[str]]:
    """The runs that are not done, and what was said."""
    said: list[str] = []
    left = execute(runs, programs, **{"placement": Placement(), "code": "c0de", "say": said.append} | options)
    return left, said


def test_a_run_is_trained_and_described(make: Callable[..., Run], programs: Programs) -> None:
    run = make("resnet18")
    assert run_all([run], programs)[0] == []
    status = {"state": "done", "error": None, "exit": 0, "hours": 0.03, "peak_memory_gib": 0.75, "code": "c0de"}
    assert read_status(run.folder) == pytest.approx(status)
    assert "'--resume'" in (run.folder / "log.txt").read_text()
    check_resumable([run])


def test_done_runs_are_skipped(make: Callable[..., Run], programs: Programs) -> None:
    run = make("resnet18")
    run_all([run], programs)
    log = (run.folder / "log.txt").read_text()
    left, said = run_all([run], programs, retry_failed=True)
    assert (left, said) == ([], ["resnet18/0: done before"])
    assert (run.folder / "log.txt").read_text() == log


def test_a_diverging_run_is_reported_and_the_rest_goes_on(make: Callable[..., Run], programs: Programs) -> None:
    runs = [make("diverging"), make("resnet18")]
    left, said = run_all(runs, programs)
    assert left == [runs[0]]
    assert is_done(runs[1].folder)
    assert "diverging/0: failed: loss is not finite at iteration 2" in said
    status = read_status(runs[0].folder)
    assert (status["state"], status["error"]) == ("failed", "loss is not finite at iteration 2")
    assert status["hours"] == pytest.approx(0.01)


def test_a_run_that_failed_by_itself_is_tried_again_on_request_only(
    make: Callable[..., Run], programs: Programs
) -> None:
    run = make("diverging")
    run_all([run], programs)
    log = run.folder / "log.txt"
    assert run_all([run], programs)[1] == [
        "diverging/0: failed before (loss is not finite at iteration 2); --retry-failed tries again"
    ]
    assert log.read_text().count("called with") == 1
    run_all([run], programs, retry_failed=True)
    assert log.read_text().count("called with") == 2


def test_a_killed_run_is_reported_and_goes_on_at_the_next_start(make: Callable[..., Run], programs: Programs) -> None:
    run = make("killed")
    left, said = run_all([run], programs)
    assert left == [run]
    assert said[-1] == "killed/0: failed: ended by signal 9 (SIGKILL): killed, perhaps because memory ran out"
    assert run_all([run], programs)[0] == []
    steps = [json.loads(line)["iteration"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_a_run_that_was_told_to_stop_is_no_failure(make: Callable[..., Run], programs: Programs) -> None:
    run = make("preempted")
    left, said = run_all([run], programs)
    assert left == [run]
    assert said[-1] == "preempted/0: stopped from outside; the next start goes on"
    assert read_status(run.folder)["state"] == "running"
    assert run_all([run], programs)[0] == []


def test_a_run_without_a_result_is_a_failure(make: Callable[..., Run], programs: Programs) -> None:
    run = make("forgetful")
    assert run_all([run], programs)[0] == [run]
    assert read_status(run.folder)["error"].startswith("called with")


@pytest.mark.parametrize("whom", ["--jobs 1", "--jobs 2"])
def test_ctrl_c_stops_the_children_and_the_next_start_goes_on(
    make: Callable[..., Run], programs: Programs, whom: str
) -> None:
    runs = [make("slow"), make("resnet18")]

    def press_ctrl_c() -> None:
        while not (runs[0].folder / "waiting").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press_ctrl_c).start()
    with pytest.raises(KeyboardInterrupt):
        run_all(runs, programs, placement=Placement(int(whom[-1])))
    assert read_status(runs[0].folder)["state"] == "running"
    assert (runs[0].folder / "log.txt").read_text().endswith("error: saved\n")
    assert run_all(runs, programs)[0] == []
    assert (runs[0].folder / "metrics.jsonl").read_text().count("iteration") == 3


def test_a_run_in_the_hands_of_another_process_is_left_alone(make: Callable[..., Run], programs: Programs) -> None:
    run = make("resnet18")
    run.folder.mkdir(parents=True)
    with (run.folder / "compare.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        left, said = run_all([run], programs)
    assert (left, said) == ([run], ["resnet18/0: another process trains it; left alone"])
    assert not (run.folder / "config.yaml").exists()


def test_a_child_keeps_its_run_locked_when_the_parent_is_killed(make: Callable[..., Run], programs: Programs) -> None:
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
    said = run_all([run], programs)[1]
    os.kill(int((run.folder / "waiting").read_text()), signal.SIGKILL)
    assert said == ["slow/0: another process trains it; left alone"]


def test_a_run_that_began_with_another_config_is_refused_before_anything_starts(
    make: Callable[..., Run], programs: Programs
) -> None:
    run, changed = make("resnet18"), make("resnet18", base_lr=0.5)
    run_all([run], programs)
    expected = f"{run.folder}/config.yaml has solver.base_lr 0.001, the experiment now gives 0.5: a run can't change"
    other = make("resnet34")
    with pytest.raises(ValueError, match=re.escape(expected)):
        run_all([other, changed], programs)
    assert not other.folder.exists()


def test_a_run_may_go_on_elsewhere(make: Callable[..., Run], programs: Programs) -> None:
    run = make("resnet18")
    run_all([run], programs)
    moved = replace(run.config, device="cpu", data=replace(run.config.data, root="/elsewhere", workers=7))
    check_resumable([replace(run, config=moved)])


def test_a_broken_config_of_a_run_is_named(make: Callable[..., Run]) -> None:
    run = make("resnet18")
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text("nothing: 1")
    with pytest.raises(
        ValueError, match=r"config\.yaml can't be read: no config key 'nothing'.* remove .* to train it"
    ):
        check_resumable([run])


def test_runs_take_turns_on_the_gpus(make: Callable[..., Run], programs: Programs) -> None:
    runs = [make("resnet18", seed) for seed in range(3)]
    assert run_all(runs, programs, placement=Placement(2, ("4", "7")))[0] == []
    seen = [re.findall("GPU (.)", (run.folder / "log.txt").read_text())[0] for run in runs]
    assert sorted(seen[:2]) == ["4", "7"]
    assert seen[2] in "47"


def test_runs_at_once_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert child_environment(Placement(3))["OMP_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in child_environment(Placement(1))
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert child_environment(Placement(3))["OMP_NUM_THREADS"] == "5"


def test_jobs_must_be_positive() -> None:
    with pytest.raises(ValueError, match="--jobs takes a number from 1, got 0"):
        Placement(0)


@pytest.mark.parametrize(
    ("log", "code", "message"),
    [
        ("a\nerror: no data\nb\n", 1, "no data"),
        ("Traceback\n\nRuntimeError: x\n\n", 1, "RuntimeError: x"),
        ("", 3, "said nothing"),
        ("fine\n", -15, "ended by signal 15 (SIGTERM): killed, perhaps because memory ran out"),
    ],
)
def test_the_last_error_is_found(log: str, code: int, message: str) -> None:
    assert last_error(log, code) == message


def test_hours_leave_out_a_half_written_line(make: Callable[..., Run], programs: Programs) -> None:
    run = make("killed")
    run_all([run], programs)
    with (run.folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"iteration": 2, "seco')
    (run.folder / "again").unlink()
    run_all([run], programs)
    assert read_status(run.folder)["hours"] == pytest.approx(0.01)


def test_json_is_written_beside_and_renamed(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", {"b": [1]})
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"b": [1]}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]

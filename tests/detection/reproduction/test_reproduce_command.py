import json
import os
import signal
import subprocess
import sys
import time

import pytest

JOBS = ("vgg16_voc07", "resnet101_voc07", "vgg16_voc12", "resnet101_voc12")


def test_plan_names_what_is_missing_and_measures_nothing(succeeds, tmp_path, tiny) -> None:
    plan = succeeds("reproduce", "table7", "--dry-run", "--output-dir", tmp_path / "out", f"data.root={tmp_path}")
    for named in (f"resdet download voc2007 --root {tmp_path}", "80000 + 40000 + 80000 + 40000, 0 done"):
        assert named in plan
    assert plan.count("not measured") >= len(JOBS)
    assert "vgg16-397923af.pth" in plan
    assert not (tmp_path / "out").exists()
    plan = succeeds("reproduce", "table10", "--dry-run", "--output-dir", tmp_path, *tiny)  # data in their real layouts
    for kind, named in (("weights", "the run resnet101_context_trainval"), ("missing", "resnet101_context_trainval")):
        assert f"  {kind}  {named}\n" in plan
    assert "resdet download" not in plan


def test_runs_that_can_not_run_leave_a_table(resdet, tmp_path) -> None:
    outcome = resdet("reproduce", "table8", "--output-dir", tmp_path, f"data.root={tmp_path}")
    assert outcome.status == 1
    written = json.loads((tmp_path / "table8.json").read_text())
    assert [(figure["value"], figure["verdict"]) for figure in written["figures"]] == [(None, "not run")] * 4


@pytest.mark.slow
def test_measured_steps_give_hours(resdet, tmp_path, tiny) -> None:
    outcome = resdet("reproduce", "table8", "--dry-run", "--time", "--output-dir", tmp_path, *tiny)
    times = json.loads((tmp_path / "times.json").read_text())
    assert set(times) == {"vgg16_coco", "resnet101_coco"}
    assert set(times["vgg16_coco"]["seconds_per_step"]) == {"step1", "step2", "step3", "step4"}
    assert "by a measured step on" in outcome.out


@pytest.mark.slow
def test_table_9_tests_every_row_once(succeeds, tmp_path, tiny) -> None:
    arguments = ("reproduce", "table9", "--output-dir", tmp_path, *tiny, "data.limit=1")
    said = succeeds(*arguments)
    rows = {file: file.stat().st_mtime_ns for file in (tmp_path / "table9_methods").glob("*/result.json")}
    assert sorted(file.parent.name for file in rows) == ["0", "1", "2", "3", "4"]
    assert "48.4 / 27.2" in said
    succeeds(*arguments)
    assert {file: file.stat().st_mtime_ns for file in rows} == rows


@pytest.mark.faults
def test_a_killed_reproduction_goes_on_to_the_table(tmp_path, tiny) -> None:
    def finished() -> dict[str, int]:
        """The times at which the checkpoints of trainings were written, by run directory."""
        files = tmp_path.glob("*/step*/checkpoints/*.safetensors")
        return {str(file.parent.parent.relative_to(tmp_path)): file.stat().st_mtime_ns for file in files}

    command = [sys.executable, "-m", "resdet", "reproduce", "table7", "--output-dir", str(tmp_path), *tiny]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "first.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        while not (tmp_path / JOBS[1] / "step3" / "metrics.jsonl").is_file():  # in the middle of a training
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = finished()
    ended = [(JOBS[1], 1), (JOBS[1], 2), *((JOBS[0], number) for number in (1, 2, 3, 4))]
    assert sorted(before) == [f"{job}/step{number}" for job, number in ended]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    after = finished()
    assert {folder.partition("/")[0] for folder in after} == set(JOBS)
    assert {folder: after[folder] for folder in before} == before
    figures = json.loads((tmp_path / "table7.json").read_text())["figures"]
    assert [figure["value"] is not None for figure in figures] == [True, True, False, False]
    assert {figure["verdict"] for figure in figures} == {"", "trained; VOC's server measures it"}
    assert "VGG-16, VOC 2007 test" in done.stdout
    assert "not the paper's recipe" in done.stdout

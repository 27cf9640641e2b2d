import json
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from detection.data.digits import write_digits
from detection.experiments import runs
from detection.experiments.comparison import Comparison
from detection.experiments.runs import Placement
from detection.report import compare

BASE = """
backbone: {norm: gn, roi_size: 2}
anchors: {sizes: [16, 32]}
rpn: {channels: 16, allow_outside: true, pre_nms_train: 64, pre_nms_test: 64, post_nms_train: 16, post_nms_test: 16}
box: {samples_per_image: 16}
test: {score_threshold: 0.01}
data: {train: [digits:train], test: [digits:test], shorter_side: 64, longer_side: 96, workers: 0}
solver: {iterations: 2, images_per_step: 2, log_every: 1}
device: cpu
"""
# The second diverges: a rate of 1e30 is more than float32 weights can take.
SWAP = """
base: base.yaml
allowed: [backbone.name, solver.base_lr]
variants:
  plain: {backbone: {name: plain18}}
  diverging: [backbone.name=resnet18, solver.base_lr=1.0e+30]
seeds: [3]
"""
CLASSIFIER = """
backbone: {name: cifar_plain20, norm: bn}
data: {train: [CARD:train], test: [CARD:test], shorter_side: 32, longer_side: 32, augment: [], workers: 0}
solver: {iterations: 30, images_per_step: 4, checkpoint_every: 10, log_every: 10, layout: contiguous}
classification: {crop: 32, shorter_side: 32}
device: cpu
"""
DEPTH = """
base: base.yaml
allowed: [backbone.name]
variants:
  plain20: {}
  resnet20: {backbone: {name: cifar_resnet20}}
seeds: [3]
"""


@pytest.fixture(autouse=True)
def own_signals():
    """The command takes SIGTERM, here in the process of the tests."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    write_digits(folder / "data", num_train=4, num_test=3)
    (folder / "base.yaml").write_text(BASE)
    (folder / "swap.yaml").write_text(SWAP)
    return folder


@pytest.fixture
def run(resdet, folder):
    """The exit status, and what was printed."""

    def call(*arguments: str) -> tuple[int, str]:
        given = (folder / "swap.yaml", "--output-dir", folder / "out", f"data.root={folder / 'data'}")
        outcome = resdet("compare", *given, *arguments)
        return outcome.status, outcome.out + outcome.err

    return call


@pytest.mark.slow
def test_an_experiment_with_a_diverging_variant_is_finished_and_reported(folder, run) -> None:
    status, said = run("--jobs", "2")
    out = folder / "out"
    assert status == 1
    assert said.endswith("error: not every run is done; the lines above and status.json of each run say why\n")
    assert re.search("diverging/3: failed: .*not finite", said)
    assert "plain/3: done" in said
    assert f"report: {out / 'report' / 'report.html'}" in said
    assert (out / "runs/plain/3/result.json").is_file()
    plain, diverging = (json.loads((out / f"costs/{name}.json").read_text()) for name in ("plain", "diverging"))
    assert (plain["weights"], diverging["weights"]) == (str(out / "runs/plain/3"), None)
    assert plain["gflops"] == pytest.approx(diverging["gflops"], rel=0.05)
    assert "diverging" in (out / "report" / "report.md").read_text()


def test_what_the_command_calls(folder, run, monkeypatch) -> None:
    calls: list[Any] = []

    def note(name: str) -> Any:
        def stand_in(comparison: Comparison, *args: Any, **options: Any) -> Any:
            calls.append((name, args, options, comparison))
            return True

        return stand_in

    def write_report(output: Path) -> Path:
        calls.append(("report", output))
        return output / "report.html"

    for name in ("run", "run_one"):
        monkeypatch.setattr(Comparison, name, note(name))
    monkeypatch.setattr(Comparison, "plan", lambda _: "the plan")
    monkeypatch.setattr(compare, "write_report", write_report)
    assert run("--index", "1", "--retry-failed", "--gpus", "2")[0] == 0  # leaves the report to the end
    ((name, args, options, comparison),) = calls
    assert (name, args, options) == ("run_one", (1,), {"retry_failed": True})
    assert comparison.placement == Placement(1, ("2",))
    calls.clear()
    assert run("--gpus", "0,5") == (0, f"report: {folder / 'out' / 'report.html'}\n")
    assert [call[0] for call in calls] == ["run", "report"]
    comparison = calls[0][3]
    assert comparison.placement == Placement(2, ("0", "5"))  # jobs default to the GPUs
    assert comparison.programs.train == (sys.executable, "-m", "resdet", "train")
    assert comparison.programs.costs[-1] == f"data.root={folder / 'data'}"
    calls.clear()
    assert run("--report-only")[0] == 0
    assert run("--dry-run") == (0, "the plan\n")
    assert [call[0] for call in calls] == ["report"]


def test_mistakes_end_with_a_line(run) -> None:
    assert run("--jobs", "0") == (1, "error: --jobs takes a number from 1, got 0\n")
    unknown = "error: variant 'plain': no config key 'solver.bas_lr'; did you mean 'solver.base_lr'?\n"
    assert run("solver.bas_lr=1")[1] == unknown
    costs = "error: --costs other: the experiment has the variants plain, diverging\n"
    assert run("--costs", "other")[1] == costs


class TestClassifiers:
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, write_colors, tmp_path_factory) -> Path:
        """An experiment over red and blue images in CIFAR-10's layout."""
        folder = tmp_path_factory.mktemp("classifiers")
        write_colors(folder, train=6, test=8)
        (folder / "base.yaml").write_text(CLASSIFIER.replace("CARD", str(folder / "card.yaml")))
        (folder / "depth.yaml").write_text(DEPTH)
        (folder / "unfair.yaml").write_text(DEPTH.replace("[backbone.name]", "[backbone.norm]"))
        return folder

    @pytest.mark.slow
    def test_a_killed_one_goes_on_and_its_records_report_it(self, folder, tmp_path, resdet, succeeds, monkeypatch):
        start, out, command = runs._start, folder / "out", ("compare", folder / "depth.yaml", "--output-dir")

        def start_and_kill(run: runs.Run, *arguments: Any) -> Any:
            child = start(run, *arguments)
            if child is not None and str(run) == "resnet20/3":
                while child.process.poll() is None and not any(run.folder.glob("checkpoints/*.state.pt")):
                    time.sleep(0.01)
                child.process.kill()
            return child

        with monkeypatch.context() as patch:
            patch.setattr(runs, "_start", start_and_kill)
            assert resdet(*command, out).status == 1
        assert runs.read_status(out / "runs/resnet20/3")["exit"] == -signal.SIGKILL
        again = succeeds(*command, out)
        assert "plain20/3: done before" in again
        metrics = (out / "runs/resnet20/3/metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["iteration"] for line in metrics if "loss/total" in line] == [10, 20, 30]
        report = (out / "report/report.md").read_text()
        for said in ("| plain20 | 1 |", "| `backbone.name` | cifar_plain20 | cifar_resnet20 |", "| plain20 | 0.27 | "):
            assert said in report
        records, left_out = tmp_path / "records", ("checkpoints", "tensorboard", "report", "*.jpg")
        shutil.copytree(out, records, ignore=shutil.ignore_patterns(*left_out))
        (folder / "test").rename(folder / "away")
        succeeds(*command, records, "--report-only")
        (folder / "away").rename(folder / "test")
        assert (records / "report/report.md").read_text() == report

    def test_what_is_unfair_and_what_only_detectors_have_is_refused(self, folder, resdet, tmp_path) -> None:
        refused = resdet("compare", folder / "unfair.yaml", "--output-dir", tmp_path)
        assert refused.status == 1
        assert "backbone.name differs and is not allowed to: plain20 has 'cifar_plain20'" in refused.err
        for option in ("--plan", "--robustness", "--latency-on=cpu"):
            refused = resdet("compare", folder / "depth.yaml", "--output-dir", tmp_path, option)
            assert refused.status == 1
            assert option.partition("=")[0] in refused.err

"""The commands methods and alternating, on a handful of tiny images."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from detection.data.digits import write_digits
from detection.engine.log import RunLog

Resdet = Callable[..., Any]
CONFIG = """
backbone: {name: resnet18, norm: gn, roi_size: 2}
anchors: {sizes: [16, 32]}
rpn: {channels: 16, allow_outside: true, pre_nms_train: 64, pre_nms_test: 64, post_nms_train: 16, post_nms_test: 16}
box: {samples_per_image: 16}
test: {score_threshold: 0.01}
data: {train: [digits:train], test: [digits:test], shorter_side: 64, longer_side: 96, workers: 0}
solver: {images_per_step: 2, log_every: 1}
alternating: {rpn_iterations: 2, rpn_steps: [], box_iterations: 1, box_steps: []}
device: cpu
"""
TABLE = """
rows:
  - {name: plain, paper: 1.0 / 2.0}
  - {name: + context, needs: context}
  - {name: + flip, test: {flip: true}}
  - {name: + ensemble, needs: ensemble}
"""


@dataclass(frozen=True, slots=True)
class Workspace:
    """A data set, a config file, a table, and a run of the four steps."""

    resdet: Resdet
    root: Path
    config: Path
    table: Path
    run: Path
    trained: Any


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, resdet: Resdet) -> Workspace:
    root = write_digits(tmp_path_factory.mktemp("data"), num_train=4, num_test=2).parent
    folder = tmp_path_factory.mktemp("work")
    config, table, run = folder / "tiny.yaml", folder / "table.yaml", folder / "run"
    config.write_text(CONFIG)
    table.write_text(TABLE)
    trained = resdet("alternating", config, "--output-dir", run, f"data.root={root}")
    return Workspace(resdet, root, config, table, run, trained)


def run_alternating(workspace: Workspace, *arguments: str | Path) -> Any:
    options = (workspace.config, "--output-dir", workspace.run, f"data.root={workspace.root}")
    return workspace.resdet("alternating", *options, *arguments)


def run_methods(workspace: Workspace, output: Path, *arguments: str | Path) -> Any:
    options = (workspace.config, "--weights", workspace.run / "step4", "--table", workspace.table)
    return workspace.resdet("methods", *options, "--output-dir", output, *arguments, f"data.root={workspace.root}")


def table_of(out: str) -> list[str]:
    """The lines of the printed table."""
    lines = out.splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.split()[:2] == ["AP50", "AP"]]
    return lines[start:]


@pytest.mark.slow
class TestTrainAlternating:
    """All four steps from one command."""

    def test_ends_well_and_shows_the_figures_of_the_last_step(self, workspace: Workspace) -> None:
        assert workspace.trained.status == 0
        for number in (1, 2, 3, 4):
            assert f"step {number} of 4: {workspace.run / f'step{number}'}" in workspace.trained.out
        assert workspace.trained.out.count("COCO box AP") == 1
        assert (workspace.run / "step4" / "result.json").is_file()

    def test_second_call_has_nothing_to_do(self, workspace: Workspace) -> None:
        again = run_alternating(workspace)
        assert again.status == 0
        done = [f"step {number} is done: {workspace.run / f'step{number}'}" for number in (1, 2, 3)]
        assert again.out.splitlines()[:3] == done
        assert f"{workspace.run / 'step4'} is finished, at iteration 1;" in again.out

    def test_what_a_signal_advises_goes_on(self, workspace: Workspace, tmp_path: Path) -> None:
        record = RunLog.metrics

        def interrupt(log: RunLog, iteration: int, values: Mapping[str, float]) -> None:
            record(log, iteration, values)
            os.kill(os.getpid(), signal.SIGTERM)

        options = ("--output-dir", tmp_path, "data.limit=2")  # of 4 images, the same in every step
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunLog, "metrics", interrupt)
            stopped = run_alternating(workspace, *options)
        assert stopped.status == 75
        assert "the same command with --resume goes on" in stopped.err
        outcome = run_alternating(workspace, *options, "--resume")
        assert (outcome.status, outcome.err) == (0, "")
        assert "2 images" in outcome.out
        assert json.loads((tmp_path / "step4" / "result.json").read_text())["images"] == 2

    def test_overrides_reach_the_steps(self, workspace: Workspace, tmp_path: Path) -> None:
        override = ("--output-dir", tmp_path, "alternating.rpn_iterations=1", "data.test=[]")
        outcome = run_alternating(workspace, *override)
        assert outcome.status == 0
        steps = [sorted((tmp_path / f"step{n}" / "checkpoints").glob("*.safetensors"))[-1].stem for n in (1, 2, 3, 4)]
        assert steps == ["0000001"] * 4

    def test_unknown_key_is_named(self, workspace: Workspace) -> None:
        outcome = run_alternating(workspace, "alternating.rpn_iteration=5")
        assert outcome.err.startswith("error: no config key 'alternating.rpn_iteration'; did you mean")

    def test_loss_that_is_not_finite_is_an_error_without_a_traceback(
        self, workspace: Workspace, tmp_path: Path
    ) -> None:
        outcome = run_alternating(workspace, "--output-dir", tmp_path, "solver.base_lr=1e30")
        assert outcome.err.startswith("error: loss is not finite at iteration 1: ")


class TestTestMethods:
    """A table over the checkpoints given."""

    def test_without_context_and_ensemble(self, workspace: Workspace, tmp_path: Path) -> None:
        outcome = run_methods(workspace, tmp_path)
        assert outcome.status == 0
        header, plain, context, flip, ensemble = table_of(outcome.out)
        assert header.endswith("paper AP50 / AP")
        assert plain.split()[0] == "plain"
        assert plain.endswith("1.0 / 2.0")
        assert context.split() == ["+", "context", "not", "run"]
        assert ensemble.split() == ["+", "ensemble", "not", "run"]
        ap50, ap, gain50, gain, seconds = map(float, flip.split()[2:])
        results = [json.loads((tmp_path / number / "result.json").read_text())["bbox"] for number in "02"]
        assert [ap50, ap] == pytest.approx([100 * results[1]["AP50"], 100 * results[1]["AP"]], abs=0.051)
        gains = [100 * (results[1][key] - results[0][key]) for key in ("AP50", "AP")]
        assert [gain50, gain] == pytest.approx(gains, abs=0.051)
        assert seconds > 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "2"]

    def test_with_context_and_ensemble(self, workspace: Workspace, tmp_path: Path) -> None:
        arguments = (workspace.config, "--output-dir", tmp_path / "run", f"data.root={workspace.root}")
        trained = workspace.resdet("train", *arguments, "box.context=true", "solver.iterations=1", "data.test=[]")
        assert trained.status == 0
        given = ("--context-weights", tmp_path / "run", "--ensemble", workspace.run / "step4", "--limit", "1")
        outcome = run_methods(workspace, tmp_path / "out", *given)
        assert outcome.status == 0
        assert "not run" not in outcome.out
        images = [json.loads((tmp_path / "out" / n / "result.json").read_text())["images"] for n in "0123"]
        assert images == [1, 1, 1, 1]

    def test_weights_without_context_are_no_context_weights(self, workspace: Workspace, tmp_path: Path) -> None:
        outcome = run_methods(workspace, tmp_path, "--context-weights", workspace.run / "step4")
        assert outcome.err.startswith("error: ")
        assert "context" in outcome.err

    @pytest.mark.parametrize("option", ["--context-weights", "--ensemble", "--weights"])
    def test_missing_checkpoint_is_named(self, workspace: Workspace, tmp_path: Path, option: str) -> None:
        outcome = run_methods(workspace, tmp_path / "out", option, tmp_path / "absent.safetensors")
        assert outcome.err.startswith(f"error: no checkpoint at {tmp_path / 'absent.safetensors'}")
        assert not (tmp_path / "out").exists()

    def test_bad_table_is_named(self, workspace: Workspace, tmp_path: Path) -> None:
        (tmp_path / "bad.yaml").write_text("row: []")
        outcome = run_methods(workspace, tmp_path / "out", "--table", tmp_path / "bad.yaml")
        assert outcome.err.startswith(f"error: table {tmp_path / 'bad.yaml'}: ")
        assert "no config key 'row'; did you mean 'rows'?" in outcome.err

    @pytest.mark.slow
    def test_default_table_and_folder(self, workspace: Workspace) -> None:
        options = (workspace.config, "--weights", workspace.run / "step4", "--limit", "1")
        outcome = workspace.resdet("methods", *options, f"data.root={workspace.root}")
        assert outcome.status == 0
        lines = table_of(outcome.out)
        assert [line.split("  ")[0] for line in lines[1:] if not line.startswith(" ")] == [
            "baseline",
            "+ box refinement",
            "+ context",
            "+ multi-scale testing",
            "+ horizontal flip",
            "+ ensemble",
        ]
        assert lines[1].endswith("48.4 / 27.2")
        assert (workspace.run / "step4" / "methods" / "0" / "result.json").is_file()

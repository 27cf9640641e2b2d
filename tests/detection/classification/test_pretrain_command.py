"""The command pretrain: train, go on, and test on a handful of tiny images."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from detection.engine.log import RunLog

Resdet = Callable[..., Any]
CONFIG = """
backbone: {name: cifar_resnet20, norm: bn}
data: {train: [CARD:train], test: [CARD:test], shorter_side: 32, longer_side: 32, workers: 0}
solver: {iterations: 2, images_per_step: 4, log_every: 1, best_metric: classification.top1}
classification: {crop: 32, shorter_side: 32, scales: [32, 40]}
device: cpu
"""


@dataclass(frozen=True, slots=True)
class Workspace:
    """A config file and a run of two iterations."""

    resdet: Resdet
    config: Path
    run: Path
    trained: Any

    def call(self, *arguments: str | Path) -> Any:
        return self.resdet("pretrain", self.config, *arguments)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, resdet: Resdet) -> Workspace:
    folder = tmp_path_factory.mktemp("work")
    for split, count in (("train", 3), ("test", 2)):
        for name, colour in (("red", (250, 0, 0)), ("blue", (0, 0, 250))):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (32, 32), colour).save(folder / split / name / f"{number}.png")
    card, config = folder / "card.yaml", folder / "tiny.yaml"
    splits = {split: {"folder": split} for split in ("train", "test")}
    card.write_text(yaml.safe_dump({"format": "image_folder", "root": str(folder), "splits": splits}))
    config.write_text(CONFIG.replace("CARD", str(card)))
    run = folder / "run"
    return Workspace(resdet, config, run, resdet("pretrain", config, "--output-dir", run))


def test_training_ends_well_and_shows_its_errors(workspace: Workspace) -> None:
    assert workspace.trained.status == 0
    result = json.loads((workspace.run / "result.json").read_text())
    error = 100 * (1 - result["classification"]["top1"])
    lines = workspace.trained.out.splitlines()
    assert f"top1 error {error:.2f}, top5 error 0.00 % of 4 images, views: crop" in lines
    assert lines[-1] == f"result: {workspace.run / 'result.json'}"
    assert any(line.lstrip().startswith("2/2 ") for line in lines)


def test_test_of_a_run_gives_its_figures(workspace: Workspace, tmp_path: Path) -> None:
    outcome = workspace.call("--test", workspace.run, "--output-dir", tmp_path)
    assert outcome.status == 0
    ours, theirs = (json.loads((folder / "result.json").read_text()) for folder in (tmp_path, workspace.run))
    assert ours["classification"] == theirs["classification"]
    assert f"result: {tmp_path / 'result.json'}" in outcome.out


@pytest.mark.parametrize("views", ["crop", "ten_crop", "dense"])
def test_two_runs_are_tested_together(workspace: Workspace, tmp_path: Path, views: str) -> None:
    weights = workspace.run / "checkpoints" / "0000002.safetensors"
    runs = ("--test", workspace.run, "--test", weights)
    outcome = workspace.call(*runs, "--output-dir", tmp_path, f"classification.views={views}")
    assert outcome.status == 0
    assert f"4 images, views: {views}" in outcome.out
    assert json.loads((tmp_path / "result.json").read_text())["views"] == views


def test_a_training_is_named_after_the_config_and_a_test_lies_in_its_run(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(workspace.run, tmp_path / "run"))
    assert workspace.call("--test", run).status == 0
    assert (run / "test" / "result.json").is_file()
    assert workspace.call("--test", run, "--resume").status == 2
    assert workspace.call("data.test=[]", "solver.iterations=1").status == 0
    folder = tmp_path / "output" / workspace.config.parent.name
    assert (folder / "tiny" / "checkpoints" / "0000001.safetensors").is_file()
    assert not (folder / "tiny" / "result.json").exists()


def test_resume_goes_on_and_a_second_start_does_not(workspace: Workspace, tmp_path: Path) -> None:
    run = Path(shutil.copytree(workspace.run, tmp_path / "run"))
    assert "add --resume" in workspace.call("--output-dir", run).err
    resumed = workspace.call("--output-dir", run, "--resume", "solver.iterations=3")
    assert resumed.status == 0
    assert " 3/3 " in resumed.out
    assert "1/3" not in resumed.out
    ended = workspace.call("--output-dir", run, "--resume", "solver.iterations=3")
    assert ended.status == 0
    assert f"{run} is finished, at iteration 3; " in ended.out


def test_signal_ends_with_a_status_of_its_own(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = RunLog.metrics

    def interrupt(log: RunLog, iteration: int, values: Mapping[str, float]) -> None:
        record(log, iteration, values)
        if iteration == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "metrics", interrupt)
        stopped = workspace.call("--output-dir", tmp_path, "--resume")
    assert stopped.status == 75
    assert stopped.err.startswith("stopped: SIGTERM ended the run after iteration 1 of 2; the same command")
    again = workspace.call("--output-dir", tmp_path, "--resume")
    assert again.status == 0
    assert "top1 error" in again.out


def test_loss_that_is_not_finite_is_an_error_without_a_traceback(workspace: Workspace, tmp_path: Path) -> None:
    outcome = workspace.call("--output-dir", tmp_path, "solver.base_lr=1e30", "solver.iterations=3")
    assert outcome.err.startswith("error: loss is not finite at iteration 1: ")


def test_misspelt_metric_ends_before_anything_is_written(workspace: Workspace, tmp_path: Path) -> None:
    ended = workspace.call("--output-dir", tmp_path / "run", "solver.best_metric=classification.top3")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("error: solver.best_metric 'classification.top3' names no figure of result.json")
    assert len(ended.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--test", "absent"), "error: no checkpoint at absent"),
        (("--test-weights",), "error: backbone.weights is unset"),
        (("classification.exit_thresholds=[0.1,0.2]",), "error: classification.exit_thresholds [0.1, 0.2] takes one"),
        (("classification.network=relay",), "error: classification.network relay takes 2"),
        (("classification.view=dense",), "error: no config key 'classification.view'; did you mean 'classification.vi"),
        (("backbone.fpn=true",), "error: no config key 'backbone.fpn'"),
    ],
)
def test_mistakes_are_named(workspace: Workspace, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    outcome = workspace.call(*arguments, "--output-dir", tmp_path / "run")
    assert outcome.err.startswith(message)
    assert not (tmp_path / "run").exists()

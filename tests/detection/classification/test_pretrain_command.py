"""The command pretrain: train, go on, and test on a handful of tiny images."""

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from PIL import Image

from detection.engine.log import RunLog

CONFIG = """
backbone: {name: cifar_resnet20, norm: bn}
data: {train: [CARD:train], test: [CARD:test], shorter_side: 32, longer_side: 32, workers: 0}
solver: {iterations: 2, images_per_step: 4, log_every: 1, best_metric: classification.top1}
classification: {crop: 32, shorter_side: 32, scales: [32, 40]}
device: cpu
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory, resdet) -> Any:
    """A config file, a run of two iterations and how it ended, and calls of the command."""
    folder = tmp_path_factory.mktemp("work")
    for split, count in (("train", 3), ("test", 2)):
        for name, colour in (("red", (250, 0, 0)), ("blue", (0, 0, 250))):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (32, 32), colour).save(folder / split / name / f"{number}.png")
    card, config, run = folder / "card.yaml", folder / "tiny.yaml", folder / "run"
    splits = {split: {"folder": split} for split in ("train", "test")}
    card.write_text(yaml.safe_dump({"format": "image_folder", "root": str(folder), "splits": splits}))
    config.write_text(CONFIG.replace("CARD", str(card)))
    trained = resdet("pretrain", config, "--output-dir", run)
    return SimpleNamespace(config=config, run=run, trained=trained, call=partial(resdet, "pretrain", config))


def result_of(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text())


def test_training_shows_its_errors_and_a_test_finds_the_same(work, tmp_path: Path) -> None:
    assert work.trained.status == 0
    lines, found = work.trained.out.splitlines(), result_of(work.run)["classification"]
    assert f"top1 error {100 * (1 - found['top1']):.2f}, top5 error 0.00 % of 4 images, views: crop" in lines
    assert lines[-1] == f"result: {work.run / 'result.json'}"
    assert any(line.lstrip().startswith("2/2 ") for line in lines)
    assert work.call("--test", work.run, "--output-dir", tmp_path).status == 0
    assert result_of(tmp_path)["classification"] == found
    runs = ("--test", work.run, "--test", work.run / "checkpoints" / "0000002.safetensors")
    together = work.call(*runs, "--output-dir", tmp_path, "classification.views=ten_crop")
    assert together.status == 0
    assert "4 images, views: ten_crop" in together.out
    assert result_of(tmp_path)["views"] == "ten_crop"


def test_a_training_is_named_after_the_config_and_a_test_lies_in_its_run(work, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(work.run, tmp_path / "run")
    assert work.call("--test", run).status == 0
    assert (run / "test" / "result.json").is_file()
    assert work.call("data.test=[]", "solver.iterations=1").status == 0
    folder = tmp_path / "output" / work.config.parent.name / "tiny"
    assert (folder / "checkpoints" / "0000001.safetensors").is_file()
    assert not (folder / "result.json").exists()


def test_resume_goes_on_and_a_second_start_does_not(work, tmp_path: Path) -> None:
    run = shutil.copytree(work.run, tmp_path / "run")
    assert "add --resume" in work.call("--output-dir", run).err
    resumed, ended = (work.call("--output-dir", run, "--resume", "solver.iterations=3") for _ in range(2))
    assert (resumed.status, ended.status) == (0, 0)
    assert " 3/3 " in resumed.out
    assert "1/3" not in resumed.out
    assert f"{run} is finished, at iteration 3; " in ended.out


def test_a_signal_ends_with_a_status_of_its_own(work, tmp_path: Path, monkeypatch) -> None:
    record = RunLog.metrics

    def interrupt(log: RunLog, iteration: int, values: Any) -> None:
        record(log, iteration, values)
        if iteration == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "metrics", interrupt)
        stopped = work.call("--output-dir", tmp_path, "--resume")
    assert stopped.status == 75
    assert stopped.err.startswith("stopped: SIGTERM ended the run after iteration 1 of 2; the same command")
    again = work.call("--output-dir", tmp_path, "--resume")
    assert again.status == 0
    assert "top1 error" in again.out


def test_mistakes_are_one_line_and_leave_nothing_behind(work, tmp_path: Path) -> None:
    for arguments, message in (
        (("--test", "absent"), "no checkpoint at absent"),
        (("--test-weights",), "backbone.weights is unset"),
        (("classification.exit_thresholds=[0.1,0.2]",), "classification.exit_thresholds [0.1, 0.2] takes one"),
        (("classification.network=relay",), "classification.network relay takes 2"),
        (("solver.best_metric=classification.top3",), "solver.best_metric 'classification.top3' names no figure of "),
    ):
        outcome = work.call(*arguments, "--output-dir", tmp_path / "run")
        assert (outcome.status, outcome.err.count("\n")) == (1, 1)
        assert outcome.err.startswith(f"error: {message}")
        assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_is_an_error_without_a_traceback(work, tmp_path: Path) -> None:
    outcome = work.call("--output-dir", tmp_path, "solver.base_lr=1e30", "solver.iterations=3")
    assert outcome.err.startswith("error: loss is not finite at iteration 1: ")

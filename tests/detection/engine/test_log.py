import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detection.config.detection import DetectionConfig
from detection.engine.device import peak_memory_gib
from detection.engine.log import SINKS, LoggedRun, RunLog, require_packages

CPU = torch.device("cpu")


def lines(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def iterations(folder: Path) -> list[int]:
    return [line["iteration"] for line in lines(folder)]


def open_log(folder: Path, *sinks: str, start: int = 0, evaluated: bool = True) -> RunLog:
    return RunLog(LoggedRun(folder, DetectionConfig(), 100, start=start, evaluated=evaluated), CPU, sinks)


def write(folder: Path, *iterations: int, start: int = 0) -> None:
    with open_log(folder, "tensorboard", start=start) as log:
        for iteration in iterations:
            log.metrics(iteration, {"loss/total": 1 / 3, "learning_rate": 1e-5})


def test_a_line_per_report(tmp_path) -> None:
    write(tmp_path, 10, 20)
    first, second = lines(tmp_path)
    assert set(first) == {"iteration", "loss/total", "learning_rate", "memory_gib", "time"}
    assert (first["iteration"], second["iteration"], first["loss/total"]) == (10, 20, 1 / 3)
    assert second["time"] >= first["time"] > 1.6e9
    assert 64 > first["memory_gib"] > 0.05
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("first", "then", "start", "expected"),
    [
        ((10, 20, 30, 40), (30, 40, 50), 20, [10, 20, 30, 40, 50]),  # what was is kept and nothing doubled
        ((10, 20, 20, 30), (30,), 20, [10, 20, 20, 30]),  # metrics of the same iteration stay together
        ((10,), (5,), 0, [5]),  # a new run starts empty
    ],
)
def test_a_run_goes_on_where_it_was(tmp_path, first, then, start, expected) -> None:
    write(tmp_path, *first)
    write(tmp_path, *then, start=start)
    assert iterations(tmp_path) == expected


@pytest.mark.parametrize(
    ("rest", "evaluated", "expected"),
    [
        ('{"iteration": 20, "bbox.AP": 0.5}\n', True, [10, 20, 20]),
        ('{"iteration": 20, "bbox.AP": 0.5}\n', False, [10, 20]),
        *((half, True, [10, 20]) for half in ('{"iteration": 15, "loss/to', '{"iteration"', '{"loss": 1}\n', "3\n")),
    ],
)
def test_an_evaluation_that_does_not_count_and_half_a_line_are_removed(tmp_path, rest, evaluated, expected) -> None:
    write(tmp_path, 10, 20)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write(rest)
    with open_log(tmp_path, start=20, evaluated=evaluated):
        assert iterations(tmp_path) == expected


def test_losses_rate_time_left_and_figures_are_said(tmp_path, capsys) -> None:
    with open_log(tmp_path) as log:
        log.say("[bold]no markup[/bold] :smile:")
        for loss in (0.25, 0.125):
            losses = {"loss/box_class": loss, "loss/total": 2 * loss}
            log.metrics(40, {**losses, "learning_rate": 1e-3, "seconds_per_step": 2.0, "data_seconds": 0.1})
        log.metrics(40, {"bbox.AP": 0.5, "voc.mAP": 0.75})
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "[bold]no markup[/bold] :smile:"
    first, second = (dict(zip(said[1].split(), line.split(), strict=True)) for line in said[2:4])
    assert first.pop("GiB") == second.pop("GiB") == f"{peak_memory_gib(CPU):.1f}"
    rest = {"step": "40/100", "lr": "1.0e-03", "s/step": "2.00", "left": "0:02:00"}
    assert first == {"total": "0.5000", "box_class": "0.2500", **rest}
    assert second == {"total": "0.2500", "box_class": "0.1250", **rest}
    assert "bbox.AP 0.500  voc.mAP 0.750" in said[4]
    with RunLog(None, CPU) as log:  # a process that is not the main one
        log.say("hello")
        log.metrics(1, {"loss/total": 1.0})
    assert capsys.readouterr().out == ""


def test_on_a_terminal_two_lines_of_its_width_follow_every_step(tmp_path, terminal) -> None:
    with open_log(tmp_path) as log:
        for iteration in range(1, 4):
            log.step(iteration, {"box_class": 0.25, "rpn_box": 0.5}, 1e-3)
        log.metrics(3, {f"loss/part{number}": 0.5 for number in range(12)} | {"learning_rate": 1e-3})
    shown = terminal.lines()
    row, numbers, header = shown[-2], shown[-1], next(line for line in shown if "total" in line)
    assert re.search(r"^3/100 .* 3 % .*\d:\d\d:\d\d left", row)
    assert re.fullmatch(r"loss 0\.7500  lr 1\.0e-03  \d+\.\d GiB", numbers)
    assert max(map(len, shown)) <= 80
    assert header.split()[:3] == ["step", "total", "part0"]
    assert "part11" not in header


def test_pictures_are_in_the_event_file(tmp_path) -> None:
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    with open_log(tmp_path) as log:
        assert not log.shows_pictures
    with open_log(tmp_path, "tensorboard") as log:
        assert log.shows_pictures
        log.pictures(30, {"val/0": picture})
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    (event,) = events.Images("val/0")
    assert (event.step, event.height, event.width) == (30, 4, 4)
    assert (np.asarray(Image.open(io.BytesIO(event.encoded_image_string))) == picture).all()


def test_each_sink_gets_everything_and_is_closed_though_one_fails(tmp_path, monkeypatch) -> None:
    calls = list[Any]()

    class Listening:
        def __init__(self, run: LoggedRun) -> None:
            assert run.folder == tmp_path

        def write(self, iteration: int, values: Any) -> None:
            calls.append((iteration, values["bbox.AP"], set(values)))

        def close(self) -> None:
            calls.append("closed")
            raise OSError("no connection")

    for name in ("first", "second"):
        monkeypatch.setitem(SINKS, name, Listening)
    with pytest.raises(OSError, match="no connection"), open_log(tmp_path, "first", "second") as log:
        log.metrics(3, {"bbox.AP": 0.5})
    assert calls == [(3, 0.5, {"bbox.AP", "memory_gib"})] * 2 + ["closed"] * 2


def test_a_missing_package_is_named_with_its_command(monkeypatch) -> None:
    require_packages(["tensorboard"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"solver\.log_sinks has 'wandb'.*pip install 'resdet\[wandb\]'"):
        require_packages(["wandb"])


def test_wandb_gets_the_metrics_and_the_config(tmp_path, monkeypatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for start in (0, 3):  # the second one goes on
        with open_log(tmp_path, "wandb", start=start) as log:
            log.metrics(start + 1, {"loss/total": 0.25})
            log.metrics(start + 1, {"bbox.AP": 0.5})
    known = (tmp_path / "wandb_id.txt").read_text().strip()
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*-{known}/*.wandb"))
    assert files
    assert all(b"bbox.AP" in file.read_bytes() and b"base_lr" in file.read_bytes() for file in files)


def test_mlflow_gets_the_metrics_and_the_config(tmp_path, monkeypatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    for start in (0, 3):  # the second one goes on
        with open_log(tmp_path / "run", "mlflow", start=start) as log:
            log.metrics(start + 1, {"loss/total": 1.0 / (start + 1)})
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("resdet").experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss/total")
    assert [(entry.step, entry.value) for entry in history] == [(1, 1.0), (4, 0.25)]
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert "config.yaml" in [file.path for file in client.list_artifacts(run.info.run_id)]


def test_a_disk_that_is_full_is_named_with_its_space_and_leaves_no_half_line(tmp_path, monkeypatch) -> None:
    opened = Path.open

    class Full(io.FileIO):
        def write(self, content: Any) -> int:
            return super().write(content[:10])

    def full(path: Path, mode: str = "r", **options: Any) -> Any:
        return Full(path, mode) if "a" in mode else opened(path, mode, **options)

    write(tmp_path, 10)
    with open_log(tmp_path, start=10) as log, monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(OSError, match=r"metrics\.jsonl can't be written: .*No space left.*; \d+ MiB are free"):
            log.metrics(20, {"loss/total": 0.5})
    assert iterations(tmp_path) == [10]

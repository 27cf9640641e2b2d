"""Mirrors detection/engine/log.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from detection.engine.device import peak_memory_gib
from detection.engine.log import RunLog

CPU = torch.device("cpu")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write(folder: Path, *iterations: int, start: int = 0) -> None:
    with RunLog(folder, iterations=100, device=CPU, start=start) as log:
        for iteration in iterations:
            log.metrics(iteration, {"loss/total": 1 / 3, "learning_rate": 1e-5})


def test_a_line_per_report(tmp_path: Path) -> None:
    write(tmp_path, 10, 20)
    first, second = lines(tmp_path)
    assert set(first) == {"iteration", "loss/total", "learning_rate", "memory_gib", "time"}
    assert (first["iteration"], second["iteration"]) == (10, 20)
    assert first["loss/total"] == 1 / 3
    assert second["time"] >= first["time"] > 1.6e9
    assert first["memory_gib"] > 0
    assert list((tmp_path / "tensorboard").iterdir())


def test_run_that_goes_on_keeps_what_was_and_doubles_nothing(tmp_path: Path) -> None:
    write(tmp_path, 10, 20, 30, 40)
    write(tmp_path, 30, 40, 50, start=20)
    assert [line["iteration"] for line in lines(tmp_path)] == [10, 20, 30, 40, 50]


def test_metrics_of_the_same_iteration_stay_together(tmp_path: Path) -> None:
    write(tmp_path, 10, 20, 20, 30)
    write(tmp_path, 30, start=20)
    assert [line["iteration"] for line in lines(tmp_path)] == [10, 20, 20, 30]


def test_evaluation_that_does_not_count_is_removed(tmp_path: Path) -> None:
    write(tmp_path, 10, 20)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"iteration": 20, "bbox.AP": 0.5}\n')
    for evaluated, expected in ((True, [10, 20, 20]), (False, [10, 20])):
        with RunLog(tmp_path, iterations=100, device=CPU, start=20, evaluated=evaluated):
            pass
        assert [line["iteration"] for line in lines(tmp_path)] == expected


@pytest.mark.parametrize("rest", ['{"iteration": 15, "loss/to', '{"iteration"', '{"loss": 1}\n', "3\n"])
def test_half_a_line_of_a_killed_run_is_removed(tmp_path: Path, rest: str) -> None:
    write(tmp_path, 10)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write(rest)
    write(tmp_path, 30, start=20)
    assert [line["iteration"] for line in lines(tmp_path)] == [10, 30]


def test_new_run_starts_empty(tmp_path: Path) -> None:
    write(tmp_path, 10)
    write(tmp_path, 5)
    assert [line["iteration"] for line in lines(tmp_path)] == [5]


def test_says_losses_rate_time_left_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, iterations=100, device=CPU) as log:
        log.say("[bold]no markup[/bold]")
        log.metrics(40, {"loss/box_class": 0.25, "learning_rate": 1e-3, "seconds_per_step": 2.0, "data_seconds": 0.1})
        log.metrics(40, {"bbox.AP": 0.5, "voc.mAP": 0.75})
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "[bold]no markup[/bold]"
    for part in ("40/100", "box_class 0.250", "lr 1.00e-03", "2.00 s/step", "ETA 0:02:00"):
        assert part in said[1]
    assert "bbox.AP 0.500  voc.mAP 0.750" in said[2]


def test_peak_memory_is_in_gib() -> None:
    assert 0.05 < peak_memory_gib(CPU) < 64

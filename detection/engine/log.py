"""What a run says: metrics.jsonl and TensorBoard always, a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from torch.utils.tensorboard import SummaryWriter

from detection.engine.device import peak_memory_gib
from detection.evaluation.metrics import shown_in
from detection.files import write_text

__all__ = ["NoLog", "RunLog"]


class RunLog:
    """The log of one training run; a context manager.

    Args:
        folder: of the run.
        iterations: how long it will be.
        device: whose memory is reported.
        start: iteration to go on from; later lines of metrics.jsonl, of a run that was cut off, are removed.
        evaluated: whether the evaluation of ``start``, if one was due, counts; else its line is removed too.
    """

    def __init__(
        self, folder: Path, *, iterations: int, device: torch.device, start: int = 0, evaluated: bool = True
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._iterations, self._device = folder / "metrics.jsonl", iterations, device
        _truncate(self._path, start, evaluated=evaluated)
        self._console = Console(soft_wrap=True)
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1 if start else None)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[said]}"),
        )
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._progress.add_task("training", total=iterations, completed=start, said="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._writer.close()

    def say(self, text: str) -> None:
        """Prints a line."""
        self._console.print(text, markup=False, highlight=False)

    def metrics(self, iteration: int, values: Mapping[str, float]) -> None:
        """Records ``values`` and shows the losses, the rate, the time left and the memory used."""
        record = {"iteration": iteration, **values, "memory_gib": peak_memory_gib(self._device), "time": time.time()}
        with self._path.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)
        said = self._describe(iteration, record)
        self._progress.update(self._task, completed=iteration, said=said)
        if not self._console.is_terminal:
            self.say(f"{iteration}/{self._iterations}  {said}")

    def _describe(self, iteration: int, record: Mapping[str, float]) -> str:
        parts = [f"{name.removeprefix('loss/')} {value:.3f}" for name, value in record.items() if "loss/" in name]
        if "learning_rate" in record:
            parts.append(f"lr {record['learning_rate']:.2e}")
        if "seconds_per_step" in record:
            left = timedelta(seconds=round(record["seconds_per_step"] * (self._iterations - iteration)))
            parts.append(f"{record['seconds_per_step']:.2f} s/step  ETA {left}  {record['memory_gib']:.1f} GiB")
        evaluated = {metric.key for metric in shown_in("log")}
        parts += [f"{name} {value:.3f}" for name, value in record.items() if name in evaluated]
        return "  ".join(parts)


class NoLog:
    """The log of a process that is not the main one: none."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def say(self, text: str) -> None:
        """Prints nothing."""

    def metrics(self, iteration: int, values: Mapping[str, float]) -> None:
        """Records nothing."""


def _truncate(path: Path, start: int, *, evaluated: bool) -> None:
    if path.is_file():
        lines = path.read_text(errors="replace").splitlines(keepends=True)
        write_text(path, "".join(line for line in lines if _is_kept(line, start, evaluated=evaluated)))


def _is_kept(line: str, start: int, *, evaluated: bool) -> bool:
    try:
        record = json.loads(line)
        return record["iteration"] < start + (evaluated or "loss/total" in record)
    except (ValueError, KeyError, TypeError):  # the half-written last line of a run that was killed
        return False

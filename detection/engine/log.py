"""Logs losses and metrics of a run: to metrics.jsonl, the terminal and the sinks of ``solver.log_sinks``.

A new sink is a class with ``write`` and ``close``, its line in SINKS and its name in ``SolverConfig.log_sinks``.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from detection.engine.device import peak_memory_gib
from detection.evaluation.metrics import shown_in
from detection.files import write_text
from detection.progress import SCREEN, Pace

__all__ = ["LoggedRun", "RunLog", "Sink", "require_packages"]

LOSS = "loss/"  # what the names of losses begin with
GAP = 2  # blanks between columns
ROWS_PER_HEADER = 20


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """The facts of a run for sinks.

    Args:
        folder: of the run.
        config: of the run, a dataclass.
        iterations: number of iterations of the run.
        start: iteration to resume from; later entries, of an interrupted run, do not count.
        evaluated: whether the evaluation of ``start``, if one was due, counts.
    """

    folder: Path
    config: Any
    iterations: int
    start: int = 0
    evaluated: bool = True


class Sink(Protocol):
    """Receives the values that a run reports."""

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Records ``values`` by name; several calls may have the same iteration."""
        ...

    def close(self) -> None:
        """Ends the record."""
        ...


@runtime_checkable
class PictureSink(Protocol):
    """A sink that shows pictures too."""

    def pictures(self, iteration: int, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        """Records (H, W, 3) RGB pictures by name."""
        ...


class JsonLines:
    """RUN/metrics.jsonl: a JSON object per call, with the time."""

    def __init__(self, run: LoggedRun) -> None:
        self._path = run.folder / "metrics.jsonl"
        if self._path.is_file():
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            write_text(self._path, "".join(line for line in lines if _is_kept(line, run)))

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        line = (json.dumps({"iteration": iteration, **values, "time": time.time()}) + "\n").encode()
        with self._path.open("ab", buffering=0) as stream:
            before = stream.tell()
            try:
                if stream.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                with suppress(OSError):
                    stream.truncate(before)  # drops a half-written line
                raise _cannot_write(self._path, error) from error

    def close(self) -> None:
        pass


class _TwoLines(Progress):
    """The bar of a training, and under it the numbers of its last step."""

    def __init__(self, device: torch.device) -> None:
        columns = (
            TextColumn("{task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:.0f} %"),
            TextColumn("{task.fields[left]}"),
        )
        self._device, self.numbers = device, ""  # first: the next line draws
        super().__init__(*columns, console=SCREEN, transient=True, expand=True, disable=not SCREEN.is_terminal)

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        if self.numbers:
            memory = f"  {peak_memory_gib(self._device):.1f} GiB"
            yield Text(self.numbers + memory, no_wrap=True, overflow="ellipsis")


class Terminal:
    """One row of losses per report and, on a terminal, two live lines below that follow every step.

    On a terminal a row has the columns that fit, elsewhere all; metrics.jsonl has them in any case.
    """

    def __init__(self, run: LoggedRun, device: torch.device) -> None:
        self._iterations, self._pace = run.iterations, Pace()
        self._columns, self._rows = tuple[str, ...](), 0
        self._live = _TwoLines(device)
        self._task = self._live.add_task("training", total=run.iterations, completed=run.start, left="")
        self._pace.left(run.start, run.iterations)
        self._live.start()

    def say(self, text: str) -> None:
        """Prints a line."""
        SCREEN.print(text)

    def step(self, iteration: int, losses: Mapping[str, float], rate: float) -> None:
        """Shows the step that led to ``iteration``."""
        if self._live.disable:
            return
        left = self._pace.left(iteration, self._iterations)
        self._live.numbers = f"loss {sum(losses.values()):.4f}  lr {rate:.1e}"
        self._live.update(self._task, completed=iteration, left="" if left is None else f"{left} left")

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        place = f"{iteration}/{self._iterations}"
        if any(name.startswith(LOSS) for name in values):
            self._say_row({"step": place, **self._cells(iteration, values)})
        evaluated = {metric.key for metric in shown_in("log")}
        figures = [f"{name} {value:.3f}" for name, value in values.items() if name.removeprefix("test/") in evaluated]
        if figures:
            self.say(f"{place}  {'  '.join(figures)}")

    def close(self) -> None:
        self._live.stop()

    def _cells(self, iteration: int, values: Mapping[str, float]) -> dict[str, str]:
        """Returns the text of each column, the most important first."""
        cells = {name.removeprefix(LOSS): f"{value:.4f}" for name, value in values.items() if name.startswith(LOSS)}
        cells = {"total": cells.pop("total", ""), **cells}
        if "learning_rate" in values:
            cells["lr"] = f"{values['learning_rate']:.1e}"
        if "seconds_per_step" in values:
            left = timedelta(seconds=round(values["seconds_per_step"] * (self._iterations - iteration)))
            cells |= {"s/step": f"{values['seconds_per_step']:.2f}", "left": str(left)}
        return cells | {"GiB": f"{values['memory_gib']:.1f}"}

    def _say_row(self, cells: Mapping[str, str]) -> None:
        least = {"step": 2 * len(str(self._iterations)) + 1, "left": 8, "GiB": 4}
        widths = {name: max(len(name), least.get(name, 6)) for name in cells}
        if not self._live.disable:  # what no longer fits is left out
            ends = dict(zip(widths, accumulate(width + GAP for width in widths.values()), strict=True))
            widths = {name: width for name, width in widths.items() if ends[name] - GAP <= SCREEN.width}
        if tuple(widths) != self._columns or self._rows % ROWS_PER_HEADER == 0:
            self._columns, self._rows = tuple(widths), 0
            self.say((" " * GAP).join(f"{name:>{width}}" for name, width in widths.items()))
        self._rows += 1
        self.say((" " * GAP).join(f"{cells[name]:>{width}}" for name, width in widths.items()))


class TensorBoard:
    """RUN/tensorboard: event files."""

    def __init__(self, run: LoggedRun) -> None:
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter  # imports for a second
        self._folder = run.folder / "tensorboard"
        self._writer = writer(str(self._folder), purge_step=run.start + 1 if run.start else None)

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        try:
            for name, value in values.items():
                self._writer.add_scalar(name, value, iteration)
            self._writer.flush()  # an error of its thread comes out here
        except OSError as error:
            raise _cannot_write(self._folder, error) from error

    def pictures(self, iteration: int, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        try:
            for name, picture in pictures.items():
                self._writer.add_image(name, picture, iteration, dataformats="HWC")
            self._writer.flush()
        except OSError as error:
            raise _cannot_write(self._folder, error) from error

    def close(self) -> None:
        try:
            self._writer.close()
        except OSError as error:
            raise _cannot_write(self._folder, error) from error


class Wandb:
    """Weights & Biases, project "resdet"; its own variables (WANDB_MODE, WANDB_PROJECT, ...) set the destination."""

    def __init__(self, run: LoggedRun) -> None:
        wandb = importlib.import_module("wandb")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "resdet"),
                name=run.folder.name,
                dir=str(run.folder),
                config=asdict(run.config),
                id=_run_id(run, "wandb", lambda: secrets.token_hex(4)),
                resume="allow",
            )
        except wandb.Error as error:
            raise ValueError(f"solver.log_sinks: {error}; run wandb login, or set WANDB_MODE=offline") from error

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=iteration)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow, experiment "resdet"; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME set the destination."""

    def __init__(self, run: LoggedRun) -> None:
        mlflow = importlib.import_module("mlflow")
        self._entities, self._client = mlflow.entities, mlflow.MlflowClient()
        self._id = _run_id(run, "mlflow", lambda: self._create(run))

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)  # milliseconds
        metrics = [self._entities.Metric(name, value, now, iteration) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._id)

    def _create(self, run: LoggedRun) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "resdet")
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        created = self._client.create_run(experiment, run_name=run.folder.name).info.run_id
        self._client.log_dict(created, asdict(run.config), "config.yaml")
        return created


# By their names in solver.log_sinks.
SINKS: dict[str, Callable[[LoggedRun], Sink]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow}
EXTRAS = ("wandb", "mlflow")  # sinks whose package comes with an extra of their name


class RunLog:
    """The log of one training run; a context manager.

    Args:
        run: None in processes other than the main one, which log nothing.
        device: whose memory is reported.
        sinks: names in SINKS.
    """

    def __init__(self, run: LoggedRun | None, device: torch.device, sinks: Sequence[str] = ("tensorboard",)) -> None:
        self._device, self._open = device, ExitStack()
        self._sinks: list[Sink] = []
        self._terminal: Terminal | None = None
        if run is not None:
            run.folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as opened:
                for build in (JsonLines, *(SINKS[name] for name in sinks)):
                    self._sinks.append(build(run))
                    opened.callback(self._sinks[-1].close)
                self._open = opened.pop_all()
            self._terminal = Terminal(run, device)  # the last: its bar is drawn from now on
            self._sinks.append(self._terminal)
            self._open.callback(self._terminal.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError) if error is not None else nullcontext():  # the first error says what is wrong
            self._open.close()

    def say(self, text: str) -> None:
        """Prints a line."""
        if self._terminal is not None:
            self._terminal.say(text)

    def end_steps(self) -> None:
        """Removes the bar from the terminal; lines and metrics may follow."""
        if self._terminal is not None:
            self._terminal.close()

    def step(self, iteration: int, losses: Mapping[str, float], rate: float) -> None:
        """Shows the step that led to ``iteration``, of ``losses`` at the learning rate ``rate``; keeps nothing."""
        if self._terminal is not None:
            self._terminal.step(iteration, losses, rate)

    @property
    def shows_pictures(self) -> bool:
        """Tells whether there is a sink for ``pictures``."""
        return any(isinstance(sink, PictureSink) for sink in self._sinks)

    def pictures(self, iteration: int, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        """Hands (H, W, 3) RGB ``pictures`` by name to every sink that shows some."""
        for sink in self._sinks:
            if isinstance(sink, PictureSink):
                sink.pictures(iteration, pictures)

    def metrics(self, iteration: int, values: Mapping[str, float]) -> None:
        """Hands ``values`` and the most memory used so far to every sink."""
        if self._sinks:
            values = {**values, "memory_gib": peak_memory_gib(self._device)}
        for sink in self._sinks:
            sink.write(iteration, values)


def require_packages(sinks: Sequence[str]) -> None:
    """Raises ValueError if a sink needs a package that is not installed: an extra of its name."""
    for name in sinks:
        if name in EXTRAS and importlib.util.find_spec(name) is None:
            raise ValueError(f"solver.log_sinks has {name!r}, whose package is missing; pip install 'resdet[{name}]'")


def _cannot_write(path: Path, error: OSError) -> OSError:
    free = shutil.disk_usage(path.parent).free >> 20
    return OSError(f"{path} can't be written: {error}; {free} MiB are free there")


def _run_id(run: LoggedRun, service: str, create: Callable[[], str]) -> str:
    """Returns the id of ``run`` in an online service; a resumed run keeps the one in RUN/SERVICE_id.txt."""
    path = run.folder / f"{service}_id.txt"
    if run.start and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    made = create()
    write_text(path, made + "\n")
    return made


def _is_kept(line: str, run: LoggedRun) -> bool:
    try:
        record = json.loads(line)
        return record["iteration"] < run.start + (run.evaluated or "loss/total" in record)
    except (ValueError, KeyError, TypeError, RecursionError):  # the half-written last line of a run that was killed
        return False

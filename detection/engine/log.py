"""Where a run's losses and metrics go: metrics.jsonl and the terminal always, and the sinks of ``solver.log_sinks``.

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
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from detection.engine.device import peak_memory_gib
from detection.evaluation.metrics import shown_in
from detection.files import write_text

__all__ = ["LoggedRun", "RunLog", "Sink", "require_packages"]


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """What a sink may want to know.

    Args:
        folder: of the run.
        config: of the run, a dataclass.
        iterations: how long the run will be.
        start: iteration to go on from; what was logged later, by a run that was cut off, does not count.
        evaluated: whether the evaluation of ``start``, if one was due, counts.
    """

    folder: Path
    config: Any
    iterations: int
    start: int = 0
    evaluated: bool = True


class Sink(Protocol):
    """Takes what a run reports."""

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Records ``values`` by name; several calls may have the same iteration."""
        ...

    def close(self) -> None:
        """Ends the record."""
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
                    stream.truncate(before)  # half a line is none
                raise _cannot_write(self._path, error) from error

    def close(self) -> None:
        pass


class _Console(Console):
    """Falls silent where stdout is closed, as by ``| head`` or with its terminal; rich would end the program."""

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with suppress(OSError):  # no descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what else prints, and for the exit


class Terminal:
    """A progress bar on a terminal, plain lines elsewhere: losses, learning rate, time left, memory, metrics."""

    def __init__(self, run: LoggedRun) -> None:
        self._iterations = run.iterations
        self._console = _Console(soft_wrap=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[said]}"),
        )
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._progress.add_task("training", total=run.iterations, completed=run.start, said="")
        self._progress.start()

    def say(self, text: str) -> None:
        """Prints a line."""
        self._console.print(text, markup=False, highlight=False)

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        said = self._describe(iteration, values)
        self._progress.update(self._task, completed=iteration, said=said)
        if said and not self._console.is_terminal:
            self.say(f"{iteration}/{self._iterations}  {said}")

    def close(self) -> None:
        self._progress.stop()

    def _describe(self, iteration: int, values: Mapping[str, float]) -> str:
        parts = [f"{name.removeprefix('loss/')} {value:.3f}" for name, value in values.items() if "loss/" in name]
        if "learning_rate" in values:
            parts.append(f"lr {values['learning_rate']:.2e}")
        if "seconds_per_step" in values:
            left = timedelta(seconds=round(values["seconds_per_step"] * (self._iterations - iteration)))
            parts.append(f"{values['seconds_per_step']:.2f} s/step  ETA {left}  {values['memory_gib']:.1f} GiB")
        evaluated = {metric.key for metric in shown_in("log")}
        parts += [f"{name} {value:.3f}" for name, value in values.items() if name.removeprefix("test/") in evaluated]
        return "  ".join(parts)


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

    def close(self) -> None:
        try:
            self._writer.close()
        except OSError as error:
            raise _cannot_write(self._folder, error) from error


class Wandb:
    """Weights & Biases, project "resdet"; its own variables (WANDB_MODE, WANDB_PROJECT, ...) say where it goes."""

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
    """MLflow, experiment "resdet"; its variables MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say where it goes."""

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
            self._terminal = Terminal(run)  # the last: its bar is drawn from now on
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
    """Returns the id of ``run`` with an online service; a run that goes on keeps its own, from RUN/SERVICE_id.txt."""
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

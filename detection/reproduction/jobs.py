"""The programs of a table as jobs: what each runs, its progress, and the time of its iterations.

OUTPUT/NAME/        the folder of the program NAME, written by its command
OUTPUT/times.json   seconds per iteration, measured beforehand: see plan.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detection.classification.config import ClassificationConfig
from detection.classification.task import run_pretraining
from detection.config.detection import DetectionConfig
from detection.config.load import load_config, parse_config
from detection.config.schema import flatten
from detection.config.sections import ProgramConfig
from detection.engine.checkpoint import read_checkpoint
from detection.experiments.methods import Outcome, load_rows, read_outcomes, run_methods
from detection.experiments.runs import PLACE_KEYS
from detection.reproduction.tables import PaperTable, Program
from detection.tasks.alternating import alternating_steps, run_alternating
from detection.tasks.train import run_training

__all__ = ["Job", "Training", "make_jobs"]

# Keys in which a folder may differ from the job: paths, also of the weights of other jobs.
FREE_KEYS = (*PLACE_KEYS, "init")


@dataclass(frozen=True, slots=True)
class Training:
    """One training of a job: its run directory and config."""

    name: str
    folder: Path
    config: ProgramConfig

    @property
    def done(self) -> int:
        """Number of iterations up to the newest checkpoint."""
        files = (self.folder / "checkpoints").glob("*.safetensors")
        return max((int(path.stem) for path in files if path.stem.isdecimal()), default=0)

    @property
    def seconds_per_step(self) -> float | None:
        """Median seconds per iteration in metrics.jsonl; None if the training has not begun."""
        path, times = self.folder / "metrics.jsonl", list[float]()
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                times.append(json.loads(line)["seconds_per_step"])
            except (ValueError, KeyError):  # a line of an evaluation, or the truncated last line of a killed run
                continue
        return statistics.median(times) if times else None


@dataclass(frozen=True, slots=True)
class Job:
    """A program of a table, with its folder.

    Attributes:
        program: the program in the table's file.
        config: the config that it runs.
        folder: folder of its files.
        before: the jobs that it depends on, by name.
        rows: for methods: the file with its rows.
        recipe: the config without the changes of the command line.
    """

    program: Program
    config: ProgramConfig
    folder: Path
    before: Mapping[str, Job]
    rows: Path | None
    recipe: ProgramConfig

    @property
    def trainings(self) -> tuple[Training, ...]:
        """The trainings of the job, in order."""
        if self.program.run == "methods":
            return ()
        if self.program.run == "alternating":
            steps = enumerate(alternating_steps(_detection(self.config), self.folder), start=1)
            return tuple(Training(f"step{n}", self.folder / f"step{n}", step.config) for n, step in steps)
        return (Training("", self.folder, self.config),)

    @property
    def run_directory(self) -> Path:
        """The run directory with the weights of the job and result.json."""
        return self.trainings[-1].folder

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of the job; None if it is missing, or not measured on this machine."""
        if self.program.run == "methods":
            return None
        path = self.run_directory / "result.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    @property
    def outcomes(self) -> list[Outcome]:
        """For methods: the rows with the results so far."""
        return [] if self.rows is None else read_outcomes(load_rows(self.rows), self.folder)

    @property
    def is_done(self) -> bool:
        """Tells whether the job is trained and tested."""
        if self.program.run == "methods":
            tested = all(outcome.result or outcome.row.needs == "ensemble" for outcome in self.outcomes)
            return tested and all(job.is_done for job in self.before.values())
        trained = all(t.done >= t.config.solver.iterations for t in self.trainings)
        return trained and (self.result is not None or not self.config.data.test)

    def check(self) -> None:
        """Raises ValueError if the folder holds runs of another config."""
        for training in self.trainings:
            path = training.folder / "config.yaml"
            if not path.is_file():
                continue
            began = flatten(parse_config(type(training.config), path.read_text(encoding="utf-8")))
            for key, value in flatten(training.config).items():
                if key not in FREE_KEYS and began.get(key) != value:
                    raise ValueError(
                        f"{path} has {key} {began.get(key)!r}, and {self.program.name} now takes {value!r}; put the "
                        f"value back, choose another --output-dir, or remove {self.folder} to train anew"
                    )

    def run(self) -> None:
        """Runs the remaining part of the job.

        Raises:
            ValueError, NotFiniteError, StoppedError, MemoryError, OSError: as its command.
        """
        _KINDS[self.program.run](self)

    def shortened(self, folder: Path, steps: int) -> Job:
        """Returns the job in ``folder`` with trainings of ``steps`` iterations that are not tested."""
        solver = {"iterations": steps, "log_every": 1, "checkpoint_every": 0, "evaluate_every": 0, "base_lr": 1e-9}
        config = replace(
            self.config,
            solver=replace(self.config.solver, **solver),
            data=replace(self.config.data, val=(), test=()),
        )
        if isinstance(config, DetectionConfig):
            lengths = replace(config.alternating, rpn_iterations=steps, box_iterations=steps)
            # proposals of few images; init is another job, whose weights do not affect the time
            config = replace(config, alternating=lengths, data=replace(config.data, limit=steps), init=None)
        return replace(self, config=config, folder=folder, before={})


def make_jobs(table: PaperTable, file: Path, output: Path, overrides: tuple[str, ...]) -> list[Job]:
    """Returns the jobs of ``table`` in the YAML file ``file``, with ``overrides`` in all configs.

    Raises:
        ValueError: no such config, or an invalid override.
    """
    jobs: dict[str, Job] = {}
    for program in table.programs:
        schema = ClassificationConfig if program.run == "pretrain" else DetectionConfig
        path = file.parent / program.config
        jobs[program.name] = Job(
            program,
            load_config(schema, path, (*program.changes, *overrides)),
            output / program.name,
            {name: jobs[name] for name in program.needs},
            None if program.rows is None else file.parent / program.rows,
            load_config(schema, path, program.changes),
        )
    return list(jobs.values())


def _detection(config: ProgramConfig) -> DetectionConfig:
    assert isinstance(config, DetectionConfig)
    return config


def _alternate(job: Job) -> None:
    run_alternating(_detection(job.config), job.folder)


def _train(job: Job) -> None:
    config = _detection(job.config)
    if job.program.init is not None and job.before:
        config = replace(config, init=str(job.before[job.program.init].run_directory))
    run_training(config, job.folder, resume=True)


def _pretrain(job: Job) -> None:
    assert isinstance(job.config, ClassificationConfig)
    run_pretraining(job.config, job.folder, resume=True)


def _test_methods(job: Job) -> None:
    program, rows = job.program, job.rows
    assert program.weights is not None
    assert rows is not None
    run_methods(
        _detection(job.config),
        load_rows(rows),
        read_checkpoint(job.before[program.weights].run_directory),
        job.folder,
        context=None if program.context is None else read_checkpoint(job.before[program.context].run_directory),
        resume=True,
    )


_KINDS: dict[str, Callable[[Job], None]] = {
    "alternating": _alternate,
    "train": _train,
    "pretrain": _pretrain,
    "methods": _test_methods,
}

"""Reproduces a table of the paper: runs what can be run, and keeps existing results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from detection.engine.loop import NotFiniteError
from detection.experiments.runs import write_json
from detection.progress import SCREEN
from detection.reproduction.figures import describe_table, format_table
from detection.reproduction.jobs import Job, make_jobs
from detection.reproduction.plan import format_plan, measure_steps, missing
from detection.reproduction.tables import load_table

__all__ = ["plan_table", "reproduce_table"]

OUTPUT = Path("output/reproduce")


def plan_table(name: str, output: Path | None = None, *, overrides: Sequence[str] = (), timed: bool = False) -> str:
    """Returns the plan of the table ``name``; arguments as ``reproduce_table``.

    Args:
        name: name of a table, or its file.
        output: directory of all runs.
        overrides: key=value changes of all configs.
        timed: first time an iteration of each run whose data exist.

    Raises:
        ValueError: no such table or config, runs of another config in ``output``, or a training that does not start.
    """
    table, file = load_table(name)
    output = output or OUTPUT
    jobs = _checked(make_jobs(table, file, output, tuple(overrides)))
    if timed:
        measure_steps(jobs, output)
    return format_plan(table, jobs, output)


def reproduce_table(
    name: str,
    output: Path | None = None,
    *,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = SCREEN.print,
) -> bool:
    """Trains and tests the runs of the table ``name``, and shows the figures; returns whether all runs are done.

    A run that fails, or whose data or weights are missing, does not stop the others.

    Args:
        name: name of a table of ``table_names``, such as table7, or the YAML file of one.
        output: directory of all runs, shared by tables; default: output/reproduce.
        overrides: key=value changes of all configs.
        say: called with each line of progress.

    Raises:
        ValueError: no such table or config, or runs of another config in ``output``.
        StoppedError: a signal ended the training, which was saved; the same command continues.
    """
    table, file = load_table(name)
    output = output or OUTPUT
    jobs = _checked(make_jobs(table, file, output, tuple(overrides)))
    say(format_plan(table, jobs, output))
    for job in jobs:
        _run(job, say)
    write_json(output / f"table{table.table}.json", describe_table(table, jobs, output))
    say(f"\n{format_table(table, jobs)}\n\nfigures: {output / f'table{table.table}.json'}")
    return all(job.is_done for job in jobs)


def _run(job: Job, say: Callable[[str], None]) -> None:
    if job.is_done:
        say(f"{job.program.name}: done before")
        return
    if lacks := missing(job):
        for lack in lacks:
            say(f"{job.program.name}: not run, missing {lack}")
        return
    say(f"{job.program.name}: in {job.folder}")
    try:
        job.run()
    except (ValueError, OSError, MemoryError, NotFiniteError) as error:
        say(f"{job.program.name}: failed: {error}")


def _checked(jobs: list[Job]) -> list[Job]:
    for job in jobs:
        job.check()
    return jobs

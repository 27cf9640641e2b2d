"""Compares our figures of a reproduction with those of the paper, and decides whether they are accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detection.config.schema import flatten
from detection.evaluation.metrics import METRICS, figures, named
from detection.evaluation.text_table import text_table
from detection.experiments.methods import format_outcomes
from detection.experiments.runs import PLACE_KEYS
from detection.report.paper import accept_from, table_cells
from detection.reproduction.jobs import Job
from detection.reproduction.tables import PaperTable

__all__ = ["Figure", "changed_keys", "describe_table", "format_table", "table_figures"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A cell of the paper's table beside ours.

    Attributes:
        program: program of the table's file.
        row: name of the row, as printed.
        metric: name of the figure.
        value: our figure, fraction 0..1; None if missing.
        paper: the paper's figure.
        accept_from: smallest accepted figure; None: there is no band (see report/paper.py).
        verdict: the verdict in words.
    """

    program: str
    row: str
    metric: str
    value: float | None
    paper: float
    accept_from: float | None
    verdict: str


def table_figures(table: PaperTable, jobs: Sequence[Job]) -> list[Figure]:
    """Returns the cells that single runs fill, in the order of ``jobs``."""
    return [figure for job in jobs for figure in _figures_of(table.table, job)]


def changed_keys(jobs: Sequence[Job]) -> list[str]:
    """Returns "key=value" for each key in which ``jobs`` differ from the paper's recipe."""
    found: dict[str, None] = {}
    for job in jobs:
        recipe = flatten(job.recipe)
        changed = (item for item in flatten(job.config).items() if item[0] not in PLACE_KEYS)
        found |= dict.fromkeys(f"{key}={value}" for key, value in changed if recipe.get(key) != value)
    return [*found]


def format_table(table: PaperTable, jobs: Sequence[Job]) -> str:
    """Returns the table of figures, followed by the tables of methods."""
    rows = [
        (
            figure.row,
            figure.metric,
            *(_shown(figure.metric, value) for value in (figure.value, figure.paper, figure.accept_from)),
            figure.verdict,
        )
        for figure in table_figures(table, jobs)
    ]
    parts = [f"table {table.table}: {table.title}"]
    if rows:
        parts.append(text_table(("", "figure", "ours", "paper", "from", "verdict"), rows, left=(0, 1, 5)))
    parts += [format_outcomes(job.outcomes) for job in jobs if job.program.run == "methods"]
    if changed := changed_keys(jobs):
        parts.append(f"not the paper's recipe, and so no verdict: {', '.join(changed)}")
    return "\n\n".join(parts)


def describe_table(table: PaperTable, jobs: Sequence[Job], output: Path) -> dict[str, Any]:
    """Returns the content of OUTPUT/TABLE.json."""
    return {
        "table": table.table,
        "title": table.title,
        "output": str(output),
        "changed": changed_keys(jobs),
        "figures": [asdict(figure) for figure in table_figures(table, jobs)],
        "methods": [
            {
                "program": job.program.name,
                "row": outcome.row.name,
                "paper": outcome.row.paper,
                "bbox": None if outcome.result is None else outcome.result["bbox"],
            }
            for job in jobs
            for outcome in job.outcomes
        ],
    }


def _figures_of(table: str, job: Job) -> list[Figure]:
    known = table_cells(table, job.recipe.backbone.name, job.recipe.data.train) if job.program.row else []
    cells = [(cell.metric, cell.value, accept_from(cell, 1)) for cell in known if not job.program.paper]
    cells += [(named(key).name, value, None) for key, value in job.program.paper.items()]
    values = figures(job.result or {}) if job.is_done else {}
    changed = bool(changed_keys([job]))
    return [
        Figure(
            program=job.program.name,
            row=job.program.row,
            metric=metric,
            value=(value := values.get(_key(metric))),
            paper=paper,
            accept_from=limit,
            verdict=_verdict(job, value, paper, limit, changed=changed),
        )
        for metric, paper, limit in cells
    ]


def _verdict(job: Job, value: float | None, paper: float, limit: float | None, *, changed: bool) -> str:
    if value is None:
        if job.is_done and job.program.server:
            return f"trained; {job.program.server} measures it"
        return "not run" if not job.is_done else "no figure"
    if changed:
        return ""
    if limit is None:
        return f"{100 * (value - paper):+.2f}, no band"
    return "in the band" if value >= limit else "below the band"


def _shown(metric: str, value: float | None) -> str:
    """Formats ``value`` in percent as the table of the paper does: errors of classifiers have two decimals."""
    if value is None or not metric.startswith("top"):
        return named(_key(metric)).format(value)
    return f"{100 * value:.2f}"


def _key(name: str) -> str:
    return next(metric.key for metric in METRICS if metric.name == name)

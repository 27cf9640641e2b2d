"""Tests checkpoints with cumulative test settings: Table 9 of "Deep Residual Learning"."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from detection.config.detection import DetectionConfig
from detection.config.load import build_dataclass, parse_config, parse_yaml
from detection.config.schema import checked
from detection.engine.checkpoint import Checkpoint
from detection.evaluation.metrics import figures, named, percent
from detection.evaluation.text_table import text_table
from detection.tasks.test import run_test

__all__ = ["MethodRow", "Outcome", "format_outcomes", "load_rows", "read_outcomes", "run_methods"]

FIGURES = ("bbox.AP50", "bbox.AP")  # in the order of the paper's table


@checked
class MethodRow:
    """One row of the table.

    Attributes:
        name: name of the row, as printed.
        test: keys of the config's ``test`` section that this row and all below it change.
        needs: this row and all below it use the checkpoint trained with context, or the ensemble.
        paper: the paper's figures, as printed.
    """

    name: str
    test: dict[str, Any] = field(default_factory=dict)
    needs: Literal["context", "ensemble"] | None = None
    paper: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A row and its result; None if checkpoints that it needs are missing."""

    row: MethodRow
    result: dict[str, Any] | None


@checked
class _Rows:
    rows: tuple[MethodRow, ...]

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("rows is empty")


@dataclass(frozen=True, slots=True)
class _Plan:
    config: DetectionConfig
    checkpoint: Checkpoint
    ensemble: tuple[Checkpoint, ...]


def load_rows(path: str | Path) -> tuple[MethodRow, ...]:
    """Returns the rows in the YAML file at ``path``.

    Raises:
        ValueError: no such file, or invalid rows.
    """
    try:
        content = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"table {path} can't be read: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"table {path} must hold the key 'rows'")
    try:
        return build_dataclass(_Rows, content).rows
    except ValueError as error:
        raise ValueError(f"table {path}: {error}") from error


def run_methods(
    config: DetectionConfig,
    rows: Sequence[MethodRow],
    checkpoint: Checkpoint,
    output: Path,
    *,
    context: Checkpoint | None = None,
    ensemble: Sequence[Checkpoint] = (),
    limit: int | None = None,
    resume: bool = False,
) -> list[Outcome]:
    """Tests every row that the given checkpoints allow; writes the files of row i to ``output``/i.

    Args:
        config: config of ``checkpoint``; its ``data`` and ``test`` sections hold for all rows.
        rows: each adds its settings to those of the rows above.
        checkpoint: checkpoint for the rows before the first that needs context.
        output: directory for results.
        context: a detector trained with context, built from its own config.
        ensemble: further detectors for the rows that need an ensemble.
        limit: number of images, the first ones; None: all.
        resume: keep the results in ``output`` of rows that were tested under the same config after these checkpoints
            were written.

    Raises:
        ValueError: bad data or config, weights that do not fit, or other classes in a checkpoint.
    """
    if context is not None and not context.config.box.context:
        raise ValueError(f"{context.path} was not trained with box.context: it can't fill the rows that need context")
    plans = [_plan(config, rows[: number + 1], checkpoint, context, ensemble) for number in range(len(rows))]
    outcomes = []
    for number, (row, plan) in enumerate(zip(rows, plans, strict=True)):
        if (row.needs == "context" and context is None) or (row.needs == "ensemble" and not ensemble):
            outcomes.append(Outcome(row, None))
            continue
        folder = output / str(number)
        result = _kept(plan, folder) if resume else None
        if result is None:
            result = run_test(plan.config, plan.checkpoint, folder, ensemble=plan.ensemble, limit=limit)
        outcomes.append(Outcome(row, result))
    return outcomes


def read_outcomes(rows: Sequence[MethodRow], output: Path) -> list[Outcome]:
    """Reads the outcomes that ``run_methods`` wrote to ``output``."""
    files = [output / str(number) / "result.json" for number in range(len(rows))]
    return [
        Outcome(row, json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None)
        for row, file in zip(rows, files, strict=True)
    ]


def _kept(plan: _Plan, folder: Path) -> dict[str, Any] | None:
    """Returns the result in ``folder`` if it is of the same test of the same detectors, else None."""
    config, result = folder / "config.yaml", folder / "result.json"
    if not config.is_file() or not result.is_file():  # the config is written last
        return None
    trained = max(checkpoint.path.stat().st_mtime for checkpoint in (plan.checkpoint, *plan.ensemble))
    if trained > result.stat().st_mtime:
        return None
    if parse_config(DetectionConfig, config.read_text(encoding="utf-8")) != plan.config:
        return None
    return json.loads(result.read_text(encoding="utf-8"))


def _plan(
    config: DetectionConfig,
    rows: Sequence[MethodRow],
    checkpoint: Checkpoint,
    context: Checkpoint | None,
    ensemble: Sequence[Checkpoint],
) -> _Plan:
    """Returns the settings of the last of ``rows``, including those of all rows above it."""
    settings: dict[str, Any] = asdict(config.test)
    for row in rows:
        settings |= row.test
    needs = {row.needs for row in rows}
    model, trained = config, checkpoint
    if "context" in needs and context is not None:
        model, trained = context.config, context
    tree = asdict(model) | {"test": settings, "data": asdict(config.data), "device": config.device}
    return _Plan(build_dataclass(DetectionConfig, tree), trained, tuple(ensemble) if "ensemble" in needs else ())


def format_outcomes(outcomes: Sequence[Outcome]) -> str:
    """Formats AP50 and AP in percent, the gain over the last row that ran, seconds per image, the paper's row."""
    metrics = [named(key) for key in FIGURES]
    names = [metric.name for metric in metrics]
    header = ("", *names, *(f"+{name}" for name in names), "s/image", f"paper {' / '.join(names)}")
    rows: list[tuple[str, ...]] = []
    before: list[float | None] | None = None
    for outcome in outcomes:
        row, result = outcome.row, outcome.result
        if result is None:
            rows.append((row.name, "not run", "", "", "", "", row.paper))
            continue
        known = figures(result)
        values = [known[key] for key in FIGURES]
        gains = ["", ""] if before is None else [_difference(*pair) for pair in zip(values, before, strict=True)]
        rows.append((row.name, *map(percent, values), *gains, f"{result['seconds_per_image']:.3f}", row.paper))
        before = values
    return text_table(header, rows, left=(0, len(header) - 1))


def _difference(value: float | None, before: float | None) -> str:
    return "-" if value is None or before is None else f"{100 * (value - before):+.1f}"

"""Runs every experiment of a list in docs/experiments, and keeps only records there.

During an experiment, weights, logs and TensorBoard files of a run lie beside its record, ignored by git.  They are
removed when the experiment is done.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from detection.classification.compare import PER_IMAGE
from detection.engine.signals import StoppedError
from detection.evidence.labels import LABELS, write_labels
from detection.evidence.plan import EXPERIMENTS, Planned, format_plan, load_evidence, plan_evidence
from detection.evidence.verify import Verdict, verify
from detection.experiments.runs import Placement
from detection.report.compare import run_comparison
from detection.report.reading import FOUND, read_experiment
from detection.tasks.test import read_records

__all__ = ["prune", "run_evidence"]

RECORDS = (
    "config.yaml",
    "manifest.json",
    "metrics.jsonl",
    *FOUND,
    PER_IMAGE,
    "result.json",
    "status.json",
)


def run_evidence(
    name: str,
    *,
    only: str | None = None,
    jobs: int = 1,
    retry_failed: bool = False,
    say: Callable[[str], None] = print,
) -> Verdict | None:
    """Trains missing runs of the experiments in the list ``name``, writes their reports and the figures of documents.

    The current folder must be a checkout; runs with committed records are done. Ctrl-C saves; the next call continues.
    A run uses one core unless OMP_NUM_THREADS is set. Data sets are read from RESDET_DATA_ROOT, so that records hold
    no path of a machine.

    Args:
        name: config file.
        only: name of the only experiment to run.
        jobs: runs in parallel.
        retry_failed: also continue failed runs.
        say: called with each line of progress.

    Returns:
        The verdict of ``verify`` at the end; None if runs are left.

    Raises:
        ValueError: a bad list or experiment, more hours than the budget, or data that are not on this machine.
        StoppedError: Ctrl-C; checkpoints were saved.
    """
    evidence = load_evidence(name)
    planned = plan_evidence(evidence, Path())
    say(format_plan(evidence, planned))
    chosen = [plan for plan in planned if only in (None, plan.name)]
    if not chosen:
        raise ValueError(f"--only {only!r}: {name} lists {', '.join(plan.name for plan in planned)}")
    spent = sum(sum(plan.hours.values()) for plan in planned)
    expected = sum(plan.expected for plan in chosen)
    if expected and spent + expected > evidence.budget_hours:
        raise ValueError(
            f"{spent:.1f} hours are spent and {expected:.1f} expected, budget_hours is {evidence.budget_hours:g}; "
            "shorten an experiment, take one alone by --only, or raise budget_hours"
        )
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    done = [_run(plan, Placement(jobs), retry_failed, say) for plan in chosen]
    return verify(Path(), write=True, say=say) if all(done) else None


def prune(folder: Path) -> list[Path]:
    """Removes everything but records from the runs of the experiment in ``folder``; returns the removed paths."""
    gone = list[Path]()
    for run in [*folder.glob("runs/*/*"), *folder.glob("grid/*/*")]:
        for path in run.iterdir():
            if path.name not in RECORDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                gone.append(path)
    return gone


def _keep_labels(folder: Path, say: Callable[[str], None]) -> None:
    """Writes labels.json of an experiment of detectors; those with masks or keypoints have none."""
    experiment, path = read_experiment(folder), folder / LABELS
    runs = [run for name in experiment.variants for run in experiment.done(name)]
    if path.is_file() or not runs:  # classifiers have no detections, so none of their runs counts here
        return
    try:
        write_labels(read_records(runs[0].folder, say=lambda _: None)[0], path)
    except ValueError as error:
        say(f"warning: {error}")


def _run(plan: Planned, placement: Placement, retry_failed: bool, say: Callable[[str], None]) -> bool:
    """Returns whether the experiment of ``plan`` is done; its report is written either way."""
    if not plan.left:
        say(f"{plan.name}: done before")
        return True
    say(f"{plan.name}: {len(plan.left)} runs left")
    folder = EXPERIMENTS / plan.name  # relative, since records hold it
    try:
        done = run_comparison(plan.path, folder, placement=placement, retry_failed=retry_failed, say=say)
    except StoppedError as error:
        raise StoppedError(f"{plan.name}: {error}") from error
    if done:
        _keep_labels(folder, say)
        say(f"{plan.name}: {len(prune(folder))} files and folders that are no records removed")
    return done

"""Compares detectors or classifiers: from an experiment file to its report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detection.build import deciding_metric
from detection.classification.config import ClassificationConfig
from detection.config.detection import DetectionConfig
from detection.config.load import load_config, section_names
from detection.engine.checkpoint import read_checkpoint
from detection.engine.signals import StoppedError
from detection.evaluation.metrics import named
from detection.evaluation.planning import Design
from detection.experiments.comparison import Comparison, measure_variant
from detection.experiments.detectors import DETECTORS
from detection.experiments.experiment import Experiment, load_experiment, resolve_base
from detection.experiments.kind import Kind
from detection.experiments.latency import Place, measure_latencies
from detection.experiments.runs import Placement, Programs
from detection.packaged import find_config
from detection.report.build import write_report
from detection.report.classifiers import CLASSIFIERS, write_classifier_report
from detection.report.plan import format_plan, read_pilot, stated_noise
from detection.report.reading import read_experiment
from detection.tasks.robustness import run_corrupted
from detection.tasks.test import load_test_set

__all__ = ["measure_costs", "measure_latency", "plan_claims", "plan_comparison", "run_comparison"]

RESDET = (sys.executable, "-m", "resdet")


def run_comparison(
    path: str | Path,
    output: Path | None = None,
    *,
    overrides: Sequence[str] = (),
    placement: Placement | None = None,
    retry_failed: bool = False,
    only: int | None = None,
    train: bool = True,
    robustness: bool = False,
    say: Callable[[str], None] = print,
) -> bool:
    """Trains, tests and measures the variants of an experiment and writes their report; returns whether all is done.

    Args:
        path: a file of configs/experiments/.
        output: directory of all files; default: output/experiments/NAME.
        overrides: key=value changes of the base, for all variants.
        placement: number of runs in parallel, and their GPUs; default: one run.
        retry_failed: also continue failed runs.
        only: number of a run in ``plan_comparison``; trains only this run.
        train: train missing runs; false only writes the report of the finished ones.
        robustness: also test every finished run on corrupted images, if that is missing.
        say: called with each line of progress.

    Raises:
        ValueError: an unfair experiment, test images in the training set, bad data or config, or a run that was
            started with another config.
        StoppedError: Ctrl-C; checkpoints were saved.
    """
    comparison = _comparison(path, output, overrides, placement, needs_detectors="--robustness" if robustness else "")
    done = True
    try:
        if only is not None:
            return comparison.run_one(only, retry_failed=retry_failed)
        if train:
            done = comparison.run(retry_failed=retry_failed)
        else:
            comparison.check()
        if robustness:
            _corrupt(comparison.output, say)
    except KeyboardInterrupt as error:
        raise StoppedError("checkpoints are saved; the same command continues") from error
    classifies = comparison.kind is CLASSIFIERS
    page = write_classifier_report(comparison.output, say=say) if classifies else write_report(comparison.output)
    if page is not None:
        say(f"report: {page}")
    return done


def _corrupt(output: Path, say: Callable[[str], None]) -> None:
    """Tests the finished runs of the experiment in ``output`` on corrupted images."""
    experiment = read_experiment(output)
    for run in (run for variant in experiment.variants for run in experiment.done(variant)):
        config = load_config(DetectionConfig, run.folder / "config.yaml")
        prefix = f"{run.variant}, seed {run.seed}: "
        run_corrupted(config, read_checkpoint(run.folder), run.folder, say=lambda line, p=prefix: say(p + line))


def plan_comparison(
    path: str | Path,
    output: Path | None = None,
    *,
    overrides: Sequence[str] = (),
    placement: Placement | None = None,
) -> str:
    """Returns the table of runs with their hours, from timed iterations; arguments as for ``run_comparison``."""
    return _comparison(path, output, overrides, placement).plan()


def plan_claims(
    path: str | Path,
    output: Path | None = None,
    *,
    pilot: Path | None = None,
    stated: tuple[float, float] | None = None,
    images: int | None = None,
    gap: float = 1.0,
    overrides: Sequence[str] = (),
) -> str:
    """Returns the true gap that the experiment can show, and the seeds and images that a smaller gap needs.

    Args:
        path: as for ``run_comparison``.
        output: as for ``run_comparison``; its own report is the pilot if no other noise is given.
        pilot: report.json of an experiment with the same noise.
        stated: standard deviations in points: of one training, and of a difference over the choice of images.
        images: number of test images; default: that of the pilot or of data.test.
        gap: true gap in points.
        overrides: as for ``run_comparison``.

    Raises:
        ValueError: neither a pilot nor stated noise, or bad files.
    """
    comparison = _comparison(path, output, overrides, needs_detectors="--plan")
    experiment = comparison.experiment
    if stated is None:
        noise, tested = read_pilot(pilot or comparison.output / "report" / "report.json")
    else:
        tested = images or _test_images(experiment)
        noise = stated_noise(*stated, tested)
    arms = len(experiment.arms) + len(experiment.detections)
    seeds = len(experiment.seeds)
    design = Design(variants=arms, seeds=seeds, images=images or tested, pool=experiment.pool_seeds)
    figure = named(deciding_metric(resolve_base(experiment, DetectionConfig))).name
    return format_plan(noise, design, gap=gap, figure=figure)


def _test_images(experiment: Experiment) -> int:
    return len(load_test_set(resolve_base(experiment, DetectionConfig), lambda _: None))


def measure_costs(path: str | Path, output: Path | None = None, *, variant: str, overrides: Sequence[str] = ()) -> None:
    """Measures the costs of one variant; arguments as for ``run_comparison``."""
    comparison = _comparison(path, output, overrides)
    measure_variant(comparison.experiment, comparison.kind, comparison.output, variant)


def measure_latency(
    path: str | Path,
    output: Path | None = None,
    *,
    place: Place,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Times all variants at ``place``, and rewrites the report if the experiment has begun.

    Other arguments as for ``run_comparison``.

    Raises:
        ValueError: bad data or config, or weights that do not fit.
    """
    comparison = _comparison(path, output, overrides, needs_detectors="--latency-on")
    say(f"latency: {measure_latencies(comparison.experiment, comparison.output, place, say=say)}")
    if (comparison.output / "experiment.json").is_file():
        say(f"report: {write_report(comparison.output)}")


def _comparison(
    path: str | Path,
    output: Path | None,
    overrides: Sequence[str],
    placement: Placement | None = None,
    *,
    needs_detectors: str = "",
) -> Comparison[Any]:
    """Returns the comparison of the file at ``path``; ``needs_detectors`` names a given option that needs detectors."""
    file = find_config(path)
    experiment = load_experiment(file, overrides)
    kind = _kind(experiment)
    if kind is CLASSIFIERS and (
        lacking := needs_detectors or ("heads" if experiment.heads else "detections" if experiment.detections else "")
    ):
        raise ValueError(
            f"experiment {experiment.name}: its base is a classifier's, and {lacking} is for detectors alone"
        )
    folder = output or Path("output") / "experiments" / experiment.name
    costs = (*RESDET, "compare", str(file), "--output-dir", str(folder), *overrides)
    return Comparison(experiment, kind, folder, Programs((*RESDET, kind.command), costs), placement or Placement())


def _kind(experiment: Experiment) -> Kind[Any]:
    """Returns the kind of network of the base: a classifier if it has a section classification."""
    sections = section_names(experiment.base, experiment.overrides)
    return CLASSIFIERS if ClassificationConfig.program in sections else DETECTORS

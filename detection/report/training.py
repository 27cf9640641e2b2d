"""Training curves of a run: loss and the deciding validation figure by iteration, epoch and minute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.engine.manifest import read_manifest
from detection.pages.page import Block, Figure
from detection.pages.plots import lines
from detection.report.reading import RunFolder, read_metrics

__all__ = ["training_figures", "training_numbers"]

AXES = {"epochs": "epoch", "minutes": "minutes of training"}


def training_numbers(run: RunFolder, figure: Mapping[str, str]) -> dict[str, Any]:
    """Returns loss and ``figure`` of ``run`` by iteration, and ``figure`` by epoch and minute (None if unknown).

    Args:
        run: run that was trained.
        figure: its "key" in metrics.jsonl, and its "name" here.
    """
    name = figure["name"]
    curves = {"loss": read_metrics(run.folder, "loss/total"), name: read_metrics(run.folder, figure["key"])}
    steps, images = curves[name][0], _train_images(run.folder)
    batch = load_config(DetectionConfig, run.folder / "config.yaml").solver.images_per_step
    return {
        "seed": run.seed,
        "train_images": images,
        **{name: {"iterations": iterations, "values": values} for name, (iterations, values) in curves.items()},
        "epochs": [step * batch / images for step in steps] if images else None,
        "minutes": _minutes(run.folder, steps),
    }


def training_figures(variants: dict[str, Any], figure: str) -> list[Block]:
    """Returns plots of loss by iteration, and of ``figure`` by epoch and by minute if it has several values."""
    figures: list[Block] = []
    loss = {
        name: [(run["loss"]["iterations"], run["loss"]["values"]) for run in v["training"]]
        for name, v in variants.items()
    }
    figures += _figure(
        "loss", loss, "iteration", "total loss", "Loss in training, a line for each seed.", percent=False
    )
    for key, label in AXES.items():
        series = {
            name: [(run[key], run[figure]["values"]) for run in variant["training"] if run.get(key)]
            for name, variant in variants.items()
        }
        caption = f"{figure} on the validation set by {label}, a line for each seed."
        figures += _figure(f"{figure}_by_{key}", series, label, f"{figure}, percent", caption, percent=True)
    return figures


def _figure(
    name: str,
    series: dict[str, list[tuple[list[float], list[float]]]],
    x_label: str,
    y_label: str,
    caption: str,
    *,
    percent: bool,
) -> list[Block]:
    """Returns a figure of the curves that have values; empty if all have a single one."""
    drawn = {label: [(x, y) for x, y in curves if len(y)] for label, curves in series.items()}
    drawn = {label: curves for label, curves in drawn.items() if curves}
    if not any(len(x) > 1 for curves in drawn.values() for x, _ in curves):
        return []
    limit = 1.05 * max(y[min(len(y) - 1, len(y) // 20)] for curves in drawn.values() for _, y in curves)
    svg = lines(f"training_{name}", drawn, x_label=x_label, y_label=y_label, percent=percent, limit=limit)
    return [Figure(f"training_{name}", svg, caption, f"{y_label} by {x_label}; numbers in report.json.")]


def _train_images(run: Path) -> int | None:
    """Returns the number of training images in the manifest of a run; None without a manifest."""
    entries = read_manifest(run)
    return entries[-1]["data"].get("train", {}).get("images") if entries else None


def _minutes(run: Path, steps: list[int]) -> list[float] | None:
    """Returns the minutes of training up to each of ``steps``; None if no time was measured."""
    iterations, seconds = read_metrics(run, "seconds_per_step")
    if not iterations:
        return None
    spent = np.cumsum(np.diff(iterations, prepend=0) * seconds) / 60
    return np.interp(steps, [0, *iterations], [0, *spent]).tolist()

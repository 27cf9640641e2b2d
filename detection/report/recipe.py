"""The training of an experiment's arms in a line, and warnings about its figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detection.experiments.protocols import over_budget
from detection.report.splits import split_warnings
from detection.report.words import deciding

__all__ = ["recipe", "warnings"]

RISING = 0.01  # share of the deciding figure gained in the last quarter of the training: it had not converged
HOPELESS = 0.05  # figure below which a network has hardly learned anything


def recipe(numbers: dict[str, Any]) -> str:
    """Returns data, iterations, epochs, image size, batch size, learning rate, pre-training, seeds and hardware.

    Settings that differ between the arms are marked as such.
    """
    base, varied = numbers["base"], {entry["key"] for entry in numbers["fairness"]["differences"]}

    def value(key: str) -> Any:
        return "varied" if key in varied else base.get(key, "?")

    weights = value("backbone.weights")
    images = sorted({run["train_images"] for run in _runs(numbers) if run.get("train_images")})
    steps, batch = value("solver.iterations"), value("solver.images_per_step")
    epochs = (
        f" ({steps * batch / images[0]:.1f} epochs)" if len(images) == 1 and {type(steps), type(batch)} == {int} else ""
    )
    sides = f"shorter side {value('data.shorter_side')}"
    parts = [
        f"{', '.join(base.get('data.train', ())) or 'no data'}",
        f"{_count(steps)} steps{epochs}",
        f"{sides} px",
        f"batch {batch}",
        f"learning rate {_rate(value('solver.base_lr'))}",
        "from scratch" if weights is None else f"pre-training {weights}",
        f"seeds {', '.join(map(str, numbers['seeds']))}",
        str(numbers["environment"].get("gpu") or numbers["environment"].get("cpu") or "unknown hardware"),
    ]
    return "; ".join(parts)


def warnings(numbers: dict[str, Any]) -> list[str]:
    """Returns warnings about the figures of an experiment, a sentence each."""
    return [
        *split_warnings(numbers),
        *_hopeless(numbers),
        *_rising(numbers),
        *_at_the_edge(numbers),
        *_over_budget(numbers),
    ]


def _hopeless(numbers: dict[str, Any]) -> list[str]:
    figure = deciding(numbers)
    means = {name: variant["metrics"][figure]["mean"] for name, variant in numbers["variants"].items()}
    found = {name: mean for name, mean in means.items() if mean is not None and mean < HOPELESS}
    if not found:
        return []
    listed = ", ".join(f"{name} {100 * mean:.1f}" for name, mean in found.items())
    return [
        f"{figure} near zero ({listed}): hardly trained, so that a difference says nothing of what training would give."
    ]


def _rising(numbers: dict[str, Any]) -> list[str]:
    found, figure = {}, deciding(numbers)
    for name, variant in numbers["variants"].items():
        gains = [gain for run in variant["training"] if (gain := _last_quarter(run[figure])) is not None]
        if gains and sum(gains) / len(gains) > RISING:
            found[name] = sum(gains) / len(gains)
    if not found:
        return []
    listed = ", ".join(f"{name} +{100 * gain:.1f}" for name, gain in found.items())
    return [
        f"{figure} was still rising in the last quarter of the training ({listed}): a longer one may order them "
        "otherwise."
    ]


def _last_quarter(curve: dict[str, Any]) -> float | None:
    """Returns the rise of the figure in the last quarter of the iterations; None with fewer than three evaluations."""
    steps, values = curve["iterations"], curve["values"]
    if len(steps) < 3:
        return None
    before = [value for step, value in zip(steps, values, strict=True) if step <= 0.75 * steps[-1]]
    return values[-1] - before[-1] if before else None


def _at_the_edge(numbers: dict[str, Any]) -> list[str]:
    grid, found = numbers.get("grid"), []
    for name, searched in (grid or {"variants": {}})["variants"].items():
        scores = {float(factor): score for factor, score in searched["scores"].items() if score is not None}
        best = max(scores, key=lambda factor: scores[factor]) if scores else None
        if best is not None and len(scores) > 1 and best in (min(scores), max(scores)):
            found.append(f"{name} at x {best:g}")
    if not found:
        return []
    return [
        f"The best learning rate lies at the edge of the grid ({', '.join(found)}): a better one may lie beyond it, "
        "and protocol.extend lets the grid grow."
    ]


def _over_budget(numbers: dict[str, Any]) -> list[str]:
    """Returns the runs that took longer than the protocol of equal time allows."""
    minutes = numbers.get("protocol", {}).get("minutes")
    if minutes is None:
        return []
    hours = {
        f"{name}, seed {seed}": taken
        for name, variant in numbers["variants"].items()
        for seed, taken in zip(variant["seeds"], variant["hours"]["values"], strict=False)
        if taken is not None
    }
    found = [f"{name} {taken:.1f}" for name, taken in over_budget(minutes, hours).items()]
    return [f"Longer than the {minutes:g} minutes of training that are allowed: {', '.join(found)}."] if found else []


def _runs(numbers: dict[str, Any]) -> Sequence[dict[str, Any]]:
    return [run for variant in numbers["variants"].values() for run in variant.get("training", ())]


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _rate(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

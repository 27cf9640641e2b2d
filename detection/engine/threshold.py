"""The default score threshold of shown detections."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detection.config.detection import DetectionConfig
from detection.engine.checkpoint import Checkpoint

__all__ = ["Threshold", "run_threshold", "shown_from"]

FALLBACK = 0.5


@dataclass(frozen=True, slots=True)
class Threshold:
    """A score threshold and its origin, for display."""

    score: float
    origin: str


def run_threshold(checkpoint: Checkpoint[DetectionConfig]) -> Threshold:
    """Returns the score at which F1 was best when the weights of ``checkpoint`` were last measured, else 0.5.

    It comes from the checkpoint (measured on data.val), or from a result.json of its run (data.test).
    """
    if checkpoint.best_f1_score is not None:
        return Threshold(checkpoint.best_f1_score, "best F1 on data.val")
    folder = checkpoint.path.parent
    for name in ("test/result.json", "result.json") if folder.name == "checkpoints" else ():
        if (score := _score_in(folder.parent / name, checkpoint.iteration)) is not None:
            return Threshold(score, "best F1 on data.test")
    return Threshold(FALLBACK, "no best F1 measured (resdet test does)")


def shown_from(result: Mapping[str, Any]) -> float:
    """Returns the score at which F1 was best in ``result``, the content of a result.json, else 0.5."""
    score = result.get("best_f1", {}).get("min_score")
    return FALLBACK if score is None else score


def _score_in(file: Path, iteration: int) -> float | None:
    """Returns the score of the best F1 in a result of the weights of ``iteration``; None if it has none."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        score = result["best_f1"]["min_score"] if result["weights"]["iteration"] == iteration else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return float(score) if isinstance(score, int | float) and 0 <= score <= 1 else None

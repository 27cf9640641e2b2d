"""Several classes per image: F2 with thresholds chosen on a validation set.

Source: F2 of an image and its mean over images are those of "Planet: Understanding the Amazon from Space" (Kaggle,
2017); F-beta is van Rijsbergen's, (1 + b^2) p r / (b^2 p + r), of precision p and recall r.
Shapes: N images, K classes, T thresholds on trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["TAGS", "choose_thresholds", "f_beta", "format_tags", "tag_figures", "tag_result"]

TAGS = "tags"  # of result.json
BETA = 2.0  # recall counts four times as much as precision
GRID = (0.001, 0.002, 0.005, *(step / 100 for step in range(1, 100)))
ROUNDS = 5  # at most so many rounds over all classes; the choice converges earlier


def f_beta(found: Tensor, truth: Tensor, beta: float = BETA) -> Tensor:
    """Returns the F-beta (..., N) of each image, of tags ``found`` and ``truth`` (..., N, K) bool.

    It is 1 if there is nothing to find and nothing was found.
    """
    hits = (found & truth).sum(dim=-1)
    return _score(hits, found.sum(dim=-1), truth.sum(dim=-1), beta)


def choose_thresholds(probabilities: Tensor, truth: Tensor, beta: float = BETA) -> Tensor:
    """Returns thresholds (K,) that maximise the mean F-beta of ``truth`` (N, K) by coordinate ascent.

    Starts from the best threshold shared by all classes, and improves one class after the other as long as F-beta
    rises.  Among equal thresholds, takes the one nearest to the current one of the class.

    Args:
        probabilities: (N, K).
        truth: (N, K) bool.
        beta: weight of recall in F-beta.
    """
    grid = torch.tensor(GRID, dtype=probabilities.dtype)
    shared = torch.stack([f_beta(probabilities > step, truth, beta).mean() for step in grid])
    thresholds = grid[shared.argmax()].repeat(probabilities.shape[1])
    wanted = truth.sum(dim=1)
    for _ in range(ROUNDS):
        before = thresholds.clone()
        for label in range(probabilities.shape[1]):
            found = probabilities > thresholds
            found[:, label] = False
            own = probabilities[:, label] > grid[:, None]  # (T, N)
            hits = (found & truth).sum(dim=1) + (own & truth[:, label])
            scores = _score(hits, found.sum(dim=1) + own, wanted, beta).mean(dim=1)
            best = (scores >= scores.max() - 1e-12).nonzero().flatten()
            thresholds[label] = grid[best[(grid[best] - thresholds[label]).abs().argmin()]]
        if torch.equal(before, thresholds):
            break
    return thresholds


def tag_figures(probabilities: Tensor, truth: Tensor, thresholds: Tensor) -> dict[str, float]:
    """Returns the mean F2 of images, and precision and recall of all tags together.

    Args:
        probabilities: (N, K).
        truth: (N, K) bool.
        thresholds: (K,) above which a class is found.
    """
    found = probabilities > thresholds
    hits = int((found & truth).sum())
    return {
        "F2": float(f_beta(found, truth).mean()),
        "precision": hits / max(int(found.sum()), 1),
        "recall": hits / max(int(truth.sum()), 1),
    }


def tag_result(
    probabilities: Tensor, truth: Tensor, *, thresholds: Sequence[float], class_names: Sequence[str]
) -> dict[str, Any]:
    """Returns the result of a test: figures, the number of images, the threshold of each class, and F2 by image.

    Args:
        probabilities: (N, K).
        truth: (N, K) bool.
        thresholds: (K,).
        class_names: (K,).
    """
    limits = torch.tensor(thresholds, dtype=probabilities.dtype)
    return {
        TAGS: tag_figures(probabilities, truth, limits),
        "images": len(truth),
        "thresholds": dict(zip(class_names, thresholds, strict=True)),
        "F2_of_images": f_beta(probabilities > limits, truth).tolist(),
    }


def format_tags(result: Mapping[str, Any]) -> str:
    """Returns a line about ``result``, in percent."""
    shown = ", ".join(f"{name} {100 * value:.2f}" for name, value in result[TAGS].items())
    chosen_on = result["thresholds_chosen_on"]
    thresholds = f"chosen on {', '.join(chosen_on)}" if chosen_on else "not chosen, for want of data.val"
    return f"{shown} % of {result['images']} images, views: {result['views']}, thresholds {thresholds}"


def _score(hits: Tensor, found: Tensor, wanted: Tensor, beta: float) -> Tensor:
    """Returns F-beta from the counts of correct, found and true tags."""
    total = (beta**2 * wanted + found).double()
    return torch.where(total > 0, (1 + beta**2) * hits / total.clamp(min=1), 1.0)

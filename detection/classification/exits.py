"""Measures early exits: accuracy of a BranchyNet against its multiply-adds, by threshold.

Source: Teerapittayanon, McDanel and Kung 2016, "BranchyNet", section IV (figure 5: accuracy against time by threshold);
here the cost is counted and not timed, so that it is the same on every machine.
Shapes: N images, E exits, the end of the network being the last, K classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from backbones.extras.branchynet import BranchyNet, entropy
from detection.classification.model import ImageClassifier
from detection.classification.views import Views
from detection.engine.distributed import collect, together
from detection.pages.plots import lines

__all__ = ["ExitPoint", "draw_exits", "exit_costs", "exit_curve", "measure_exits"]

STEPS = 19  # thresholds between the one at which no image leaves early and the one at which all do


@dataclass(frozen=True, slots=True)
class ExitPoint:
    """Accuracy and cost at one threshold for all exits.

    Attributes:
        threshold: entropy in nats.
        top1: top-1 accuracy, 0..1.
        multiply_adds: mean multiply-adds per image.
        shares: (E,) share of the images that leave by each exit.
    """

    threshold: float
    top1: float
    multiply_adds: float
    shares: tuple[float, ...]


@torch.no_grad()
def measure_exits(model: ImageClassifier, batches: Iterable[Views], labels: Tensor, side: int) -> list[ExitPoint]:
    """Returns the curve of ``model``, a BranchyNet in eval mode, over all images; empty on all but the main process.

    Args:
        model: holds the network.
        batches: batches of this process, whose first view counts.
        labels: (N,) of all images.
        side: side of the square images whose cost is counted, pixels.
    """
    network = model.network
    assert isinstance(network, BranchyNet)
    device = next(model.parameters()).device
    rows: list[tuple[list[float], list[bool]]] = []  # of each image: entropies (E - 1,), right (E,)
    with together("looking at the exits"):
        for batch in batches:
            logits = torch.stack(network.exits(model.normalize(batch.batches[0].to(device))), dim=1)  # (n, E, K)
            unsure = torch.stack([entropy(early) for early in logits[:, :-1].unbind(dim=1)], dim=1)
            right = logits.argmax(dim=2).cpu() == labels[torch.tensor(batch.rows), None]
            rows += zip(unsure.tolist(), right.tolist(), strict=True)
    found = collect(rows)
    if found is None:
        return []
    unsure, right = (torch.tensor(column) for column in zip(*found, strict=True))
    steps = np.quantile(unsure.numpy(), np.arange(1, STEPS + 1) / (STEPS + 1))  # range of the entropies
    thresholds = [0.0, *steps.tolist(), 1.01 * math.log(network.num_classes)]
    return exit_curve(unsure, right, exit_costs(network, side), thresholds)


def exit_curve(unsure: Tensor, right: Tensor, costs: Sequence[int], thresholds: Sequence[float]) -> list[ExitPoint]:
    """Returns a point for each of ``thresholds``.

    Args:
        unsure: (N, E - 1) entropy at each early exit, nats.
        right: (N, E) bool, whether the exit gives the right class.
        costs: (E,) multiply-adds up to each exit.
        thresholds: entropies in nats, each for all exits.
    """
    points, cost = list[ExitPoint](), torch.tensor(costs, dtype=torch.float64)
    for threshold in thresholds:
        leaves = torch.cat([unsure < threshold, torch.ones(len(unsure), 1, dtype=torch.bool)], dim=1)
        taken = leaves.int().argmax(dim=1)  # the first exit below the threshold
        shares = torch.bincount(taken, minlength=len(costs)).double() / len(taken)
        top1 = right.gather(1, taken[:, None]).double().mean()
        points.append(ExitPoint(threshold, float(top1), float(shares @ cost), tuple(shares.tolist())))
    return points


@torch.no_grad()
def exit_costs(network: BranchyNet, side: int) -> list[int]:
    """Returns the multiply-adds (E,) of an image of ``side`` x ``side`` up to each exit, branches included."""
    probe, costs = copy.deepcopy(network).to("meta").eval(), list[int]()
    with FlopCounterMode(display=False) as counter:
        for branch in probe.branches.values():  # runs when its feature is computed, before the following layers
            branch.register_forward_hook(lambda *_: costs.append(counter.get_total_flops() // 2))
        probe.exits(torch.zeros(1, 3, side, side, device="meta"))
        costs.append(counter.get_total_flops() // 2)
    return costs


def draw_exits(points: Sequence[ExitPoint]) -> str:
    """Returns accuracy against cost as SVG text."""
    millions = [point.multiply_adds / 1e6 for point in points]
    curve = (millions, [point.top1 for point in points])
    return lines("exits", {"early exits": [curve]}, x_label="multiply-adds of an image, M", y_label="top-1 accuracy, %")

"""Selection with fixed shapes: exact NMS, top-k of a batch, and random numbers without a generator.

A candidate that does not count has the score -inf.

Shapes: N images or other groups, M candidates, P kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses
from torchvision.ops import nms as torchvision_nms

from detection.boxes import iou

__all__ = ["as_on_gpu", "gather_rows", "hash32", "nms", "pad_columns", "select_top", "single_below", "waiting_is_free"]

# Number of a group's best candidates that a GPU compares with each other before it checks whether they suffice.
HEAD = 2048
# Steps of the fixed point before this check, and steps if they were too few. Dense boxes of smooth scores took 8 to 18.
STEPS = (16, 240)
# Elements (groups * HEAD * HEAD) of a matrix of boxes with boxes: 1 GiB of float32, three times that at the peak.
MAX_ELEMENTS = 1 << 28

_as_on_gpu = ContextVar("_as_on_gpu", default=False)


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Uses the GPU code path on any device, to count operators and waits and to compare results."""
    token = _as_on_gpu.set(True)
    try:
        yield
    finally:
        _as_on_gpu.reset(token)


def waiting_is_free(values: Tensor) -> bool:
    """Tells whether a shape may depend on ``values``: on a CPU, and not while a graph is made."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling() and not _as_on_gpu.get()


# It waits for a GPU, which a CUDA graph can't: one is recorded before it and one after.
@torch.library.custom_op("resdet::nms", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def nms(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou_threshold: float, wanted: int) -> Tensor:
    """Returns the scores (N, M) of the candidates that survive NMS in their group and class; -inf for the others.

    Equal to torchvision's ``nms`` for each group and class, with ties in score broken by position.  A CPU calls that
    for one after the other.  A GPU iterates the rule "kept unless a kept better box overlaps it" on the best 2,048 of
    each group.  It waits once, to check that the result is final and that ``wanted`` survive or no candidate is left;
    if not, it runs more steps, and then works like a CPU.

    Args:
        boxes: (N, M, 4).
        scores: (N, M).
        classes: (N, M) int64; boxes of different classes do not suppress each other. None: all are of one class.
        iou_threshold: of two boxes that overlap more, the worse is removed.
        wanted: survivors of a group that are needed; what survives after them may be left out.
    """
    if scores.device.type == "cpu" and not _as_on_gpu.get():
        return _one_by_one(boxes, scores, classes, iou_threshold)
    values, columns = scores.sort(dim=1, descending=True, stable=True)
    head, columns, rest = values[:, :HEAD], columns[:, :HEAD], values[:, HEAD:]
    sorted_boxes = boxes.gather(1, columns[..., None].expand(-1, -1, 4))
    sorted_classes = None if classes is None else classes.gather(1, columns)
    for steps in STEPS:
        gone, settled = _fixed_points(sorted_boxes, sorted_classes, iou_threshold, steps)
        left = head.masked_fill(gone, -torch.inf)
        if rest.shape[1]:
            enough = (left > -torch.inf).sum(dim=1) >= wanted
            settled = settled & (enough | (rest == -torch.inf).all(dim=1))
        if bool(settled.all()):  # the one wait
            return torch.full_like(scores, -torch.inf).scatter(1, columns, left)
    return _one_by_one(boxes, scores, classes, iou_threshold)


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou_threshold: float, wanted: int) -> Tensor:
    return torch.empty_like(scores)


def _one_by_one(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou_threshold: float) -> Tensor:
    """Applies exact NMS to every group and class in turn."""
    kept = torch.full_like(scores, -torch.inf)
    for row, counts in enumerate(scores > -torch.inf):
        candidates = counts.nonzero().flatten()
        own = None if classes is None else classes[row, candidates]
        for columns in [candidates] if own is None else [candidates[own == label] for label in own.unique()]:
            survivors = columns[torchvision_nms(boxes[row, columns], scores[row, columns], iou_threshold)]
            kept[row, survivors] = scores[row, survivors]
    return kept


def _fixed_points(boxes: Tensor, classes: Tensor | None, iou_threshold: float, steps: int) -> tuple[Tensor, Tensor]:
    """Applies greedy NMS to each group by ``steps`` iterations; its longest chain of suppressions needs as many.

    Args:
        boxes: (N, M, 4), each group by falling score.
        classes: (N, M) int64, or None.
        iou_threshold: as in NMS.
        steps: of the fixed point.

    Returns:
        Suppressed (N, M) bool, and whether that is final, (N,) bool.
    """
    size = max(1, MAX_ELEMENTS // max(1, boxes.shape[1] ** 2))
    labels = [None] * max(1, len(boxes)) if classes is None else classes.split(size)
    results = [
        _fixed_point(part, own, iou_threshold, steps) for part, own in zip(boxes.split(size), labels, strict=False)
    ]
    if len(results) == 1:
        return results[0]
    return torch.cat([gone for gone, _ in results]), torch.cat([settled for _, settled in results])


def _fixed_point(boxes: Tensor, classes: Tensor | None, iou_threshold: float, steps: int) -> tuple[Tensor, Tensor]:
    suppresses = iou(boxes, boxes) > single_below(iou_threshold)
    if classes is not None:
        suppresses = suppresses & (classes[:, :, None] == classes[:, None])
    suppresses = suppresses.triu(1).to(boxes.dtype)  # row: column
    one = boxes.new_ones(len(boxes), 1, boxes.shape[1])
    kept = before = one
    for _ in range(steps):  # 1 where the sum of those that suppress it is 0; exact, since they are at most 2,048
        before, kept = kept, torch.baddbmm(one, kept, suppresses, alpha=-1).clamp_(min=0)
    return kept[:, 0] == 0, (before == kept)[:, 0].all(dim=1)


def single_below(value: float) -> float:
    """Returns the largest float32 that is not above ``value``: torchvision compares IoUs with the float64."""
    single = np.float32(value)
    # As Python's floats: numpy would round ``value`` to a float32 before it compares.
    return float(single if float(single) <= value else np.nextafter(single, np.float32(-1)))


def select_top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the columns (N, P) of the best candidates, and their scores (N, P), -inf after the last that counts.

    Ties are broken by position, on every device and for every ``count``; ``topk`` guarantees no order.

    Args:
        scores: (N, M).
        count: at most so many are taken: P is the smaller of it and M.
    """
    values, columns = scores.sort(dim=1, descending=True, stable=True)
    return columns[:, :count], values[:, :count]


def hash32(seeds: Tensor, places: Tensor, stream: int) -> Tensor:
    """Returns pseudo-random integers (N, M) in [0, 2**32) that depend on seed, place and stream alone.

    A multiply-xorshift hash in int64: every device and any number of processes get the same numbers, and a checkpoint
    holds no state of a generator.

    Args:
        seeds: (N,) int64, of each image, in [0, 2**31).
        places: (M,) int64, of the candidates, in [0, 2**31).
        stream: number of the use; each use has other random numbers.
    """
    state = (seeds[:, None] * 0x9E3779B1 + places[None] * 0x85EBCA77 + stream * 0xC2B2AE3D) & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        state = ((state ^ (state >> shift)) * factor) & 0xFFFFFFFF
    return state ^ (state >> 16)


def gather_rows(values: Tensor, columns: Tensor) -> Tensor:
    """Returns (N, P, ...) of ``values`` (N, M, ...) at ``columns`` (N, P)."""
    index = columns.view(*columns.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, index)


def pad_columns(values: Tensor, count: int, value: float) -> Tensor:
    """Returns ``values`` (N, M) with columns of ``value`` added up to ``count``."""
    missing = count - values.shape[1]
    return F.pad(values, (0, missing), value=value) if missing else values

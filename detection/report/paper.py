"""Published results of the detectors in "Deep Residual Learning", for comparison with ours.

A figure of the paper is that of one training, with the noise of a seed.  Ours is accepted if it is at least the paper's
less the margin that an exact repetition falls short of in one of twenty cases.

Source: He et al., "Deep Residual Learning for Image Recognition", 2015, tables 7 and 8.  The noise of mAP on VOC 2007
test comes from four trainings of one Faster R-CNN that mmdetection's configs/pascal_voc and its issue 2773 report.
Other re-implementations of the two cells reach 73.2 to 75.7 (VGG-16) and 76.4 to 79.8 (ResNet-101).  For the other
cells no repeated trainings are published, so they have no band.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

__all__ = ["Cell", "accept_from", "paper_cells", "table_cells"]

RERUNS = (0.8086, 0.7974, 0.7985, 0.8009)  # mAP on VOC 2007 test of four seeds
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One figure of the paper."""

    table: str
    backbone: str  # as in backbone.name
    train: frozenset[str]  # data.train
    test: str  # data.test
    metric: str  # name of a reported metric
    value: float  # fraction 0..1
    deviation: float | None = None  # of one training; None: no repeated trainings are published


VOC07 = frozenset({"voc2007:trainval", "voc2012:trainval"})
VOC12 = VOC07 | {"voc2007:test"}
COCO = frozenset({"coco2014:train"})

CELLS = tuple(
    Cell(table=table, backbone=backbone, train=train, test=test, metric=metric, value=value, deviation=deviation)
    for table, train, test, metric, values, deviation in (
        ("7", VOC07, "voc2007:test", "VOC mAP", (0.732, 0.764), statistics.stdev(RERUNS)),
        ("7", VOC12, "voc2012:test", "VOC mAP", (0.704, 0.738), None),
        ("8", COCO, "coco2014:val", "AP50", (0.415, 0.484), None),
        ("8", COCO, "coco2014:val", "AP", (0.212, 0.272), None),
    )
    for backbone, value in zip(("vgg16", "resnet101"), values, strict=True)
)


def accept_from(cell: Cell, runs: int) -> float | None:
    """Returns the smallest mean of so many ``runs`` that reproduces ``cell``; None if no noise is published.

    The difference between the mean and the paper's single training has the variance s^2 (1 + 1 / runs), with the
    degrees of freedom of the published trainings.
    """
    if cell.deviation is None:
        return None
    quantile = float(stdtrit(len(RERUNS) - 1, CONFIDENCE))
    return cell.value - quantile * cell.deviation * math.sqrt(1 + 1 / runs)


def paper_cells(backbone: str, train: Sequence[str], test: Sequence[str]) -> list[Cell]:
    """Returns the paper's figures for this backbone, trained and tested on these data sets."""
    return [cell for cell in CELLS if (cell.backbone, cell.train, (cell.test,)) == (backbone, set(train), tuple(test))]


def table_cells(table: str, backbone: str, train: Sequence[str]) -> list[Cell]:
    """Returns the figures of ``table`` for this backbone, trained on these data sets, on any test set."""
    return [cell for cell in CELLS if (cell.table, cell.backbone, cell.train) == (table, backbone, set(train))]

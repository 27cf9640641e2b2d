"""Published results of the detectors that "Deep Residual Learning" compares, to stand beside ours.

Source: He et al., "Deep Residual Learning for Image Recognition", 2015, tables 7 and 8.  The bands take in what
re-implementations of the same cell report (11-point mAP of VGG-16 73.2 to 75.7, of ResNet-101 76.4 to 79.8); none is
known for the other cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Cell", "paper_cells"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One figure of the paper."""

    table: str
    backbone: str  # as in backbone.name
    train: frozenset[str]  # data.train
    test: str  # data.test
    metric: str  # name of one that reports show
    value: float  # fraction 0..1
    accept: float | None = None  # reproduced from here on; None: no band is known


VOC07 = frozenset({"voc2007:trainval", "voc2012:trainval"})
VOC12 = VOC07 | {"voc2007:test"}
COCO = frozenset({"coco2014:train"})

CELLS = tuple(
    Cell(table=table, backbone=backbone, train=train, test=test, metric=metric, value=value, accept=accept)
    for table, train, test, metric, values in (
        ("7", VOC07, "voc2007:test", "VOC mAP", ((0.732, 0.732), (0.764, 0.764))),
        ("7", VOC12, "voc2012:test", "VOC mAP", ((0.704, None), (0.738, None))),
        ("8", COCO, "coco2014:val", "AP50", ((0.415, None), (0.484, None))),
        ("8", COCO, "coco2014:val", "AP", ((0.212, None), (0.272, None))),
    )
    for backbone, (value, accept) in zip(("vgg16", "resnet101"), values, strict=True)
)


def paper_cells(backbone: str, train: Sequence[str], test: Sequence[str]) -> list[Cell]:
    """The figures for this backbone, trained and tested on these data sets."""
    return [cell for cell in CELLS if (cell.backbone, cell.train, (cell.test,)) == (backbone, set(train), tuple(test))]

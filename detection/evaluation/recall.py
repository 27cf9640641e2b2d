"""Average recall of class-agnostic proposals.

Source: Hosang et al., "What makes for effective detection proposals?", PAMI 2016; COCO's AR at IoU 0.5 to 0.95.
Shapes: G objects and P proposals of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.overlaps import COCO_IOUS, box_iou

__all__ = ["ProposalRecord", "average_recall"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalRecord:
    """Objects (without ignored ones) and proposals (best first) of one image; boxes are x1, y1, x2, y2."""

    gt_boxes: NDArray[np.float32]  # (G, 4)
    boxes: NDArray[np.float32]  # (P, 4)


def average_recall(records: Sequence[ProposalRecord], limits: Sequence[int] = (100, 300, 1000)) -> dict[str, float]:
    """Returns recall by number of proposals per image, averaged over IoU 0.5 to 0.95 and at IoU 0.5.

    Objects and proposals are matched one to one, pairs with the highest IoU first.

    Returns:
        "AR100", "AR300", ... and "R50_100", ...: fractions, NaN without objects.
    """
    results: dict[str, float] = {}
    for limit in limits:
        found = np.concatenate([np.zeros(0), *(_best_ious(record, limit) for record in records)])
        recalls = [float((found >= threshold).mean()) if len(found) else float("nan") for threshold in COCO_IOUS]
        results[f"AR{limit}"] = float(np.mean(recalls))
        results[f"R50_{limit}"] = recalls[0]
    return results


def _best_ious(record: ProposalRecord, limit: int) -> NDArray[np.float64]:
    """Returns the IoU (G,) of each object with its matched proposal, 0 for none."""
    boxes, objects = record.boxes[:limit], record.gt_boxes
    found = np.zeros(len(objects))
    if not len(boxes) or not len(objects):
        return found
    ious = box_iou(boxes, objects)  # (P, G)
    for _ in range(min(len(boxes), len(objects))):
        row, column = np.unravel_index(ious.argmax(), ious.shape)
        if ious[row, column] <= 0:
            break
        found[column] = ious[row, column]
        ious[row], ious[:, column] = -1, -1
    return found

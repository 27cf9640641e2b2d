"""Object keypoint similarity (OKS) between the keypoints of detections and objects, the counterpart of box IoU.

Source: https://cocodataset.org/#keypoints-eval; pycocotools' ``computeOks``.

Shapes: J keypoints; D detections and G objects of a whole set; P pairs of a detection and an object.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.candidates import Candidates, enough, joined, pairs
from detection.evaluation.columns import Columns
from detection.evaluation.record import Record
from detection.fields.keypoints import PIXEL_MIDDLE

__all__ = ["keypoint_areas", "keypoint_candidates", "shared_sigmas", "without_keypoints"]

_CHUNK = 2**16  # pairs computed at once: some 50 MB with COCO's 17 keypoints


def shared_sigmas(records: Sequence[Record]) -> NDArray[np.float64]:
    """Returns the sigmas (J,) of all ``records``; empty if no record has a keypoint spec, as without objects.

    Raises:
        ValueError: a record has no keypoints, or other keypoints than the first.
    """
    known = next((record for record in records if record.keypoint_spec is not None), None)
    spec = None if known is None else known.keypoint_spec
    for record in records:
        if record.keypoint_spec not in (spec, None):
            first = "" if known is None else known.file_name
            raise ValueError(f"{record.file_name}: keypoints {record.keypoint_spec}, expected those of {first}: {spec}")
        for values, whose in ((record.gt_keypoints, "objects"), (record.keypoints, "detections")):
            if values is None or (spec is None and whose == "objects" and len(values)):
                raise ValueError(f"{record.file_name}: no keypoints of its {whose}, expected them for keypoint AP")
            if spec is not None and len(values) and values.shape[1] != len(spec):
                raise ValueError(
                    f"{record.file_name}: {values.shape[1]} keypoints of its {whose}, expected {len(spec)}: "
                    f"{', '.join(spec.names)}"
                )
    return np.array([] if spec is None else spec.sigmas)


def keypoint_candidates(columns: Columns, sigmas: NDArray[np.float64], *, least: float) -> Candidates:
    """Returns the pairs with an OKS, by ``sigmas`` (J,), of at least ``least``, which is above 0."""
    found, truth = columns.keypoints, columns.gt_keypoints
    if found is None or truth is None:
        raise ValueError("no keypoints of detections and objects, expected them for OKS")
    variances, parts = (2 * sigmas) ** 2, list[Candidates]()
    for rows, objects in pairs(columns):
        for start in range(0, len(rows), _CHUNK):
            own, of = rows[start : start + _CHUNK], objects[start : start + _CHUNK]
            labelled = truth[of, :, 2] > 0  # (P, J)
            none = labelled.sum(axis=1) == 0
            away = found[own, :, :2] - truth[of, :, :2]  # (P, J, 2)
            away[none] = _outside(found[own[none], :, :2], columns.gt_boxes[of[none]])
            scale = columns.gt_areas[of].astype(np.float64) + np.spacing(1)
            error = np.square(away).sum(axis=2) / variances / scale[:, None] / 2
            counted = labelled | none[:, None]
            oks = np.where(counted, np.exp(-error), 0).sum(axis=1) / counted.sum(axis=1)
            parts.append(enough(own, of, oks, least))
    return joined(parts)


def keypoint_areas(columns: Columns) -> NDArray[np.float64]:
    """Returns the area (D,) of the box around the keypoints of each detection, square pixels."""
    assert columns.keypoints is not None
    places = columns.keypoints[..., :2]
    return np.ptp(places, axis=1).prod(axis=1) if places.size else np.zeros(len(places))


def without_keypoints(columns: Columns) -> NDArray[np.bool_]:
    """Returns whether each object (G,) has no labelled keypoint."""
    assert columns.gt_keypoints is not None
    return (columns.gt_keypoints[..., 2] > 0).sum(axis=1) == 0


def _outside(points: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the distance of ``points`` (P, J, 2) to the ``boxes`` (P, 4) enlarged three times, 0 inside.

    It replaces the distance to an object without labelled keypoints.  As in pycocotools, pixel numbers rather than
    pixel centres are compared with the edges of boxes.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    low, high = (boxes[:, :2] - sides)[:, None], (boxes[:, :2] + 2 * sides)[:, None]
    numbers = points - PIXEL_MIDDLE
    return np.maximum(low - numbers, 0) + np.maximum(numbers - high, 0)

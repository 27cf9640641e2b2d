"""Reads detections of any program in COCO's results format: a JSON list with an entry per detection.

Source: the COCO results format, cocodataset.org/#format-results.
Shapes: N images, D detections.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.data.problems import Problem, listed, refuse_errors
from detection.data.readers.values import MISSING, FieldError, box, mapping, number, shown, whole_number
from detection.fields.keypoints import of_coco
from detection.files import require_file
from detection.masks import RLE, around, to_rle

__all__ = ["Known", "Results", "read_results"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The images and categories that detections may refer to.

    Messages about unknown ones contain ``source``, such as the annotation file, and end with ``repair``.
    """

    source: str
    repair: str = ""
    image_ids: Sequence[int]  # N
    sizes: Sequence[tuple[int, int] | None]  # (N,) height, width; None where unknown
    category_ids: Sequence[int]  # of the labels 0..K-1
    keypoints: Sequence[str] = ()  # J names; none: keypoints are not read
    no_keypoints: str = ""  # why the annotations have none that can be used


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The detections of a file by image, in the file's order within each."""

    ends: NDArray[np.int64]  # (N,) image i owns the detections ends[i - 1] .. ends[i]
    boxes: NDArray[np.float64]  # (D, 4) x1, y1, x2, y2 in pixels
    scores: NDArray[np.float64]  # (D,)
    labels: NDArray[np.int64]  # (D,)
    masks: tuple[RLE, ...] | None  # (D,); None: the file has none
    keypoints: NDArray[np.float64] | None  # (D, J, 3) x, y, score; None: the file has none

    def rows(self, image: int) -> slice:
        """Returns the rows of the detections of ``image`` (0..N-1)."""
        return slice(int(self.ends[image - 1]) if image else 0, int(self.ends[image]))


@dataclass(slots=True)
class _Columns:
    """The columns read so far, in the file's order."""

    images: list[int] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    masks: list[RLE] = field(default_factory=list)
    keypoints: list[NDArray[np.float64]] = field(default_factory=list)


def read_results(path: Path, known: Known) -> Results:
    """Returns the detections in the file ``path``.

    A detection has a box, a mask or keypoints, or several of them; without a box it gets the bounding box of the
    others.  Numbers keep all digits.

    Raises:
        ValueError: the file can't be read or is no list, an entry is incomplete, its image or category is not
            ``known``, or only some detections have masks or keypoints.  The message names the file and the entries.
    """
    entries = _load(path, known.repair)
    with_masks = any(isinstance(entry, dict) and entry.get("segmentation") for entry in entries)
    points = any(isinstance(entry, dict) and entry.get("keypoints") for entry in entries)
    if points and known.no_keypoints:
        raise ValueError(f"{path} has keypoints, which {known.source} has not: {known.no_keypoints}")
    points = points and bool(known.keypoints)
    columns, problems = _Columns(), list[Problem]()
    rows = {image_id: row for row, image_id in enumerate(known.image_ids)}
    labels = {category: label for label, category in enumerate(known.category_ids)}
    for position, entry in enumerate(entries):
        try:
            _add(columns, mapping(entry, "the entry"), rows, labels, known, masks=with_masks, keypoints=points)
        except ValueError as error:
            problems.append(Problem("error", f"entry {position}", str(path), str(error)))
    refuse_errors(problems, str(path), repair=_hint(entries, known) or known.repair, rest="")
    images = np.array(columns.images, np.int64)
    order = np.argsort(images, kind="stable")
    return Results(
        ends=np.searchsorted(images[order], np.arange(len(known.image_ids)), side="right"),
        boxes=np.array(columns.boxes, np.float64).reshape(-1, 4)[order],
        scores=np.array(columns.scores, np.float64)[order],
        labels=np.array(columns.labels, np.int64)[order],
        masks=tuple(columns.masks[row] for row in order.tolist()) if with_masks else None,
        keypoints=np.stack(columns.keypoints)[order] if points else None,
    )


def _load(path: Path, repair: str) -> list[Any]:
    try:
        require_file(path)
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read: {error}; expected a JSON list of detections{repair}") from error
    if isinstance(content, list):
        return content
    inside = isinstance(content, Mapping) and isinstance(content.get("annotations"), list)
    other = "; give its list `annotations`, with a score in each, as a file of its own" if inside else repair
    raise ValueError(
        f"{path} holds {shown(content)}, expected COCO's results: a list of {{image_id, category_id, bbox, score}}"
        f"{other}"
    )


def _add(
    columns: _Columns,
    entry: Mapping[str, Any],
    rows: Mapping[int, int],
    labels: Mapping[int, int],
    known: Known,
    *,
    masks: bool,
    keypoints: bool,
) -> None:
    """Appends one detection.

    Raises:
        ValueError: a field is missing or has an invalid value.
    """
    image_id, category = (whole_number(entry.get(key, MISSING), key) for key in ("image_id", "category_id"))
    if image_id not in rows:
        raise FieldError("image_id", image_id, f"an image of {known.source}")
    if category not in labels:
        raise FieldError("category_id", category, f"one of {listed(known.category_ids)}, those of {known.source}")
    score = number(entry.get("score", MISSING), "score")
    if not isfinite(score):
        raise FieldError("score", score, "a finite number")
    mask = _mask(entry, known.sizes[rows[image_id]], known.source) if masks else None
    points = _points(entry, known.keypoints) if keypoints else None
    found = entry.get("bbox") or MISSING
    if found is MISSING and mask is not None:
        x1, y1, x2, y2 = around(mask)
    elif found is MISSING and points is not None:
        x1, y1, x2, y2 = (*points[:, :2].min(axis=0).tolist(), *points[:, :2].max(axis=0).tolist())
    else:
        x1, y1, x2, y2 = _corners(found)
    columns.images.append(rows[image_id])
    columns.labels.append(labels[category])
    columns.scores.append(score)
    columns.boxes.append((x1, y1, x2, y2))
    if mask is not None:
        columns.masks.append(mask)
    if points is not None:
        columns.keypoints.append(points)


def _corners(value: Any) -> tuple[float, float, float, float]:
    x, y, width, height = box(value, "bbox")
    if not all(map(isfinite, (x, y, width, height))) or width < 0 or height < 0:
        raise FieldError("bbox", value, "finite [x, y, width, height] in pixels, sides not below 0")
    return x, y, x + width, y + height


def _mask(entry: Mapping[str, Any], size: tuple[int, int] | None, source: str) -> RLE:
    if "segmentation" not in entry:
        raise FieldError("segmentation", MISSING, "a mask, as other detections of the file have one")
    if size is None:
        raise ValueError(f"segmentation needs the size of its image: give width and height of the images in {source}")
    return to_rle(entry["segmentation"], size, may_be_empty=True)


def _points(entry: Mapping[str, Any], names: Sequence[str]) -> NDArray[np.float64]:
    if "keypoints" not in entry:
        raise FieldError("keypoints", MISSING, "a list, as other detections of the file have one")
    return of_coco(entry["keypoints"], names, scores=True)


def _hint(entries: Sequence[Any], known: Known) -> str:
    """Returns a hint if no category is known, as the file may have labels instead of ids."""
    found = {entry.get("category_id") for entry in entries if isinstance(entry, dict)}
    if found & {*known.category_ids} == found or not all(type(category) is int for category in found):
        return ""
    if found <= {*range(len(known.category_ids) + 1)}:
        return "; these look like labels: write the id that the annotations give each category"
    return ""

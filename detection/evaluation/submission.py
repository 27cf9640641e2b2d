"""Detections as the files that the challenges' evaluation servers read.

VOC         results/VOC2012/Main/comp4_det_test_CLASS.txt: image, score, left, top, right, bottom
COCO        bbox/ and, with masks or keypoints, segm/ or keypoints/detections_test-dev2017_resdet_results.json
ImageNet    det_test.txt: number of the image, number of the class, score, left, top, right, bottom
            clsloc_test.txt: a line an image, up to five times number of the class, left, top, right, bottom

Sources: the development kits of PASCAL VOC 2012, ILSVRC 2015 DET and CLS-LOC; https://cocodataset.org/#upload.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.coco import coco_results
from detection.evaluation.record import Record
from detection.files import write_text

__all__ = ["Guesses", "write_coco", "write_imagenet_det", "write_imagenet_loc", "write_voc"]

Guesses = tuple[NDArray[np.int64], NDArray[np.float32]]  # of an image, at most 5, best first: labels (P,), boxes (P, 4)


def write_voc(
    records: Sequence[Record], class_names: Sequence[str], folder: Path, *, year: str, split: str, first_pixel: int
) -> list[Path]:
    """Writes a file for each class, also for those without a detection, and returns their paths.

    Args:
        records: image names are those of their files, without the suffix.
        class_names: of the labels 0..K-1.
        folder: the archive to upload holds ``folder``/results.
        year: "VOC2012" for one, a folder's name.
        split: "test" for one.
        first_pixel: how the data set calls the leftmost column, 0 or 1; its boxes include their last pixel.
    """
    lines: dict[int, list[str]] = {label: [] for label in range(len(class_names))}
    for record in records:
        name = Path(record.file_name).stem
        for label, score, box in _rows(record, first_pixel):
            lines[label].append(f"{name} {score} {box}\n")
    main = folder / "results" / year / "Main"
    return [_write(main / f"comp4_det_{split}_{name}.txt", "".join(lines[k])) for k, name in enumerate(class_names)]


def write_imagenet_det(records: Sequence[Record], folder: Path, *, split: str, first_pixel: int) -> list[Path]:
    """Writes the file of all classes and returns its path.

    Images count from 1 in the order of the split's list, classes from 1 in the order of the card, the challenge's.
    """
    lines = [
        f"{record.image_id} {label + 1} {score} {box}\n"
        for record in records
        for label, score, box in _rows(record, first_pixel)
    ]
    return [_write(folder / f"det_{split}.txt", "".join(lines))]


def write_imagenet_loc(
    guesses: Sequence[Guesses], folder: Path, *, class_numbers: Sequence[int], split: str, first_pixel: int
) -> Path:
    """Writes a line for each image, in the order of the split's list, and returns the file's path.

    ``class_numbers`` are the challenge's, of the labels 0..K-1; boxes are rounded to whole pixels, at least one.
    """
    lines = [
        " ".join(
            f"{class_numbers[label]} {_whole_pixels(box, first_pixel)}"
            for label, box in zip(labels.tolist(), boxes.tolist(), strict=True)
        )
        for labels, boxes in guesses
    ]
    return _write(folder / f"clsloc_{split}.txt", "".join(f"{line}\n" for line in lines))


def write_coco(records: Sequence[Record], category_ids: Sequence[int], folder: Path, *, split: str) -> list[Path]:
    """Writes the detections with their boxes and, where all records have them, with masks and keypoints.

    The server takes the areas of detections from "bbox" where it is given, so masks and keypoints stand without.
    Returns the paths.
    """
    results, kinds = coco_results(records, category_ids), {"bbox": "bbox"}  # kind -> its key
    if records and all(record.masks is not None for record in records):
        kinds["segm"] = "segmentation"
    if records and all(record.keypoints is not None for record in records):
        kinds["keypoints"] = "keypoints"
    name = f"detections_{split}_resdet_results.json"
    return [_write(folder / kind / name, json.dumps(_with_only(results, key))) for kind, key in kinds.items()]


def _with_only(results: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Returns ``results`` of whose places only that under ``key`` is left."""
    others = {"bbox", "segmentation", "keypoints"} - {key}
    return [{name: value for name, value in result.items() if name not in others} for result in results]


def _rows(record: Record, first_pixel: int) -> Iterator[tuple[int, str, str]]:
    """Yields the label, score and box of each detection; boxes hold their last pixel, counted from ``first_pixel``."""
    for label, score, box in zip(record.labels.tolist(), record.scores.tolist(), record.boxes.tolist(), strict=True):
        x1, y1, x2, y2 = (value + first_pixel for value in box)
        yield label, f"{score:.9f}", f"{x1:.3f} {y1:.3f} {x2 - 1:.3f} {y2 - 1:.3f}"


def _whole_pixels(box: Sequence[float], first_pixel: int) -> str:
    """Returns the ``box`` with its last pixel, counted from ``first_pixel``."""
    x1, y1, x2, y2 = map(round, box)
    right, bottom = max(x2 - 1, 0), max(y2 - 1, 0)
    return " ".join(str(value + first_pixel) for value in (min(x1, right), min(y1, bottom), right, bottom))


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path

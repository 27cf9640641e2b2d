"""Writes detections in the formats of the challenges' evaluation servers.

VOC         results/VOC2012/Main/comp4_det_test_CLASS.txt: image, score, left, top, right, bottom
COCO        bbox/ and, with masks or keypoints, segm/ or keypoints/detections_test-dev2017_resdet_results.json
ImageNet    det_test.txt: number of the image, number of the class, score, left, top, right, bottom
            clsloc_test.txt: a line per image, up to five times number of the class, left, top, right, bottom

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

Guesses = tuple[NDArray[np.int64], NDArray[np.float32]]  # per image, at most 5, best first: labels (P,), boxes (P, 4)


def write_voc(
    records: Sequence[Record], class_names: Sequence[str], folder: Path, *, year: str, split: str, first_pixel: int
) -> list[Path]:
    """Writes a file for each class, also for classes without a detection, and returns the paths.

    Args:
        records: records; image names are their file names without suffix.
        class_names: names of the labels 0..K-1.
        folder: the archive to upload has to contain ``folder``/results.
        year: name of a folder, such as "VOC2012".
        split: such as "test".
        first_pixel: number of the leftmost column in the data set, 0 or 1; boxes include their last pixel.
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

    Images are numbered from 1 in the order of the split's list, classes from 1 in the card's order, the challenge's.
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

    ``class_numbers`` are the challenge's numbers of the labels 0..K-1.  Boxes are rounded to whole pixels.
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
    """Writes files of boxes and, if all records have them, of masks and of keypoints, and returns the paths.

    Entries of masks and keypoints have no "bbox", since the server would take the areas of detections from it.
    """
    results, kinds = coco_results(records, category_ids), {"bbox": "bbox"}  # kind -> its key
    if records and all(record.masks is not None for record in records):
        kinds["segm"] = "segmentation"
    if records and all(record.keypoints is not None for record in records):
        kinds["keypoints"] = "keypoints"
    name = f"detections_{split}_resdet_results.json"
    return [_write(folder / kind / name, json.dumps(_with_only(results, key))) for kind, key in kinds.items()]


def _with_only(results: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Returns ``results`` with ``key`` as the only one of box, mask and keypoints."""
    others = {"bbox", "segmentation", "keypoints"} - {key}
    return [{name: value for name, value in result.items() if name not in others} for result in results]


def _rows(record: Record, first_pixel: int) -> Iterator[tuple[int, str, str]]:
    """Yields label, score and box of each detection; boxes include their last pixel, counted from ``first_pixel``."""
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

"""Reads label maps and panoptic segmentations of any program into the records of the evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detection.data.cards import data_root, load_dataset
from detection.data.index import AnnotationIndex
from detection.data.label_maps import LACKING, LabelMaps
from detection.data.packed_strings import PackedStrings
from detection.data.problems import listed
from detection.engine.label_counts import label_classes, with_counts
from detection.engine.label_maps import read_labelled
from detection.evaluation.record import Record
from detection.tasks.evaluate import Judged, without_objects
from detection.tasks.label_files import predicted_maps

__all__ = ["read_judged_maps"]


def read_judged_maps(truth: str, files: Mapping[str, Sequence[Path]], *, root: Path | None = None) -> Judged:
    """Counts the label maps in ``files`` (method -> one per seed) against those of ``truth``.

    A folder holds a label image for each image of the data set, with the same name.  A file is in COCO's panoptic
    format, and its PNGs lie in the folder of the same name beside it.

    Args:
        truth: CARD:SPLIT.
        files: folders and files.
        root: data root; None: $RESDET_DATA_ROOT, else datasets/.

    Raises:
        ValueError: a data set without label maps or whose labels are unknown, or a file that can't be used.
    """
    index, _ = load_dataset([truth], data_root(None if root is None else str(root)), label_maps=True)
    if index.label_maps is None or not index.has_ground_truth:
        raise ValueError(f"{truth}: {LACKING}" if index.label_maps is None else f"{truth} has no ground truth")
    index = index.without_objects()
    runs = {name: [_judged(index, path) for path in paths] for name, paths in files.items()}
    return Judged(index.class_names, runs, label_classes(index))


def _judged(index: AnnotationIndex, path: Path) -> list[Record]:
    if not path.exists():
        raise ValueError(
            f"{path} does not exist; expected a folder of PNGs, RUN/label_maps, or a panoptic network's panoptic.json"
        )
    maps = predicted_maps(index, path) if path.is_dir() else _panoptic_maps(index, path)
    return [
        with_counts(record, index, row, read_labelled(maps, row, record.size))
        for row, record in enumerate(without_objects(index))
    ]


def _panoptic_maps(index: AnnotationIndex, path: Path) -> LabelMaps:
    """Returns the segments that the file ``path`` lists for the images of ``index``."""
    truth = index.label_maps
    assert truth is not None
    if truth.segments is None:
        raise ValueError(f"{path} is a panoptic segmentation, and the data set has no labels of single objects")
    try:
        found = {entry["image_id"]: entry for entry in json.loads(path.read_text(encoding="utf-8"))["annotations"]}
        rows = [_segments(found, id_, truth.values, path) for id_ in index.image_ids.tolist()]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is not in COCO's panoptic format: {error}") from error
    files = [str(path.with_suffix("") / name) for name, _ in rows]
    return replace(
        truth, files=PackedStrings.pack(files), segments=PackedStrings.pack([json.dumps(listed) for _, listed in rows])
    )


def _segments(
    found: Mapping[int, Any], image_id: int, labels: Mapping[int, int], path: Path
) -> tuple[str, list[list[int]]]:
    """Returns the name of the PNG of an image and [id, label, crowd] of its segments."""
    if image_id not in found:
        raise ValueError(f"it has no entry for image {image_id} of the test set")
    entry = found[image_id]
    unknown = {info["category_id"] for info in entry["segments_info"]} - {*labels}
    if unknown:
        raise ValueError(f"image {image_id} has segments of category {listed([*map(str, unknown)])}, which is unknown")
    return entry["file_name"], [[info["id"], labels[info["category_id"]], 0] for info in entry["segments_info"]]

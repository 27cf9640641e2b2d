"""Reads ground truth and detections of any program, in COCO's formats, into the records of the evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from detection.data.index import AnnotationIndex
from detection.data.readers.results import Known, Results, read_results
from detection.data.readers.truth import Truth, read_truth
from detection.engine.evaluate import make_record
from detection.evaluation.label_maps import LabelClasses
from detection.evaluation.record import Record

__all__ = ["Judged", "name_files", "read_detections", "read_judged", "without_objects"]


@dataclass(frozen=True, slots=True)
class Judged:
    """Detections of several methods on the same images.

    Attributes:
        class_names: names of the K classes.
        runs: method -> the records of each of its files, which are its seeds.
        labels: classes of the label maps, if label maps are evaluated.
    """

    class_names: tuple[str, ...]
    runs: Mapping[str, Sequence[Sequence[Record]]]
    labels: LabelClasses | None = None


def read_judged(truth: Path, files: Mapping[str, Sequence[Path]], *, keypoint_sigmas: Sequence[float] = ()) -> Judged:
    """Reads the detections in ``files`` (method -> one file per seed) and the ground truth in ``truth``.

    ``keypoint_sigmas`` (one per keypoint, for OKS) replace those of COCO and the default ones.

    Raises:
        ValueError: no images or no files, or a file that can't be used; it is named, with its entries.
    """
    read = read_truth(truth)
    if not read.file_names:
        raise ValueError(f"{truth}: its list `images` is empty, expected the images that were tested")
    if keypoint_sigmas:
        read = _with_sigmas(read, tuple(keypoint_sigmas))
    runs = {name: [_records(read, read_results(path, read.known)) for path in paths] for name, paths in files.items()}
    return Judged(read.class_names, runs)


def read_detections(
    index: AnnotationIndex, path: Path, *, source: str, repair: str = "", masks: bool = False
) -> list[Record]:
    """Returns the detections in ``path``, in COCO's results format, as a record for each image of ``index``.

    Messages name ``source`` as the file that lacks an image or category, and end in ``repair``.  With ``masks`` records
    have a mask field even without detections.

    Raises:
        ValueError: a file that can't be used; it is named, with its entries.
    """
    sizes: list[tuple[int, int]] = [(height, width) for height, width in index.sizes.tolist()]
    known = Known(
        source=source,
        repair=repair,
        image_ids=index.image_ids.tolist(),
        sizes=sizes,
        category_ids=index.category_ids,
        keypoints=() if index.keypoints is None else index.keypoints.names,
    )
    results = read_results(path, known)
    records = []
    for row in range(len(index)):
        found = results.rows(row)
        fields = {"masks": ()} if masks and not len(results.boxes) else {}
        if results.masks is not None:
            fields = {"masks": results.masks[found]}
        if results.keypoints is not None:
            fields |= {"keypoints": results.keypoints[found].astype(np.float32)}
        boxes, scores = results.boxes[found].astype(np.float32), results.scores[found].astype(np.float32)
        records.append(make_record(index, row, boxes=boxes, scores=scores, labels=results.labels[found], fields=fields))
    return records


def without_objects(index: AnnotationIndex) -> list[Record]:
    """Returns a record for each image of ``index``, without detections."""
    nothing = {
        "boxes": np.zeros((0, 4), np.float32),
        "scores": np.zeros(0, np.float32),
        "labels": np.zeros(0, np.int64),
    }
    return [make_record(index, row, **nothing) for row in range(len(index))]


def name_files(given: Sequence[str], *, option: str = "--detections") -> dict[str, list[Path]]:
    """Returns the files of each method; ``given`` holds A.json, named by its stem, or NAME=A1.json,A2.json.

    Folders are allowed in place of files.

    Raises:
        ValueError: a repeated name, a name without files, or a repeated file under one name.
    """
    files: dict[str, list[Path]] = {}
    for text in given:
        name, equals, listed = text.partition("=")
        if not equals or Path(text).exists():
            name, listed = Path(text).stem, text
        paths = [Path(part) for part in listed.split(",") if part]
        if not name or not paths:
            raise ValueError(f"{option} {text!r}: expected A.json, or NAME=A1.json,A2.json with a file per seed")
        if len({path.resolve() for path in paths}) < len(paths):
            raise ValueError(f"{option} {text!r}: a file is given twice, expected the detections of another seed")
        if name in files:
            raise ValueError(f"{option}: two methods are called {name!r}; name them as in NAME={listed}")
        files[name] = paths
    return files


def _with_sigmas(truth: Truth, sigmas: tuple[float, ...]) -> Truth:
    if truth.keypoint_spec is None:
        why = truth.known.no_keypoints or "its categories name none"
        raise ValueError(f"--keypoint-sigmas needs keypoints, which {truth.known.source} lacks: {why}")
    return replace(truth, keypoint_spec=replace(truth.keypoint_spec, sigmas=sigmas))


def _records(truth: Truth, results: Results) -> list[Record]:
    return [_record(truth, results, image) for image in range(len(truth.file_names))]


def _record(truth: Truth, results: Results, image: int) -> Record:
    objects, found = truth.rows(image), results.rows(image)
    masks = truth.masks is not None and results.masks is not None
    keypoints = truth.keypoints is not None and results.keypoints is not None
    return Record(
        image_id=truth.known.image_ids[image],
        file_name=truth.file_names[image],
        size=truth.known.sizes[image] or (0, 0),
        gt_boxes=truth.boxes[objects],
        gt_labels=truth.labels[objects],
        gt_ignore=truth.ignore[objects],
        gt_areas=truth.areas[objects],
        boxes=results.boxes[found],
        scores=results.scores[found],
        labels=results.labels[found],
        gt_masks=(truth.masks or ())[objects] if masks else None,
        masks=(results.masks or ())[found] if masks else None,
        gt_keypoints=truth.keypoints[objects] if keypoints and truth.keypoints is not None else None,
        keypoints=results.keypoints[found] if keypoints and results.keypoints is not None else None,
        keypoint_spec=truth.keypoint_spec if keypoints else None,
    )

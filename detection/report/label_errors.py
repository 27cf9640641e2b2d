"""Likely label errors in the test images: a section of the analysis, and files for annotation tools.

label_errors.json   COCO's format: the images with suspects, and all their labels as suggested; "suggestion" says which
                    are new ("add"), changed ("class", "box") or doubted ("remove"), and "score" how likely
label_studio.json   the same as pre-annotated tasks of Label Studio
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.data.index import AnnotationIndex
from detection.evaluation.label_errors import KINDS, Kind, Suspect
from detection.evaluation.record import Record
from detection.files import write_text
from detection.pages.page import Block, Pictures, Section, Table, Text
from detection.pages.photos import framed, jpeg, page_scale
from detection.visualize import draw_boxes

__all__ = ["label_errors_section", "suspect_numbers", "write_suggestions"]

MAX_LISTED = 50
MAX_PICTURES = 6  # suspects of each kind
MAX_NAMED = 6  # suspects in a caption
CONTEXT = 2.5  # sides of the picture, in sides of the box
LEAST_CONTEXT = 160  # pixels of the stored image
SUGGESTIONS: dict[Kind, str] = {"missing": "add", "class": "class", "box": "box", "extra": "remove"}


def suspect_numbers(
    suspects: Sequence[Suspect], records: Sequence[Record], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns the suspects as entries of analysis.json, the likeliest first."""
    return [
        {
            "kind": one.kind,
            "image": records[one.row].file_name,
            "row": one.row,
            "score": one.score,
            "object": one.object,
            "label": None if one.object is None else names[int(records[one.row].gt_labels[one.object])],
            "suggested": None if one.kind == "extra" else names[one.label],
            "box": one.box,
        }
        for one in suspects
    ]


def label_errors_section(
    suspects: Sequence[Suspect], index: AnnotationIndex, records: Sequence[Record], *, runs: int
) -> Section:
    """Returns the section with the likeliest suspects as pictures and table."""
    if not suspects:
        text = "No confident detection contradicts a label, and no object that is never found looks like a mistake."
        return Section("Likely label errors", [Text(text)])
    counts = ", ".join(f"{sum(one.kind == kind for one in suspects)} x {title}" for kind, title in KINDS.items())
    said = "the detections of this run" if runs == 1 else f"the detections of {runs} runs together"
    text = (
        f"Where {said} contradict the labels: {counts}. A score is how likely, not proven: a detector also misses "
        "objects and takes things for others. label_errors.json (COCO) and label_studio.json hold these images with "
        "the suggested labels, to be looked through in an annotation tool."
    )
    names = index.class_names
    rows = [
        [
            Path(records[one.row].file_name).name,
            KINDS[one.kind],
            _words(one, records[one.row], names),
            f"{one.score:.2f}",
            ", ".join(f"{value:.0f}" for value in one.box),
        ]
        for one in suspects[:MAX_LISTED]
    ]
    header = ["image", "likely", "label", "score", "box x1, y1, x2, y2"]
    caption = f"The {len(rows)} likeliest of {len(suspects)}; all are in analysis.json."
    pictures = [_picture(number, own, index, records[own[0].row]) for number, own in enumerate(_drawn(suspects), 1)]
    return Section("Likely label errors", [Text(text), *pictures, Table(caption, header, rows, words=True)])


def write_suggestions(
    folder: Path, suspects: Sequence[Suspect], index: AnnotationIndex, records: Sequence[Record]
) -> None:
    """Writes label_errors.json and label_studio.json into ``folder``.

    Raises:
        OSError: a file can't be written.
    """
    by_row = dict[int, list[Suspect]]()
    for one in suspects:
        by_row.setdefault(one.row, []).append(one)
    top = os.path.commonpath([str(Path(record.file_name).parent) for record in records]) if records else ""
    images, annotations, tasks = list[dict[str, Any]](), list[dict[str, Any]](), list[dict[str, Any]]()
    for row, own in by_row.items():  # the likeliest first
        record, image_id = records[row], int(index.image_ids[row])
        name = os.path.relpath(record.file_name, top) if top else record.file_name
        height, width = record.size
        images.append({"id": image_id, "file_name": name, "height": height, "width": width, "score": own[0].score})
        labels = _suggested(own, record, index)
        for label in labels:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **label})
        tasks.append(_task(name, record.size, labels, index, own[0].score))
    categories = [{"id": i, "name": name} for i, name in zip(index.category_ids, index.class_names, strict=True)]
    coco = {"info": {"image_folder": top}, "images": images, "annotations": annotations, "categories": categories}
    write_text(folder / "label_errors.json", json.dumps(coco) + "\n")
    write_text(folder / "label_studio.json", json.dumps(tasks) + "\n")


def _suggested(suspects: Sequence[Suspect], record: Record, index: AnnotationIndex) -> list[dict[str, Any]]:
    """Returns the labels of an image as COCO annotations, with the changes that its suspects suggest."""
    changed = {one.object: one for one in suspects if one.object is not None}
    labels = list[dict[str, Any]]()
    for number in range(len(record.gt_boxes)):
        one, label = changed.get(number), int(record.gt_labels[number])
        entry = _entry(record.gt_boxes[number], label, index, ignored=bool(record.gt_ignore[number]))
        if one is None:
            labels.append({**entry, "suggestion": "keep"})
            continue
        fixed = _entry(np.array(one.box), one.label, index)
        was = {"was_category_id": entry["category_id"], "was_bbox": entry["bbox"]}
        labels.append({**fixed, "suggestion": SUGGESTIONS[one.kind], "score": one.score, **was})
    return labels + [
        {**_entry(np.array(one.box), one.label, index), "suggestion": SUGGESTIONS[one.kind], "score": one.score}
        for one in suspects
        if one.object is None
    ]


def _entry(box: NDArray[np.floating], label: int, index: AnnotationIndex, *, ignored: bool = False) -> dict[str, Any]:
    x1, y1, x2, y2 = (round(float(value), 2) for value in box)
    width, height = round(x2 - x1, 2), round(y2 - y1, 2)
    return {
        "category_id": index.category_ids[label],
        "bbox": [x1, y1, width, height],
        "area": round(width * height, 2),
        "iscrowd": int(ignored),
    }


def _task(
    name: str, size: tuple[int, int], labels: Sequence[dict[str, Any]], index: AnnotationIndex, score: float
) -> dict[str, Any]:
    """Returns a task of Label Studio with one prediction, whose coordinates are percent of the image."""
    names, (height, width) = dict(zip(index.category_ids, index.class_names, strict=True)), size
    result = []
    for label in labels:
        x, y, w, h = label["bbox"]
        value = {"x": 100 * x / width, "y": 100 * y / height, "width": 100 * w / width, "height": 100 * h / height}
        value |= {"rotation": 0, "rectanglelabels": [names[label["category_id"]]]}
        entry = {"type": "rectanglelabels", "from_name": "label", "to_name": "image", "value": value}
        entry |= {"original_width": width, "original_height": height, "image_rotation": 0}
        entry |= {"meta": {"text": [label["suggestion"]]}, "score": label.get("score", 1.0)}
        result.append(entry)
    return {"data": {"image": name}, "predictions": [{"model_version": "resdet", "score": score, "result": result}]}


def _words(one: Suspect, record: Record, names: Sequence[str]) -> str:
    was = "" if one.object is None else names[int(record.gt_labels[one.object])]
    return {"missing": names[one.label], "class": f"{was}, likely {names[one.label]}", "box": was, "extra": was}[
        one.kind
    ]


def _drawn(suspects: Sequence[Suspect]) -> list[list[Suspect]]:
    """Groups suspects by picture (one kind and image), the likeliest first."""
    groups, kinds = dict[tuple[int, Kind], list[Suspect]](), dict.fromkeys(KINDS, 0)
    for one in suspects:
        if (one.row, one.kind) in groups:
            groups[one.row, one.kind].append(one)
        elif kinds[one.kind] < MAX_PICTURES:
            groups[one.row, one.kind] = [one]
            kinds[one.kind] += 1
    return [*groups.values()]


def _picture(number: int, group: Sequence[Suspect], index: AnnotationIndex, record: Record) -> Block:
    """Draws the suspects of one kind in one image, with their surroundings.

    Labels are thin and white, doubted ones are framed, and suggestions have a class and a score.
    """
    kind, name, names = group[0].kind, Path(record.file_name).name, index.class_names
    said = ", ".join(f"{_words(one, record, names)} {one.score:.2f}" for one in group[:MAX_NAMED])
    more = f" and {len(group) - MAX_NAMED} more" if len(group) > MAX_NAMED else ""
    caption = f"{number}. {KINDS[kind]}: {said}{more}. {name}"
    try:
        image = index.image(group[0].row)
    except ValueError as error:
        return Text(f"{caption}: {error}")
    boxes, scores = np.array([one.box for one in group]), np.array([one.score for one in group])
    labels, shown = np.array([one.label for one in group]), slice(0) if kind == "extra" else slice(None)
    doubted = record.gt_boxes[[one.object for one in group if one.object is not None]]
    x1, y1, x2, y2 = _window(np.concatenate([boxes, doubted]), record.size)
    part, corner = image[y1:y2, x1:x2], np.array([x1, y1, x1, y1])
    canvas = draw_boxes(
        framed(part, doubted - corner),
        (boxes - corner)[shown],
        scores[shown],
        labels[shown],
        names,
        gt_boxes=record.gt_boxes - corner,
        scale=page_scale(part.shape),
    )
    return Pictures(f"suspect_{number}", [jpeg(canvas)], caption, [f"{name}: {KINDS[kind]}"])


def _window(boxes: NDArray[np.floating], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns the part x1, y1, x2, y2 of an image of ``size`` around ``boxes`` (N, 4), 4:3 if there is room."""
    (x1, y1), (x2, y2) = boxes[:, :2].min(axis=0).tolist(), boxes[:, 2:].max(axis=0).tolist()
    height = max(CONTEXT * max(x2 - x1, y2 - y1), LEAST_CONTEXT)
    width = height * 4 / 3
    left = min(max((x1 + x2 - width) / 2, 0), max(size[1] - width, 0))
    top = min(max((y1 + y2 - height) / 2, 0), max(size[0] - height, 0))
    return int(left), int(top), min(int(left + width) + 1, size[1]), min(int(top + height) + 1, size[0])

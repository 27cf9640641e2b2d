"""Reads COCO annotations: one JSON file with images, annotations and categories.

Source: the COCO data format, cocodataset.org.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from detection.config.load import build_dataclass
from detection.config.schema import checked
from detection.data.index import AnnotationIndex
from detection.data.kept_index import Found, kept_index
from detection.data.objects import ImageArrays, ImageRows, ObjectArrays, build_index, nearest_class
from detection.data.problems import Problem, listed
from detection.data.readers.coco_images import UNUSABLE, Images
from detection.data.readers.coco_keypoints import read_spec
from detection.data.readers.coco_objects import Annotations
from detection.data.readers.frames import Exif, Frames, OtherSize
from detection.data.readers.json_lists import UnsuitedError, decoded, list_blocks
from detection.data.readers.polygon_maps import with_polygon_maps
from detection.data.readers.values import MISSING, FieldError, mapping, shown, text, whole_number
from detection.files import require_file
from detection.keypoints import KeypointSpec

__all__ = ["COCOSplit", "coco_classes", "read_coco"]

BLOCK = 1 << 18  # objects that are checked together
LISTS = ("images", "annotations", "categories")
UNLISTED = -2  # in place of an image's row or a category's label

# Areas of masks lie between; a mask that fills less of its box is a wire, and none is larger.
LEAST_AREA, MOST_AREA = 0.01, 1.05


@checked
class COCOSplit:
    """A split as a card describes it; paths are below the data set's folder."""

    annotations: str
    images: str


@dataclass(slots=True)
class _File:
    """A COCO file while it is read: its place, and the results so far."""

    path: Path
    folder: Path  # of the data set
    images: Path  # folder of the images
    problems: list[Problem] = field(default_factory=list)
    labels: dict[int, int | str] = field(default_factory=dict)  # category id -> label, or its name if the card lacks it

    def say(self, kind: str, detail: str) -> None:
        self.problems.append(Problem("error", kind, str(self.path), detail))


@dataclass(slots=True)
class _Content:
    """The content of a file's lists."""

    images: Images
    annotations: Annotations
    categories: list[Any] = field(default_factory=list)
    rows: ImageArrays = field(default_factory=ImageRows().arrays)  # after all images were added
    has_annotations: bool = False


def read_coco(
    folder: Path,
    entry: dict[str, Any],
    classes: tuple[str, ...],
    *,
    drop: bool,
    exif: Exif,
    other_size: OtherSize = "error",
    fields: Collection[str] = (),
    polygons: bool = False,
) -> tuple[AnnotationIndex, list[Problem]]:
    """Returns the index of the split ``entry`` of the data set at ``folder``, and its problems.

    With "masks" among ``fields``, segmentations are read: polygons, and RLE for crowds.  With "keypoints", keypoints
    are read, with their names and skeleton from the categories; objects of categories without keypoints have no
    labelled keypoint.  A file without the list ``annotations``, as for COCO's test images, gives an index without
    ground truth.  With ``polygons`` the index has label maps made from the masks, and no objects.

    Raises:
        ValueError: ``entry`` does not describe a COCO split.
    """
    split = build_dataclass(COCOSplit, entry)
    file = _File(folder / split.annotations, folder, folder / split.images)
    fields = ("masks",) if polygons else fields

    def empty() -> _Content:
        images = Images(file.path, folder, file.images, Frames(exif, other_size))
        return _Content(images, Annotations(fields))

    facts = [str(file.path), str(folder), str(file.images), classes, drop, exif, other_size, sorted(fields)]
    index, problems = kept_index(file.path, facts, lambda: _index(file, empty, classes, drop, fields))
    return (with_polygon_maps(index) if polygons else index), problems


def _index(
    file: _File, empty: Callable[[], _Content], classes: tuple[str, ...], drop: bool, fields: Collection[str]
) -> Found:
    """Returns the index of ``file``, its problems, and whether no image had to be opened."""
    content = _read(file, empty)
    _read_categories(content.categories, classes, file)
    keypoints = _read_keypoints(content, classes, file) if "keypoints" in fields else None
    file.problems += content.images.problems
    ids = {label: category for category, label in file.labels.items() if isinstance(label, int)}
    objects = _usable_objects(content, classes, file)
    if keypoints is None:
        objects = replace(objects, fields={name: of for name, of in objects.fields.items() if name != "keypoints"})
    index, found = build_index(
        content.rows,
        objects,
        class_names=classes,
        category_ids=tuple(ids.get(label, -1) for label in range(len(classes))),
        files=[str(file.path)] * len(content.rows.ids),
        drop=drop,
        keypoints=keypoints,
    )
    index = replace(index, has_ground_truth=content.has_annotations)
    return index, file.problems + found, not content.images.frames.opened


def coco_classes(folder: Path, entry: dict[str, Any]) -> tuple[str, ...]:
    """Returns the category names of the split ``entry``, sorted by id.

    A category without objects that is only the supercategory of others, as in Roboflow's exports, is left out.

    Raises:
        ValueError: ``entry`` does not describe a COCO split.
    """
    split = build_dataclass(COCOSplit, entry)
    content = _load(_File(folder / split.annotations, folder, folder / split.images))
    found = [record for record in content["categories"] if isinstance(record, Mapping) and "name" in record]
    names = {record["id"]: str(record["name"]) for record in found if isinstance(record.get("id"), int)}
    above = {record.get("supercategory") for record in found if record.get("supercategory") != record["name"]}
    used = {record.get("category_id") for record in content.get("annotations", []) if isinstance(record, Mapping)}
    return tuple(
        dict.fromkeys(names[number] for number in sorted(names) if number in used or names[number] not in above)
    )


def _read(file: _File, empty: Callable[[], _Content]) -> _Content:
    """Returns the content of ``file``, read in blocks, or as a whole if that fails.

    Problems of the file are reported by the latter.
    """
    try:
        require_file(file.path)
        with file.path.open("rb") as stream:
            content = _read_blocks(stream, empty())
    except (OSError, UnsuitedError):
        lists, content = _load(file), empty()
        content.categories += lists["categories"]
        content.images.add(lists["images"])
        content.rows = content.images.finish()
        content.annotations.add_each(lists.get("annotations", []))
        content.has_annotations = "annotations" in lists
    else:
        file.problems += [] if content.has_annotations else [_without_truth(file)]
    return content


def _read_blocks(stream: BinaryIO, content: _Content) -> _Content:
    """Returns ``content`` after adding the lists of ``stream``.

    Raises:
        UnsuitedError: the lists can't be read in blocks, or some are missing.
    """
    seen, last = set[str](), ""
    for key, block in list_blocks(stream, LISTS):
        if last == "images" != key:
            content.rows = content.images.finish()  # frees memory
        last = key
        seen.add(key)
        if key == "annotations":
            content.annotations.add(block)
        elif key == "images":
            content.images.add(decoded(block))
        else:
            content.categories += decoded(block)
    if not seen.issuperset(("images", "categories")):
        raise UnsuitedError
    if last == "images":
        content.rows = content.images.finish()
    content.has_annotations = "annotations" in seen
    return content


def _load(file: _File) -> dict[str, list[Any]]:
    """Returns the lists of a COCO file, of which ``annotations`` is optional; empty lists if it can't be read."""
    empty: dict[str, list[Any]] = {key: [] for key in LISTS}
    try:
        require_file(file.path)
        with file.path.open("rb") as stream:
            content = json.load(stream)
    except (OSError, ValueError, RecursionError) as error:
        file.say("JSON that can't be read", str(error))
        return empty
    if not isinstance(content, Mapping):
        file.say("no COCO annotations", f"the file is {shown(content)}, expected an object with the lists {LISTS}")
        return empty
    for key in LISTS:
        if key == "annotations" and key not in content:
            file.problems.append(_without_truth(file))
        elif not isinstance(content.get(key), list):
            found = "missing" if key not in content else f"{shown(content[key])}, expected a list"
            file.say("no COCO annotations", f"the list {key!r} is {found}")
            return empty
    return {key: content[key] for key in LISTS if key in content}


def _without_truth(file: _File) -> Problem:
    detail = "the list 'annotations' is missing; its images can be predicted, not trained on or evaluated"
    return Problem("note", "no ground truth", str(file.path), detail)


def _read_categories(records: list[Any], classes: tuple[str, ...], file: _File) -> None:
    labels, names = file.labels, dict[str, int]()
    for position, record in enumerate(records):
        try:
            category = mapping(record, "the record")
            number = whole_number(category.get("id", MISSING), "id")
            name = text(category.get("name", MISSING), "name")
        except FieldError as error:
            file.say("category record", f"categories[{position}]: {error}")
            continue
        if number in labels:
            file.say("duplicate category id", f"{number} ({name})")
        elif name in classes and name in names:
            detail = (
                f"{name!r} has the ids {names[name]} and {number}; name one otherwise, or give all its objects one id"
            )
            file.say("duplicate category name", detail)
        else:
            names[name] = number
        labels[number] = classes.index(name) if name in classes else name
    missing = [name for name in classes if name not in names]
    if missing and records:
        others = [str(label) for label in labels.values() if isinstance(label, str)]
        detail = f"{listed(missing)}; file only: {listed(others)}"
        file.problems.append(Problem("note", "class of the card that the file lacks", str(file.path), detail))


def _read_keypoints(content: _Content, classes: tuple[str, ...], file: _File) -> KeypointSpec | None:
    """Returns the keypoints of the categories; None if they have none, which is an error if objects have keypoints."""
    try:
        spec = read_spec(content.categories, classes)
    except ValueError as error:
        file.say("keypoints of the categories", str(error))
        return None
    if spec is None and content.annotations.knows("keypoints"):
        file.say(
            "keypoints without names",
            "annotations have `keypoints`, and no category that is a class of the card has; give it `keypoints`, the "
            "list of their names",
        )
    return spec


def _usable_objects(content: _Content, classes: tuple[str, ...], file: _File) -> ObjectArrays:
    """Returns the objects of known images and classes, and reports the problem of each other annotation."""
    annotations, known = content.annotations, content.images.row_of
    categories = {number: label if isinstance(label, int) else UNUSABLE for number, label in file.labels.items()}
    rows, labels = annotations.find(known, categories, missing=UNLISTED)
    repeated = annotations.repeated()
    wrong = np.flatnonzero(repeated | (rows == UNLISTED) | (labels < 0))
    found = [("annotation record", detail, position) for position, detail in annotations.errors.items()]
    for row, position in zip(wrong.tolist(), annotations.positions(wrong).tolist(), strict=True):
        number, image, category = annotations.numbers(row)
        where, label = f"annotation {number} of image {image}", file.labels.get(category)
        if repeated[row]:
            kind, detail = "duplicate annotation id", where
        elif image not in known:
            kind, detail = "annotation of an image that is not listed", where
        elif label is None:
            kind = "category id out of range"
            detail = f"{where}, category_id {category}; the file has {listed(sorted(file.labels))}"
        else:
            kind, detail = "class that the card lacks", f"{where}, {nearest_class(str(label), classes)}"
        found.append((kind, detail, position))
    for kind, detail, _ in sorted(found, key=itemgetter(2)):
        file.say(kind, detail)
    kept = ~repeated & (rows >= 0) & (labels >= 0)
    known.clear()  # frees memory, which millions of objects need
    objects = annotations.take(kept, rows, labels, content.rows.ids, content.images.scales)
    file.problems += _area_notes(objects, str(file.path)) + content.images.frames.notes(str(file.path))
    return objects


def _area_notes(objects: ObjectArrays, file: str) -> list[Problem]:
    """Returns a note if most areas can't be mask areas in their boxes, as they decide which objects are small."""
    areas, boxes = objects.areas, objects.boxes
    wrong = list[int]()
    with np.errstate(all="ignore"):  # boxes are not checked yet and may hold any number
        for start in range(0, len(areas), BLOCK):
            own = boxes[start : start + BLOCK]
            filled = areas[start : start + BLOCK] / (own[:, 2:] - own[:, :2]).prod(axis=1)
            wrong += (np.flatnonzero((filled < LEAST_AREA) | (filled > MOST_AREA)) + start).tolist()
    if 2 * len(wrong) <= len(areas):
        return []
    first = wrong[0]
    width, height = (boxes[first, 2:] - boxes[first, :2]).tolist()
    detail = (
        f"{len(wrong)} of {len(areas)}; {objects.names[first]} has area {areas[first]:g} and a box of "
        f"{width:g}x{height:g}; leave `area` out to use the boxes'"
    )
    return [Problem("note", "areas that don't fit their boxes, so that sizes are wrong", file, detail, len(wrong))]

"""Reads COCO annotations: one JSON file with images, annotations and categories.

Source: the COCO data format, cocodataset.org.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from detection.config.load import build_dataclass
from detection.config.schema import checked
from detection.data.index import AnnotationIndex
from detection.data.objects import ImageRows, ObjectRows, build_index, files_in, nearest_class
from detection.data.problems import Problem, listed
from detection.data.readers.frames import Exif, Frames, OtherSize
from detection.data.readers.meant import Meant, inside
from detection.data.readers.values import MISSING, FieldError, area, box, flag, mapping, shown, text, whole_number
from detection.files import require_file

__all__ = ["COCOSplit", "coco_classes", "read_coco"]

LISTS = ("images", "annotations", "categories")

# Areas of masks lie between; a mask that fills less of its box is a wire, and none is larger.
LEAST_AREA, MOST_AREA = 0.01, 1.05


@checked
class COCOSplit:
    """A split as a card describes it; paths are below the data set's folder."""

    annotations: str
    images: str


@dataclass(slots=True)
class _File:
    """A COCO file as it is read: where it is, and what was found in it so far."""

    path: Path
    folder: Path  # of the data set
    images: Path  # folder of the images
    problems: list[Problem]
    rows: dict[int, int | None] = field(default_factory=dict)  # image id -> row; None: the image can't be used
    scales: dict[int, tuple[float, float]] = field(default_factory=dict)  # row -> of its boxes, where it is not 1
    labels: dict[int, int | str] = field(default_factory=dict)  # category id -> label, or its name if the card lacks it

    def say(self, kind: str, detail: str) -> None:
        self.problems.append(Problem("error", kind, str(self.path), detail))


def read_coco(
    folder: Path,
    entry: dict[str, Any],
    classes: tuple[str, ...],
    *,
    drop: bool,
    exif: Exif,
    other_size: OtherSize = "error",
    fields: Collection[str] = (),
) -> tuple[AnnotationIndex, list[Problem]]:
    """The index of the split ``entry`` of the data set at ``folder``, and all that is wrong with it.

    With "masks" among ``fields``, segmentations are read too: polygons, and RLE of crowds.  A file without the list
    ``annotations``, as those of COCO's test images, gives an index without ground truth.

    Raises:
        ValueError: ``entry`` is no description of a COCO split.
    """
    split = build_dataclass(COCOSplit, entry)
    file = _File(folder / split.annotations, folder, folder / split.images, [])
    content = _load(file)
    _read_categories(content["categories"], classes, file)
    frames = Frames(exif, other_size)
    images = _read_images(content["images"], frames, file)
    objects = _read_objects(content.get("annotations", []), classes, file)
    file.problems += _area_notes(objects, str(file.path)) + frames.notes(str(file.path))
    ids = {label: category for category, label in file.labels.items() if isinstance(label, int)}
    index, found = build_index(
        images,
        objects if "masks" in fields else replace(objects, fields={}),
        class_names=classes,
        category_ids=tuple(ids.get(label, -1) for label in range(len(classes))),
        files=[str(file.path)] * len(images.ids),
        drop=drop,
    )
    return replace(index, has_ground_truth="annotations" in content), file.problems + found


def coco_classes(folder: Path, entry: dict[str, Any]) -> tuple[str, ...]:
    """Returns the names of the categories of the split ``entry``, by their ids.

    One without an object that is only the supercategory of others, as Roboflow's exports have, is left out.

    Raises:
        ValueError: ``entry`` is no description of a COCO split.
    """
    split = build_dataclass(COCOSplit, entry)
    content = _load(_File(folder / split.annotations, folder, folder / split.images, []))
    found = [record for record in content["categories"] if isinstance(record, Mapping) and "name" in record]
    names = {record["id"]: str(record["name"]) for record in found if isinstance(record.get("id"), int)}
    above = {record.get("supercategory") for record in found if record.get("supercategory") != record["name"]}
    used = {record.get("category_id") for record in content.get("annotations", []) if isinstance(record, Mapping)}
    return tuple(
        dict.fromkeys(names[number] for number in sorted(names) if number in used or names[number] not in above)
    )


def _load(file: _File) -> dict[str, list[Any]]:
    """The lists of a COCO file, perhaps without ``annotations``; empty ones where it can't be read."""
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
            detail = "the list 'annotations' is missing; its images can be predicted, not trained on or evaluated"
            file.problems.append(Problem("note", "no ground truth", str(file.path), detail))
        elif not isinstance(content.get(key), list):
            found = "missing" if key not in content else f"{shown(content[key])}, expected a list"
            file.say("no COCO annotations", f"the list {key!r} is {found}")
            return empty
    return {key: content[key] for key in LISTS if key in content}


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


def _read_images(records: list[Any], frames: Frames, file: _File) -> ImageRows:
    images, stored, owners = ImageRows(), files_in(file.images), dict[str, int]()
    folder, below, meant = str(file.folder), str(file.images), Meant(file.images)
    for position, record in enumerate(records):
        try:
            image = mapping(record, "the record")
            number = whole_number(image.get("id", MISSING), "id")
            name = text(image.get("file_name", MISSING), "file_name")
            size = _size(image)
        except FieldError as error:
            file.say("image record", f"images[{position}]: {error}")
            continue
        where = f"image {number} ({name})"
        if number in file.rows:
            file.say("duplicate image id", where)
            continue
        file.rows[number] = None
        path = inside(folder, below, name)
        if path is None:
            file.say("image outside the data set's folder", where + meant.hint(name))
        elif name not in stored and not _is_file(path):
            detail = f"{where} of {file.path}{meant.hint(name)}"
            file.problems.append(Problem("error", "missing image", path, detail))
        elif (owner := owners.setdefault(path, number)) != number:
            file.say("image file under two ids", f"image {owner} and {where}; give all its annotations one image_id")
        else:
            _add_image(images, number, path, size, frames, where, file)
    return images


def _add_image(
    images: ImageRows, number: int, path: str, size: tuple[int, int] | None, frames: Frames, where: str, file: _File
) -> None:
    try:
        frame = frames.find(path, size)
    except ValueError as error:
        file.say("image size", f"{where}: {error}")
        return
    file.rows[number] = row = len(images.ids)
    if frame.scale != (1.0, 1.0):
        file.scales[row] = frame.scale
    images.paths.append(path)
    images.ids.append(number)
    images.sizes.append(frame.size)
    images.apply_exif.append(frame.apply_exif)


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) of a record; None if it has neither."""
    if image.get("height") is None and image.get("width") is None:
        return None
    height, width = (whole_number(image.get(key, MISSING), key) for key in ("height", "width"))
    return height, width


def _read_objects(records: list[Any], classes: tuple[str, ...], file: _File) -> ObjectRows:
    objects, seen = ObjectRows(), set[int]()
    rows, labels, scales = file.rows, file.labels, file.scales
    for position, record in enumerate(records):
        try:
            annotation = mapping(record, "the record")
            get = annotation.get
            number = whole_number(get("id", MISSING), "id")
            image = whole_number(get("image_id", MISSING), "image_id")
            category = whole_number(get("category_id", MISSING), "category_id")
            x, y, width, height = box(get("bbox", MISSING), "bbox")
            ignore = flag(get("iscrowd", 0), "iscrowd")
            size = area(get("area"), "area") if "area" in annotation else None
        except FieldError as error:
            file.say("annotation record", _described(position, record, error))
            continue
        where, label = f"annotation {number} of image {image}", labels.get(category)
        if number in seen:
            file.say("duplicate annotation id", where)
        elif image not in rows:
            file.say("annotation of an image that is not listed", where)
        elif label is None:
            file.say(
                "category id out of range", f"{where}, category_id {category}; the file has {listed(sorted(labels))}"
            )
        elif isinstance(label, str):
            file.say("class that the card lacks", f"{where}, {nearest_class(label, classes)}")
        elif (row := rows[image]) is not None:
            sx, sy = scales.get(row, (1.0, 1.0))
            objects.images.append(row)
            objects.boxes.append((sx * x, sy * y, sx * (x + width), sy * (y + height)))
            objects.labels.append(label)
            objects.ignore.append(ignore)
            objects.areas.append(None if size is None else size * sx * sy)
            objects.names.append(where)
            objects.fields["masks"].append(None if row in scales else get("segmentation"))
        seen.add(number)
    return objects


def _described(position: int, record: Any, error: FieldError) -> str:
    """``error`` of ``record`` behind what identifies it."""
    known = record if isinstance(record, dict) else {}
    ids = ", ".join(f"{key} {shown(known[key])}" for key in ("id", "image_id") if key in known)
    repair = ""
    if "bbox" not in known and known.get("segmentation"):
        repair = "; it has a segmentation: add the box around it"
    return f"annotations[{position}]{f' ({ids})' if ids else ''}: {error}{repair}"


def _area_notes(objects: ObjectRows, file: str) -> list[Problem]:
    """A note if most areas can't be those of masks in their boxes; they decide which objects are small."""
    areas = np.array(objects.areas, dtype=np.float64)  # None becomes NaN
    boxes = np.array(objects.boxes, dtype=np.float64).reshape(-1, 4)
    with np.errstate(all="ignore"):  # boxes may hold any number here; the index checks them later
        sides = boxes[:, 2:] - boxes[:, :2]
        filled = areas / sides.prod(axis=1)
        wrong = np.flatnonzero((filled < LEAST_AREA) | (filled > MOST_AREA))
    if 2 * len(wrong) <= len(areas):
        return []
    first = int(wrong[0])
    width, height = sides[first].tolist()
    detail = (
        f"{len(wrong)} of {len(areas)}; {objects.names[first]} has area {areas[first]:g} and a box of "
        f"{width:g}x{height:g}; leave `area` out to use the boxes'"
    )
    return [Problem("note", "areas that don't fit their boxes, so that sizes are wrong", file, detail, len(wrong))]


def _is_file(path: str) -> bool:
    try:
        require_file(Path(path))
    except (OSError, ValueError):  # nothing there, or a name that no file can have
        return False
    return True

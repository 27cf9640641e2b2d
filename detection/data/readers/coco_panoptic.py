"""Reads COCO's panoptic annotations: a JSON file of segments, and a PNG of segment numbers per image.

Objects come from a file of instances, which may overlap and have exact outlines, or else from the segments of things.

Source: the COCO panoptic format, cocodataset.org and panopticapi.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from detection.config.load import build_dataclass
from detection.config.schema import checked
from detection.data.images import ImageError
from detection.data.index import AnnotationIndex
from detection.data.label_maps import LabelMaps, without_file
from detection.data.objects import ImageArrays, ObjectRows, build_index, files_in, nearest_class
from detection.data.packed_strings import PackedStrings
from detection.data.panoptic_files import MAX_ID
from detection.data.problems import Problem, listed
from detection.data.readers.coco import read_coco
from detection.data.readers.coco_images import UNUSABLE, Images
from detection.data.readers.frames import Exif, Frames
from detection.data.readers.meant import inside
from detection.data.readers.values import MISSING, FieldError, area, box, flag, mapping, shown, text, whole_number
from detection.files import require_file
from detection.masks import encode

__all__ = ["PanopticSplit", "coco_panoptic_classes", "read_coco_panoptic"]

LISTS = ("images", "annotations", "categories")


@checked
class PanopticSplit:
    """A split as a card describes it; paths are below the data set's folder."""

    panoptic: str  # JSON file
    segments: str  # folder of PNGs
    images: str
    annotations: str | None = None  # JSON file of instances; null: objects come from the segments


@dataclass(slots=True)
class _Class:
    """A category of the file."""

    id: int
    name: str
    thing: bool


@dataclass(slots=True)
class _Segment:
    """An entry of segments_info; ``box`` and ``area`` are unchecked."""

    id: int
    label: int
    crowd: bool
    record: Mapping[str, Any]


@dataclass(slots=True)
class _File:
    """A panoptic file while it is read: its place, and the results so far."""

    path: Path
    folder: Path  # of the data set
    segments: Path  # folder of the PNGs
    problems: list[Problem] = field(default_factory=list)

    def say(self, kind: str, detail: str) -> None:
        self.problems.append(Problem("error", kind, str(self.path), detail))


def read_coco_panoptic(
    folder: Path,
    entry: dict[str, Any],
    classes: tuple[str, ...],
    *,
    drop: bool,
    exif: Exif,
    fields: Collection[str] = (),
    label_maps: bool = False,
) -> tuple[AnnotationIndex, list[Problem]]:
    """Returns the index of the split ``entry`` of the data set at ``folder``, and its problems.

    The index has the objects of the things among ``classes``, and on request label maps of all classes, things first.
    PNGs are read later, with the images, unless masks are made from the segments.

    Raises:
        ValueError: ``entry`` does not describe a panoptic split.
    """
    split = build_dataclass(PanopticSplit, entry)
    file = _File(folder / split.panoptic, folder, folder / split.segments)
    content = _load(file)
    known = _categories(content["categories"], file)
    lacking = [name for name in classes if name not in {category.name for category in known}]
    if lacking and known:
        file.say("class of the card that the file lacks", f"{listed(lacking)}, so `isthing` is not known")
    thing = {category.name: category.thing for category in known}
    things = tuple(name for name in classes if thing.get(name))
    ordered = (*things, *(name for name in classes if not thing.get(name)))
    labels = {category.id: ordered.index(category.name) for category in known if category.name in ordered}
    names = {category.id: category.name for category in known}

    if split.annotations is not None:
        instances = {"annotations": split.annotations, "images": split.images}
        index, problems = read_coco(folder, instances, things, drop=drop, exif=exif, fields=fields)
        row_of = {number: row for row, number in enumerate(index.image_ids.tolist())}
        segments = _read_segments(content["annotations"], row_of, labels, names, ordered, file)
        maps = _label_maps(segments, len(index), ordered, labels, len(things))
        return replace(index, label_maps=maps if label_maps else None), [*problems, *file.problems]

    images = Images(file.path, folder, folder / split.images, Frames(exif, "error"))
    images.add(content["images"])
    file.problems += images.problems
    rows = images.finish()
    segments = _read_segments(content["annotations"], images.row_of, labels, names, ordered, file)
    maps = _label_maps(segments, len(rows.ids), ordered, labels, len(things))
    ids = {label: number for number, label in labels.items()}
    index, problems = build_index(
        rows,
        _objects(segments, rows, maps, "masks" in fields, file),
        class_names=things,
        category_ids=tuple(ids.get(label, -1) for label in range(len(things))),
        files=[str(file.path)] * len(rows.ids),
        drop=drop,
    )
    return replace(index, label_maps=maps if label_maps else None), [*file.problems, *problems]


def coco_panoptic_classes(folder: Path, entry: dict[str, Any]) -> tuple[str, ...]:
    """Returns the category names of the split ``entry``: things sorted by id, then stuff.

    Raises:
        ValueError: ``entry`` does not describe a panoptic split.
    """
    split = build_dataclass(PanopticSplit, entry)
    file = _File(folder / split.panoptic, folder, folder / split.segments)
    known = sorted(_categories(_load(file)["categories"], file), key=lambda category: (not category.thing, category.id))
    return tuple(dict.fromkeys(category.name for category in known))


def _load(file: _File) -> dict[str, list[Any]]:
    """Returns the lists of a panoptic file; empty lists if it can't be read."""
    try:
        require_file(file.path)
        content = json.loads(file.path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        file.say("JSON that can't be read", str(error))
        return {key: [] for key in LISTS}
    if not isinstance(content, Mapping):
        file.say("no panoptic annotations", f"the file is {shown(content)}, expected an object with the lists {LISTS}")
        return {key: [] for key in LISTS}
    for key in LISTS:
        if not isinstance(content.get(key), list):
            found = "missing" if key not in content else f"{shown(content[key])}, expected a list"
            file.say("no panoptic annotations", f"the list {key!r} is {found}")
            return {key: [] for key in LISTS}
    return {key: content[key] for key in LISTS}


def _categories(records: Sequence[Any], file: _File) -> list[_Class]:
    found = list[_Class]()
    for position, record in enumerate(records):
        try:
            category = mapping(record, "the record")
            own = _Class(
                whole_number(category.get("id", MISSING), "id"),
                text(category.get("name", MISSING), "name"),
                flag(category.get("isthing", MISSING), "isthing"),
            )
        except FieldError as error:
            file.say("category record", f"categories[{position}]: {error}")
            continue
        if own.id in {other.id for other in found}:
            file.say("duplicate category id", f"{own.id} ({own.name})")
        elif own.name in {other.name for other in found}:
            file.say("duplicate category name", f"{own.name!r} of category {own.id}")
        else:
            found.append(own)
    return found


def _read_segments(
    records: Sequence[Any],
    row_of: Mapping[int, int],
    labels: Mapping[int, int],
    names: Mapping[int, str],
    classes: tuple[str, ...],
    file: _File,
) -> dict[int, tuple[str, list[_Segment]]]:
    """Returns the PNG and the segments of each image that has some, by row.

    Args:
        records: the list ``annotations``.
        row_of: row by image id; UNUSABLE if the image can't be used.
        labels: label by category id.
        names: name of every category, by id.
        classes: names of the labels.
        file: collects problems.
    """
    found, stored = dict[int, tuple[str, list[_Segment]]](), files_in(file.segments)
    for position, record in enumerate(records):
        try:
            annotation = mapping(record, "the record")
            image = whole_number(annotation.get("image_id", MISSING), "image_id")
            name = text(annotation.get("file_name", MISSING), "file_name")
            infos = annotation.get("segments_info", MISSING)
            if not isinstance(infos, list):
                raise FieldError("segments_info", infos, "a list")
        except FieldError as error:
            file.say("annotation record", f"annotations[{position}]: {error}")
            continue
        where, row = f"annotation of image {image} ({name})", row_of.get(image)
        path = inside(str(file.folder), str(file.segments), name)
        if row is None:
            file.say("annotation of an image that is not listed", where)
        elif row in found:
            file.say("image with two annotations", where)
        elif path is None:
            file.say("label image outside the data set's folder", where)
        elif name not in stored and not Path(path).is_file():
            file.problems.append(Problem("error", "missing label image", path, f"{where} of {file.path}"))
        elif row != UNUSABLE:
            found[row] = path, [*_segments(infos, where, labels, names, classes, file)]
    return found


def _segments(
    infos: Sequence[Any],
    where: str,
    labels: Mapping[int, int],
    names: Mapping[int, str],
    classes: tuple[str, ...],
    file: _File,
) -> Iterator[_Segment]:
    seen = set[int]()
    for position, info in enumerate(infos):
        try:
            record = mapping(info, "the record")
            number = whole_number(record.get("id", MISSING), "id")
            if not 0 < number <= MAX_ID:
                raise FieldError("id", number, f"1 to {MAX_ID}, the colours of a PNG")
            category = whole_number(record.get("category_id", MISSING), "category_id")
            crowd = flag(record.get("iscrowd", 0), "iscrowd")
        except FieldError as error:
            file.say("segment record", f"{where}, segments_info[{position}]: {error}")
            continue
        if number in seen:
            file.say("duplicate segment id", f"{where}, segment {number}")
        elif category not in names:
            detail = f"{where}, segment {number}, category_id {category}; the file has {listed(sorted(names))}"
            file.say("category id out of range", detail)
        elif category not in labels:
            detail = f"{where}, segment {number}, {nearest_class(names[category], classes)}"
            file.say("class that the card lacks", detail)
        else:
            yield _Segment(number, labels[category], crowd, record)
        seen.add(number)


def _label_maps(
    segments: Mapping[int, tuple[str, list[_Segment]]],
    num_images: int,
    classes: tuple[str, ...],
    labels: Mapping[int, int],
    num_things: int,
) -> LabelMaps:
    """Returns the label maps of the images; an image without segments is void."""
    known = [segments.get(row, ("", [])) for row in range(num_images)]
    packed = [json.dumps([[own.id, own.label, own.crowd] for own in found]) for _, found in known]
    return LabelMaps(
        class_names=classes,
        files=PackedStrings.pack([path for path, _ in known]),
        values=labels,
        num_things=num_things,
        segments=PackedStrings.pack(packed),
    )


def _objects(
    segments: Mapping[int, tuple[str, list[_Segment]]],
    images: ImageArrays,
    maps: LabelMaps,
    with_masks: bool,
    file: _File,
) -> ObjectRows:
    """Returns the segments of things as objects."""
    objects = ObjectRows()
    for row, (path, found) in sorted(segments.items()):
        things, ids = [own for own in found if own.label < maps.num_things], None
        if with_masks and things:
            height, width = images.sizes[row].tolist()
            try:
                ids = maps.read_segments(row, (height, width)).ids
            except ImageError as error:
                file.problems.append(Problem("error", "label image", path, without_file(error, path)))
                continue
        for own in things:
            name = f"segment {own.id} of image {images.ids[row]}"
            try:
                x, y, width, height = box(own.record.get("bbox", MISSING), "bbox")
                size = area(own.record["area"], "area") if "area" in own.record else None
            except FieldError as error:
                file.say("segment record", f"{name}: {error}")
                continue
            objects.images.append(row)
            objects.boxes.append((x, y, x + width, y + height))
            objects.labels.append(own.label)
            objects.ignore.append(own.crowd)
            objects.areas.append(size)
            objects.names.append(name)
            if ids is not None:
                objects.fields["masks"].append(encode(ids == own.id))
    return objects

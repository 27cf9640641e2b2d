"""Converts images with named objects, the content of most label formats, to an AnnotationIndex.

Each format has a file that parses its labels to ``Labels``.  All further steps are here: classes, coordinate frames,
conversion of fractions of the image to pixels, problems.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detection.data.index import AnnotationIndex
from detection.data.objects import ImageRows, ObjectRows, build_index, nearest_class
from detection.data.problems import Problem
from detection.data.readers.frames import Exif, Frame, Frames, OtherSize

__all__ = ["Box", "LabelledImage", "LabelledObject", "Labels", "Parse", "extent", "read_labelled"]

Box = tuple[float, float, float, float]  # x1, y1, x2, y2
Polygon = Sequence[float]  # x, y, x, y, ...


@dataclass(frozen=True, slots=True)
class LabelledObject:
    """One object; box and polygons are in pixels of the annotated image, or in fractions of it.

    Attributes:
        name: class name in the files.
        box: box of the object.
        where: name of the object in the file, for messages.
        ignore: whether the object is used neither in training nor in evaluation.
        mask: polygons, or COCO's run-length code; None: no mask.
    """

    name: str
    box: Box
    where: str
    ignore: bool = False
    mask: Any = None


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image.

    Attributes:
        path: image file.
        file: label file.
        size: annotated (height, width); None if the file has none.
        objects: objects of the image.
        fractions: whether boxes and polygons are in fractions 0..1 of the image's sides, not in pixels.
    """

    path: Path
    file: Path
    size: tuple[int, int] | None
    objects: Sequence[LabelledObject]
    fractions: bool = False


@dataclass(slots=True)
class Labels:
    """The result of a parser.

    Attributes:
        images: images in the order of the files.
        declared: class names that the files list, in their order; may be empty.
        problems: problems of the files.
    """

    images: list[LabelledImage] = field(default_factory=list)
    declared: tuple[str, ...] = ()
    problems: list[Problem] = field(default_factory=list)

    @property
    def classes(self) -> tuple[str, ...]:
        """The declared class names, then other class names of objects, sorted."""
        used = {item.name for image in self.images for item in image.objects}
        return (*self.declared, *sorted(used - set(self.declared)))

    def say(self, kind: str, file: Path | str, detail: str) -> None:
        """Adds an error."""
        self.problems.append(Problem("error", kind, str(file), detail))

    def drop(self, kind: str, file: Path | str, detail: str, count: int = 1) -> None:
        """Adds a problem of something that is left out."""
        self.problems.append(Problem("dropped", kind, str(file), detail, count))


# Parses the split of a card: (folder of the data set, entry of the split, class names of the card) -> labels.
Parse = Callable[[Path, dict[str, Any], tuple[str, ...]], Labels]


def read_labelled(
    parse: Parse,
    folder: Path,
    entry: dict[str, Any],
    classes: tuple[str, ...],
    *,
    drop: bool,
    exif: Exif,
    other_size: OtherSize = "error",
    fields: Collection[str] = (),
    drop_images: bool = False,
) -> tuple[AnnotationIndex, list[Problem]]:
    """Returns the index of the split ``entry`` of the data set at ``folder``, and its problems.

    Args:
        parse: parser of the format.
        folder: folder of the data set.
        entry: entry of the split in the card.
        classes: K names of the card.
        drop: leave out unusable boxes; else they are errors.
        exif: use of orientation tags.
        other_size: treatment of an image whose resolution differs from its annotation.
        fields: fields to read with the boxes, such as "masks".
        drop_images: leave out unreadable images; else they are errors.

    Raises:
        ValueError: ``entry`` does not describe such a split.
    """
    labels = parse(folder, entry, classes)
    frames, images, objects, files = Frames(exif, other_size), ImageRows(), ObjectRows(), list[str]()
    numbers = {name: number for number, name in enumerate(classes)}
    for image in labels.images:
        try:
            frame = frames.find(str(image.path), image.size)
        except ValueError as error:
            severity = "dropped" if drop_images else "error"
            labels.problems.append(Problem(severity, "image that can't be read", str(image.path), str(error)))
            continue
        row = len(images.ids)
        images.paths.append(str(image.path))
        images.ids.append(row + 1)
        images.sizes.append(frame.size)
        images.apply_exif.append(frame.apply_exif)
        files.append(str(image.file))
        _add_objects(image, row, frame, numbers, objects, labels)
    labels.problems += frames.notes(str(folder))
    index, found = build_index(
        images,
        objects if "masks" in fields else _without_masks(objects),
        class_names=classes,
        category_ids=tuple(range(1, len(classes) + 1)),
        files=files,
        drop=drop,
    )
    return index, labels.problems + found


def extent(points: Iterable[Sequence[float]]) -> Box:
    """Returns the box around ``points`` (x, y), at least one."""
    columns, rows = zip(*((point[0], point[1]) for point in points), strict=True)
    return min(columns), min(rows), max(columns), max(rows)


def _add_objects(
    image: LabelledImage, row: int, frame: Frame, numbers: Mapping[str, int], objects: ObjectRows, labels: Labels
) -> None:
    sx, sy = (frame.size[1], frame.size[0]) if image.fractions else frame.scale
    for item in image.objects:
        if item.name not in numbers:
            detail = f"{item.where}, {nearest_class(item.name, tuple(numbers))}"
            labels.say("class that the card lacks", image.file, detail)
            continue
        x1, y1, x2, y2 = item.box
        objects.images.append(row)
        objects.boxes.append((sx * x1, sy * y1, sx * x2, sy * y2))
        objects.labels.append(numbers[item.name])
        objects.ignore.append(item.ignore)
        objects.areas.append(None)
        objects.names.append(f"{item.where} ({item.name})")
        objects.fields["masks"].append(_scaled(item.mask, sx, sy))


def _scaled(mask: Any, sx: float, sy: float) -> Any:
    """Returns ``mask`` in pixels of the image file; None for a run-length code of another resolution."""
    if (sx, sy) == (1.0, 1.0) or mask is None:
        return mask
    if not isinstance(mask, list):
        return None
    return [[value * (sy if place % 2 else sx) for place, value in enumerate(polygon)] for polygon in mask]


def _without_masks(objects: ObjectRows) -> ObjectRows:
    objects.fields.clear()
    return objects

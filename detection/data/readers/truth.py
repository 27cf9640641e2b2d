"""Reads the ground truth of a COCO file without changes and without images, to evaluate detections of any program.

``readers/coco.py`` reads such files for training: it opens images, takes the classes of a card and cuts boxes at the
border.  Here every number is kept, as in the official evaluation.

Shapes: N images, M objects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.data.problems import Problem, listed, refuse_errors
from detection.data.readers.coco_keypoints import read_spec
from detection.data.readers.results import Known
from detection.data.readers.values import MISSING, FieldError, box, flag, mapping, number, shown, text, whole_number
from detection.fields.keypoints import of_coco
from detection.files import require_file
from detection.keypoints import KeypointSpec
from detection.masks import RLE, empty_rle, to_rle

__all__ = ["Truth", "read_truth"]

LISTS = ("images", "annotations", "categories")


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """Images and objects of a file; images in its order, classes by category id."""

    class_names: tuple[str, ...]  # K
    known: Known  # the same images and categories, by their ids
    file_names: tuple[str, ...]  # N
    ends: NDArray[np.int64]  # (N,) image i owns the objects ends[i - 1] .. ends[i]
    boxes: NDArray[np.float64]  # (M, 4) x1, y1, x2, y2 in pixels
    labels: NDArray[np.int64]  # (M,)
    ignore: NDArray[np.bool_]  # (M,) crowds
    areas: NDArray[np.float64]  # (M,) square pixels
    masks: tuple[RLE, ...] | None  # (M,) without a pixel where unknown; None: the file has none, or no sizes for them
    keypoints: NDArray[np.float64] | None = None  # (M, J, 3) x, y, visibility; None: the file has none
    keypoint_spec: KeypointSpec | None = None

    def rows(self, image: int) -> slice:
        """Returns the rows of the objects of ``image`` (0..N-1)."""
        return slice(int(self.ends[image - 1]) if image else 0, int(self.ends[image]))


@dataclass(slots=True)
class _Read:
    """The columns read so far."""

    path: Path
    problems: list[Problem] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)  # category id -> name
    images: dict[int, _Image] = field(default_factory=dict)  # by id, in the file's order
    objects: list[_Object] = field(default_factory=list)
    spec: KeypointSpec | None = None
    no_keypoints: str = ""  # why there is none


@dataclass(frozen=True, slots=True)
class _Image:
    file_name: str
    size: tuple[int, int] | None  # (height, width)


@dataclass(frozen=True, slots=True)
class _Object:
    image: int  # id
    category: int  # id
    box: tuple[float, float, float, float]  # x1, y1, x2, y2
    ignore: bool
    area: float
    segmentation: Any  # None: unknown
    keypoints: NDArray[np.float64] | None  # (J, 3); None: the file names none


def read_truth(path: Path) -> Truth:
    """Returns the ground truth in the COCO file ``path``.

    Raises:
        ValueError: the file can't be read, lacks a list, or has invalid records, which the message names.
    """
    content, read = _load(path), _Read(path)
    try:
        names = tuple(str(record.get("name")) for record in content["categories"] if isinstance(record, dict))
        read.spec = read_spec(content["categories"], names)
    except ValueError as error:  # which does not matter to boxes
        read.no_keypoints = str(error)
    for kind, add in (("categories", _add_category), ("images", _add_image), ("annotations", _add_object)):
        for position, record in enumerate(content[kind]):
            try:
                add(read, mapping(record, "the record"))
            except ValueError as error:
                read.problems.append(Problem("error", f"{kind}[{position}]", str(path), str(error)))
    refuse_errors(read.problems, str(path), rest="")
    return _pack(read)


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        require_file(path)
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read: {error}; expected annotations in COCO's format") from error
    lacking = [key for key in LISTS if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if lacking:
        repair = "; are these detections? They go behind --detections" if isinstance(content, list) else ""
        raise ValueError(
            f"{path} holds {shown(content)} without the list{'s' * (len(lacking) > 1)} {', '.join(lacking)}; expected "
            f"COCO's annotations, an object with {', '.join(LISTS)}{repair}"
        )
    return {key: content[key] for key in LISTS}


def _add_category(read: _Read, record: Mapping[str, Any]) -> None:
    category, name = whole_number(record.get("id", MISSING), "id"), text(record.get("name", MISSING), "name")
    if category in read.names or name in read.names.values():
        raise ValueError(f"id {category}, name {name!r} occurs twice; give each category an id and a name of its own")
    read.names[category] = name


def _add_image(read: _Read, record: Mapping[str, Any]) -> None:
    image = whole_number(record.get("id", MISSING), "id")
    if image in read.images:
        raise ValueError(f"id {image} occurs twice; give each image an id of its own")
    sides = [record.get(key) for key in ("height", "width")]
    size = None if None in sides else (whole_number(sides[0], "height"), whole_number(sides[1], "width"))
    read.images[image] = _Image(text(record.get("file_name", str(image)), "file_name"), size)


def _add_object(read: _Read, record: Mapping[str, Any]) -> None:
    image, category = (whole_number(record.get(key, MISSING), key) for key in ("image_id", "category_id"))
    if image not in read.images:
        raise FieldError("image_id", image, "an image of the list `images`")
    if category not in read.names:
        raise FieldError("category_id", category, f"one of {listed(sorted(read.names))}")
    x, y, width, height = sides = box(record.get("bbox", MISSING), "bbox")
    if not np.isfinite(sides).all() or width < 0 or height < 0:
        raise FieldError("bbox", [*sides], "finite [x, y, width, height] in pixels, sides not below 0")
    read.objects.append(
        _Object(
            image,
            category,
            (x, y, x + width, y + height),
            flag(record.get("iscrowd", 0), "iscrowd"),
            number(record["area"], "area") if "area" in record else width * height,
            record.get("segmentation") or None,
            None if read.spec is None else _points(record, read.spec),
        )
    )


def _points(record: Mapping[str, Any], spec: KeypointSpec) -> NDArray[np.float64]:
    """Returns the keypoints (J, 3) of an object; all are unlabelled if the record has no keypoints."""
    return of_coco(record["keypoints"], spec.names) if record.get("keypoints") else np.zeros((len(spec), 3))


def _pack(read: _Read) -> Truth:
    rows = {image: row for row, image in enumerate(read.images)}
    labels = {category: label for label, category in enumerate(sorted(read.names))}
    objects = sorted(read.objects, key=lambda one: rows[one.image])
    return Truth(
        class_names=tuple(read.names[category] for category in sorted(read.names)),
        known=Known(
            source=str(read.path),
            image_ids=tuple(read.images),
            sizes=tuple(image.size for image in read.images.values()),
            category_ids=tuple(sorted(read.names)),
            keypoints=() if read.spec is None else read.spec.names,
            no_keypoints=read.no_keypoints,
        ),
        file_names=tuple(image.file_name for image in read.images.values()),
        ends=np.searchsorted([rows[one.image] for one in objects], np.arange(len(rows)), side="right"),
        boxes=np.array([one.box for one in objects], np.float64).reshape(-1, 4),
        labels=np.array([labels[one.category] for one in objects], np.int64),
        ignore=np.array([one.ignore for one in objects], np.bool_),
        areas=np.array([one.area for one in objects], np.float64),
        masks=_masks(read, objects),
        keypoints=_keypoints(read.spec, objects),
        keypoint_spec=read.spec,
    )


def _masks(read: _Read, objects: Sequence[_Object]) -> tuple[RLE, ...] | None:
    """Returns the masks of ``objects``; None if no object has a mask, or an image has no size."""
    sizes = {image: read.images[image].size for image in {one.image for one in objects}}
    if not any(one.segmentation for one in objects) or None in sizes.values():
        return None
    masks, problems = list[RLE](), list[Problem]()
    for one in objects:
        size = sizes[one.image] or (0, 0)
        try:
            known = one.segmentation is not None
            masks.append(to_rle(one.segmentation, size, may_be_empty=True) if known else empty_rle(size))
        except ValueError as error:
            problems.append(Problem("error", f"mask in image {one.image}", str(read.path), str(error)))
    refuse_errors(problems, str(read.path), rest="")
    return tuple(masks)


def _keypoints(spec: KeypointSpec | None, objects: Sequence[_Object]) -> NDArray[np.float64] | None:
    if spec is None:
        return None
    known = [one.keypoints for one in objects if one.keypoints is not None]
    return np.stack(known) if known else np.zeros((0, len(spec), 3))

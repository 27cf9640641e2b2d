"""The table of label formats, with the reader of a split and of class names for each.

A format is a file in this package with its parser, and a line here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from detection.data.index import AnnotationIndex
from detection.data.problems import Problem
from detection.data.readers.bsds import BSDSSplit, parse_bsds
from detection.data.readers.coco import COCOSplit, coco_classes, read_coco
from detection.data.readers.coco_panoptic import PanopticSplit, coco_panoptic_classes, read_coco_panoptic
from detection.data.readers.csv_boxes import TableSplit, parse_csv
from detection.data.readers.cvat import CVATSplit, parse_cvat
from detection.data.readers.image_folder import ImageFolderSplit, read_image_folder
from detection.data.readers.image_tags import TagsSplit, parse_tags
from detection.data.readers.label_images import LabelImagesSplit, read_label_images
from detection.data.readers.label_studio import LabelStudioSplit, parse_label_studio
from detection.data.readers.labelled import Parse, read_labelled
from detection.data.readers.labelme import LabelMeSplit, parse_labelme
from detection.data.readers.open_images import OpenImagesSplit, parse_open_images
from detection.data.readers.voc import VOCSplit, read_voc, voc_classes
from detection.data.readers.yolo import YOLOSplit, parse_yolo

__all__ = ["FORMATS", "Format", "FormatName"]

FormatName = Literal[
    "voc",
    "coco",
    "coco_panoptic",
    "yolo",
    "labelme",
    "cvat",
    "label_studio",
    "open_images",
    "csv",
    "image_tags",
    "bsds",
    "image_folder",
    "label_images",
]

ReadSplit = Callable[..., tuple[AnnotationIndex, list[Problem]]]


@dataclass(frozen=True, slots=True)
class Format:
    """A label format.

    Attributes:
        title: usual name.
        split: schema of a split in a card.
        keys: required keys of a split, for messages.
        read: (folder, entry, classes, ...) -> the index and its problems.
        classes: (folder, entry) -> class names in the data; None: the reader finds them itself.
        options: keys of the card that are arguments of ``read``.
        own_list: whether a split has a key ``list`` for ``read``.
    """

    title: str
    split: type
    keys: str
    read: ReadSplit
    classes: Callable[[Path, dict[str, Any]], tuple[str, ...]] | None
    options: tuple[str, ...]
    own_list: bool = False


def _labelled(title: str, split: type, keys: str, parse: Parse) -> Format:
    return Format(
        title,
        split,
        keys,
        partial(read_labelled, parse),
        lambda folder, entry: parse(folder, entry, ()).classes,
        ("exif", "other_size", "drop", "fields", "drop_images"),
    )


FORMATS: dict[FormatName, Format] = {
    "voc": Format(
        "PASCAL VOC XML",
        VOCSplit,
        "{list:}",
        read_voc,
        voc_classes,
        ("exif", "other_size", "drop", "fields", "names"),
        own_list=True,
    ),
    "coco": Format(
        "COCO JSON",
        COCOSplit,
        "{annotations:, images:}",
        read_coco,
        coco_classes,
        ("exif", "other_size", "drop", "fields", "polygons"),
    ),
    "coco_panoptic": Format(
        "COCO panoptic JSON and PNG",
        PanopticSplit,
        "{panoptic:, segments:, images:}",
        read_coco_panoptic,
        coco_panoptic_classes,
        ("exif", "drop", "fields", "label_maps"),
    ),
    "yolo": _labelled("YOLO txt", YOLOSplit, "{images:}", parse_yolo),
    "labelme": _labelled("LabelMe JSON", LabelMeSplit, "{folder:}", parse_labelme),
    "cvat": _labelled("CVAT XML for images", CVATSplit, "{annotations:, images:}", parse_cvat),
    "label_studio": _labelled("Label Studio JSON", LabelStudioSplit, "{annotations:, images:}", parse_label_studio),
    "open_images": _labelled("OpenImages CSV", OpenImagesSplit, "{annotations:, images:, names:}", parse_open_images),
    "csv": _labelled("CSV of boxes", TableSplit, "{annotations:, images:}", parse_csv),
    "image_tags": _labelled("CSV of tags", TagsSplit, "{tags:, images:}", parse_tags),
    "bsds": _labelled("BSDS500", BSDSSplit, "{images:, boundaries:}", parse_bsds),
    "image_folder": Format("image folders", ImageFolderSplit, "{folder:}", read_image_folder, None, ("exif", "source")),
    "label_images": Format(
        "label images",
        LabelImagesSplit,
        "{images:, labels:}",
        read_label_images,
        None,
        ("exif", "drop_images", "label_maps", "source", "values"),
        own_list=True,
    ),
}

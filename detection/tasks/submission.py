"""Writes the files that the evaluation server of a data set reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from detection.config.detection import DetectorDataConfig
from detection.config.load import build_dataclass
from detection.data.cards import load_card
from detection.data.index import AnnotationIndex
from detection.data.readers.coco import COCOSplit
from detection.data.readers.voc import VOCSplit
from detection.evaluation.record import Record
from detection.evaluation.submission import write_coco, write_imagenet_det, write_voc

__all__ = ["find_submission"]

Write = Callable[[Sequence[Record], AnnotationIndex, Path], list[Path]]


def find_submission(data: DetectorDataConfig, *, objects: bool = True) -> Write:
    """Returns the function that writes detections on ``data.test`` for the evaluation server of its card's format.

    Raises:
        ValueError: several splits, a part of a split, image folders, which no server reads, or a network without
            ``objects``.
    """
    if not objects:
        raise ValueError(
            "--submit writes detections, and this network finds no objects; servers of label maps read the images in "
            "label_maps/ of the test, which have the values of the card"
        )
    if len(data.test) != 1 or data.limit is not None:
        raise ValueError(
            f"data.test={list(data.test)} with data.limit={data.limit}: a server judges one whole split; give "
            "data.test=[CARD:SPLIT] and data.limit=null"
        )
    name, _, split = data.test[0].rpartition(":")
    card = load_card(name)
    if card.format not in ("voc", "coco"):
        raise ValueError(f"card {card.name!r} has format {card.format}; a server takes detections of voc or coco")
    entry = card.splits[split]
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"{data.test[0]} joins several sets of files; a server judges one: give each a split of its own"
        )
    if card.format == "coco":
        stem = Path(build_dataclass(COCOSplit, entry).annotations).stem  # such as image_info_test-dev2017
        return lambda records, index, folder: write_coco(
            records, index.category_ids, folder, split=stem.rpartition("_")[2]
        )
    first_pixel = build_dataclass(VOCSplit, entry).first_pixel
    if card.voc_metric == "imagenet":
        return lambda records, _, folder: write_imagenet_det(records, folder, split=split, first_pixel=first_pixel)
    year = card.folder(Path()).name
    return lambda records, index, folder: write_voc(
        records, index.class_names, folder, year=year, split=split, first_pixel=first_pixel
    )

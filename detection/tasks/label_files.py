"""Writes and reads the files of a test of label maps.

label_maps/NAME.png    palette image in the values of the data set's card, as its evaluation server reads them
panoptic/NAME.png      instead of it for a panoptic network: segment ids, encoded as in COCO
panoptic.json          these segments, in COCO's panoptic format
segmentation.json      the counts of each image, from which all metrics are computed
pictures/              overlays of the first images, on request

NAME is the name of the image, followed by its id if two images share the name.

Shapes: K classes, H W height and width of an image.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import csr_array

from detection.data.index import AnnotationIndex
from detection.data.label_maps import LabelMaps
from detection.data.packed_strings import PackedStrings
from detection.data.panoptic_files import panoptic_annotation, panoptic_categories, save_segments
from detection.engine.distributed import gather, is_main
from detection.engine.label_maps import Labelled
from detection.evaluation.record import Record
from detection.files import write_text
from detection.label_colors import VOID_COLOR
from detection.label_overlay import draw_label_map, label_palette
from detection.structures import VOID
from detection.visualize import save_picture

__all__ = ["LABEL_MAPS", "SEGMENTATION", "LabelFiles", "file_stems", "predicted_maps", "read_counts", "write_counts"]

LABEL_MAPS, SEGMENTATION = "label_maps", "segmentation.json"


class LabelFiles:
    """Writes each label map that ``predict`` passes to it.

    Args:
        index: index of the test set.
        output: directory for the folders of files.
        pictures: number of images that are also drawn, the first ones.
    """

    def __init__(self, index: AnnotationIndex, output: Path, *, pictures: int = 0) -> None:
        assert index.label_maps is not None
        self.index, self.maps, self.output, self.pictures = index, index.label_maps, output, pictures
        self.stems = file_stems(index)
        self._values, self._palette = _numbers(self.maps)
        self._annotations = list[dict[str, Any]]()

    def __call__(self, row: int, found: Labelled) -> None:
        """Writes the label map of image ``row``."""
        name = f"{self.stems[row]}.png"
        folder = self.output / (LABEL_MAPS if found.segments is None else "panoptic")
        folder.mkdir(parents=True, exist_ok=True)
        if found.segments is None:
            image = Image.fromarray(self._values[found.labels])
            image.putpalette(self._palette)
            image.save(folder / name)
        else:
            save_segments(found.segments, folder / name)
            self._annotations.append(
                panoptic_annotation(
                    found.segments, self._category_ids, image_id=int(self.index.image_ids[row]), file_name=name
                )
            )
        if row < self.pictures:
            outlines = None if found.segments is None else found.segments.ids
            drawn = draw_label_map(self.index.image(row), found.labels, self.maps.class_names, outlines=outlines)
            save_picture(self.output / "pictures" / f"{row:05d}_{self.stems[row]}.jpg", drawn)

    def finish(self) -> None:
        """Writes panoptic.json for the images of all processes, if there are segments."""
        annotations = [entry for part in gather(self._annotations) for entry in part]
        if annotations and is_main():
            maps = self.maps
            content = {
                "annotations": sorted(annotations, key=lambda entry: entry["image_id"]),
                "categories": panoptic_categories(maps.class_names, self._category_ids, maps.num_things),
            }
            write_text(self.output / "panoptic.json", json.dumps(content))

    @property
    def _category_ids(self) -> list[int]:
        """Returns the ids (K,) of the classes in the data set's own files."""
        ids = {label: value for value, label in self.maps.values.items()}
        return [ids.get(label, label) for label in range(len(self.maps.class_names))]


def file_stems(index: AnnotationIndex) -> list[str]:
    """Returns the file name for each image, without extension."""
    stems = [Path(path).stem for path in index.paths.all()]
    several = Counter(stem.casefold() for stem in stems)
    ids = index.image_ids.tolist()
    return [stem if several[stem.casefold()] == 1 else f"{stem}_{id_}" for stem, id_ in zip(stems, ids, strict=True)]


def predicted_maps(index: AnnotationIndex, folder: Path) -> LabelMaps:
    """Returns the label images in ``folder`` of all images of ``index``, in the values of its card.

    Raises:
        ValueError: an image without a file, or label maps that have no values of their own.
    """
    assert index.label_maps is not None
    files = [folder / f"{stem}.png" for stem in file_stems(index)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {missing[0]}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}; expected a PNG "
            f"of each test image, called like it{', as in label_maps of a run' * (folder / 'label_maps').is_dir()}"
        )
    maps = index.label_maps
    values = {value: label for value, label in maps.values.items() if value < 256} if _fits(maps) else _plain(maps)
    return LabelMaps(class_names=maps.class_names, files=PackedStrings.pack(list(map(str, files))), values=values)


def write_counts(path: Path, records: Sequence[Record], maps: LabelMaps) -> None:
    """Writes the counts of ``records`` to ``path``."""
    content = {
        "class_names": maps.class_names,
        "num_things": maps.num_things,
        "images": [
            {"image_id": record.image_id, "file_name": Path(record.file_name).name} | _sparse(record)
            for record in records
        ],
    }
    write_text(path, json.dumps(content))


def read_counts(path: Path, records: Sequence[Record], maps: LabelMaps) -> list[Record]:
    """Returns ``records`` with the counts in ``path``.

    Raises:
        ValueError: the file can't be read, or has other images or classes.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names, images = tuple(content["class_names"]), {entry["image_id"]: entry for entry in content["images"]}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} can't be read: {error!r}; resdet test writes it") from error
    if names != tuple(maps.class_names):
        raise ValueError(f"{path} has the classes {names}, the data set {maps.class_names}; test again")
    lacking = [record.file_name for record in records if record.image_id not in images]
    if lacking:
        raise ValueError(f"{path} has no counts of {lacking[0]}; has the data set changed since? Test again")
    try:
        return [_with(record, images[record.image_id], len(names)) for record in records]
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds counts that can't be used: {error!r}; resdet test writes it") from error


def _sparse(record: Record) -> dict[str, Any]:
    entry = dict[str, Any]()
    if record.label_counts is not None:
        counts = record.label_counts.tocoo()
        cells = zip(counts.row.tolist(), counts.col.tolist(), counts.data.tolist(), strict=True)
        entry["label_counts"] = [*map(list, cells)]  # true class, predicted class (K for none), pixels
    if record.panoptic_counts is not None:
        rows = np.flatnonzero(record.panoptic_counts.any(axis=1))
        entry["panoptic_counts"] = [[row, *record.panoptic_counts[row].tolist()] for row in rows.tolist()]
    return entry


def _with(record: Record, entry: Mapping[str, Any], num_classes: int) -> Record:
    labels, segments = None, None
    if "label_counts" in entry:
        rows, columns, pixels = np.array(entry["label_counts"], np.int32).reshape(-1, 3).T
        labels = csr_array((pixels, (rows, columns)), (num_classes, num_classes + 1))
    if "panoptic_counts" in entry:
        segments = np.zeros((num_classes, 4))
        for row, *counts in entry["panoptic_counts"]:
            segments[row] = counts
    return replace(record, label_counts=labels, panoptic_counts=segments)


def _fits(maps: LabelMaps) -> bool:
    """Returns whether the values of all classes fit in a pixel of a label image."""
    return set(range(len(maps.class_names))) <= {label for value, label in maps.values.items() if 0 <= value < 256}


def _plain(maps: LabelMaps) -> dict[int, int]:
    """Returns the labels as values of label images, for cards whose own values do not fit."""
    return {label: label for label in range(len(maps.class_names))} | {VOID: VOID}


def _numbers(maps: LabelMaps) -> tuple[NDArray[np.uint8], bytes]:
    """Returns the value (256,) of each label and of VOID, and the palette of the values."""
    values = maps.values if _fits(maps) else _plain(maps)
    table, palette = np.full(256, VOID, np.uint8), np.zeros((256, 3), np.uint8)
    colors = label_palette(maps.class_names)
    for value, label in reversed([*values.items()]):  # the first, if a label has several values
        if 0 <= value < 256:
            table[label] = value
            palette[value] = VOID_COLOR if label == VOID else colors[label]
    return table, palette.tobytes()

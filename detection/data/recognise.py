"""Recognises the label format of a folder with a table of formats and their finders.

A finder looks at the files and returns the splits as entries of a card, and the reason; None for another format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from detection.config.load import parse_yaml
from detection.data.label_layouts import find_label_images
from detection.data.layouts import (
    Layout,
    find_coco,
    find_csv,
    find_cvat,
    find_data_yaml,
    find_image_folders,
    find_label_studio,
    find_labelme,
    find_open_images,
    find_voc,
    find_yolo,
)
from detection.data.objects import IMAGE_SUFFIXES
from detection.data.panoptic_layouts import find_coco_panoptic
from detection.data.readers.table import FORMATS, FormatName
from detection.data.tree import Tree

__all__ = ["RECOGNISERS", "Recognised", "data_root_of", "recognise"]

# Format -> its finder; the first that succeeds is taken.
RECOGNISERS: dict[FormatName, Callable[[Tree], Layout | None]] = {
    "yolo": find_yolo,
    "coco": find_coco,
    "coco_panoptic": find_coco_panoptic,
    "cvat": find_cvat,
    "voc": find_voc,
    "labelme": find_labelme,
    "label_studio": find_label_studio,
    "open_images": find_open_images,
    "csv": find_csv,
    "label_images": find_label_images,
    "image_folder": find_image_folders,
}


@dataclass(frozen=True, slots=True)
class Recognised:
    """The format and content of a folder.

    Attributes:
        format: label format.
        layout: splits, and the evidence for the format.
        folder: absolute path; paths of the layout are relative to it.
        images: number of image files in the folder.
        others: further formats in the folder.
    """

    format: FormatName
    layout: Layout
    folder: Path
    images: int
    others: tuple[FormatName, ...] = ()

    @property
    def lines(self) -> list[str]:
        """The recognised format and the reason, as text."""
        lines = [f"{self.folder}: {FORMATS[self.format].title}, since {self.layout.reason}"]
        lines += [f"  note: {note}" for note in self.layout.notes]
        lines += [f"  note: {FORMATS[name].title} is there too; --format {name} takes it" for name in self.others]
        return lines


def recognise(folder: Path, *, format: FormatName | None = None) -> Recognised:
    """Returns the format and the splits of the data set in ``folder``.

    Args:
        folder: folder of images and labels, or a data.yaml in it.
        format: the expected format; None: the first match of the table.

    Raises:
        ValueError: the folder does not exist, or has no known format.
    """
    root = data_root_of(folder)
    tree = Tree(root)
    if folder.is_file() and not folder.resolve().is_relative_to(tree.folder):
        layout = find_data_yaml(tree, folder)
        if layout is not None:
            return Recognised("yolo", layout, tree.folder, len(tree.images))
    found = dict[FormatName, Layout]()
    for name, find in RECOGNISERS.items():
        if (layout := find(tree)) is not None:
            found[name] = layout
    if len(found) > 1:  # every data set has folders of images
        found.pop("image_folder", None)
    if not found or (format is not None and format not in found):
        raise ValueError(_unknown(tree, format))
    names = sorted(found, key=lambda name: name != format)  # the others keep the order of the table
    return Recognised(names[0], found[names[0]], tree.folder, len(tree.images), tuple(names[1:]))


def data_root_of(word: Path) -> Path:
    """Returns the folder that ``word`` means: itself, the folder of the file ``word``, or the ``path`` of a data.yaml.

    Raises:
        ValueError: ``word`` is neither a folder nor a file.
    """
    if word.is_dir():
        return word
    if not word.is_file():
        raise ValueError(f"no folder {str(word)!r}")
    content = parse_yaml(word.read_text(encoding="utf-8")) if word.suffix in (".yaml", ".yml") else None
    given = content.get("path") if isinstance(content, Mapping) else None
    if isinstance(given, str) and given and (word.parent / given).is_dir():
        return word.parent / given
    return word.parent


def _unknown(tree: Tree, format: FormatName | None) -> str:
    counts = ", ".join(f"{len(tree.having(suffix))} {suffix}" for suffix in (".xml", ".json", ".txt", ".csv", ".yaml"))
    titles = ", ".join(FORMATS[name].title for name in RECOGNISERS)
    if not tree.images:
        kinds = ", ".join(IMAGE_SUFFIXES)
        return f"{tree.folder} has no images ({kinds}; files: {counts}); give the folder that holds them"
    wanted = f"no labels as {FORMATS[format].title}" if format else "no labels that are known"
    return (
        f"{tree.folder} has {len(tree.images)} images and {wanted} (files: {counts}); known are {titles}; "
        "put label files into this folder or below it; datasets/README.md has the layout of each, and how a card "
        "describes another"
    )

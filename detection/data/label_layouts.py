"""Recognises images with label images: PNGs with one value per pixel and the names of the images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from detection.data.images import FORMATS, UNREADABLE
from detection.data.layouts import ALL, Layout, known_splits
from detection.data.problems import listed
from detection.data.readers.yolo import NAME_FILES
from detection.data.tree import SAMPLED, Tree, split_of

__all__ = ["find_label_images"]

WORDS = re.compile(r"(.+?)((?:[_.-][A-Za-z][A-Za-z0-9]*)+)")  # a name and the words at its end: photo1_gtFine_labelIds
OPENED = 5  # files of a group that are opened to see whether they are label images
MOST_VALUES = 64  # different values of one label image; grey photographs have more
SCANNED = 500  # label images whose values are collected
NOT_CLASSES = ("object", "inst", "color", "colour", "edge", "panoptic")  # in names of files that hold no classes
VOID_VALUE = 255
FEW = 128  # 255 is void if the other values lie below this, and are not just 0


@dataclass(frozen=True, slots=True, order=True)
class _Group:
    """The files of a folder whose names end with the same words."""

    folder: PurePosixPath
    words: str


def find_label_images(tree: Tree) -> Layout | None:
    """Finds label images: PNGs with few one-byte values, named like images in the same or in another folder."""
    files, groups = dict[_Group, dict[str, PurePosixPath]](), dict[str, list[_Group]]()
    for path in tree.images:
        found = WORDS.fullmatch(path.stem)
        for key, words in {(path.stem, ""), *([(found[1], found[2])] if found else [])}:
            group = _Group(path.parent, words)
            files.setdefault(group, {})[key] = path
            groups.setdefault(key, []).append(group)
    looks = {group: _is_of_labels(tree, [*own.values()]) for group, own in files.items() if _are_pngs(own.values())}
    pairs = dict[_Group, _Group]()
    for labels in sorted((group for group, look in looks.items() if look), key=_rank):
        counts = Counter(group for key in [*files[labels]][:SAMPLED] for group in groups[key])
        pictures = [
            group
            for group, count in counts.items()
            if not looks.get(group) and not _is_drawn(group) and 2 * count >= min(SAMPLED, len(files[labels]))
        ]
        if pictures:
            pairs.setdefault(max(pictures, key=lambda group: _fits(counts[group], group, labels)), labels)
    if not pairs:
        return None
    splits, notes = dict[str, list[dict[str, Any]]](), list[str]()
    for pictures, labels in sorted(pairs.items()):
        for split, entry in _entries(tree, files, pictures, labels).items():
            own = splits.setdefault(split, [])
            own += [entry] if entry not in own else []
    read = [path for labels in pairs.values() for path in files[labels].values()]
    card = _classes(tree, read, notes)
    first = next(iter(files[next(iter(pairs.values()))].values()))
    reason = f"{len(read)} PNGs of one value a pixel are named as pictures, as {first}"
    return Layout(known_splits(splits, notes), reason, tuple(notes), card)


def _are_pngs(paths: Iterable[PurePosixPath]) -> bool:
    return all(path.suffix.lower() == ".png" for path in paths)


def _rank(group: _Group) -> tuple[bool, str, str]:
    return _is_drawn(group), group.words, str(group.folder)


def _is_drawn(group: _Group) -> bool:
    """Returns whether the names indicate renderings, or maps of something other than classes."""
    name = f"{group.folder.name}{group.words}".lower()
    return any(word in name for word in NOT_CLASSES)


def _fits(count: int, pictures: _Group, labels: _Group) -> tuple[int, int, bool, _Group]:
    """Returns a sort key for how well ``pictures`` match ``labels``, by common names (``count``) and folders."""
    shared = len({*pictures.folder.parts} & {*labels.folder.parts})
    return count, shared, not pictures.words, pictures


def _is_of_labels(tree: Tree, paths: Sequence[PurePosixPath]) -> bool:
    """Returns whether a sample of the files has one byte per pixel and few different values."""
    values = [_values(tree.folder / path) for path in paths[:: -(-len(paths) // OPENED)]]
    return all(own is not None and len(own) <= MOST_VALUES for own in values)


def _values(file: Path) -> set[int] | None:
    """Returns the values of a file with one byte per pixel; None for other files."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.mode not in ("P", "L", "1"):
                return None
            return set(np.unique(np.asarray(image.convert("L") if image.mode == "1" else image)).tolist())
    except UNREADABLE:
        return None


def _entries(
    tree: Tree, files: dict[_Group, dict[str, PurePosixPath]], pictures: _Group, labels: _Group
) -> dict[str, dict[str, Any]]:
    """Returns the splits of two matching folders, from VOC's lists, else from their names."""
    images, maps = pictures.folder, labels.folder
    split = split_of(images) or split_of(maps) or ALL
    while images.parts and maps.parts and images.name == maps.name and images != maps:
        above = split_of(images.parent) or split_of(maps.parent) or ALL
        if above != split:
            break
        images, maps = images.parent, maps.parent
    entry: dict[str, Any] = {"images": str(images), "labels": str(maps)}
    if pictures.words:
        suffix = next(iter(files[pictures].values())).suffix
        entry["image_suffix"] = f"{pictures.words}{suffix}"
    if labels.words:
        entry["label_suffix"] = f"{labels.words}.png"
    lists = maps.parent / "ImageSets" / "Segmentation"
    named = [name for name in ("train", "val", "test") if (tree.folder / lists / f"{name}.txt").is_file()]
    if "train" in named:
        return {name: {**entry, "list": f"{lists}/{name}.txt"} for name in named}
    return {split: entry}


def _classes(tree: Tree, paths: Sequence[PurePosixPath], notes: list[str]) -> dict[str, Any]:
    """Returns a card's keys for classes: the label values, and their names if a file has them."""
    step = -(-len(paths) // SCANNED)
    scanned = {path: _values(tree.folder / path) for path in paths[::step]}
    values = set[int]().union(*(own or () for own in scanned.values()))
    if odd := [str(path) for path, own in scanned.items() if own is None]:
        notes.append(
            f"dropped label images that are not grey or palette: {listed(odd)}; run resdet check for the reasons"
        )
    void = {VOID_VALUE} & values if len(values) > 2 and max(values - {VOID_VALUE}) < FEW else set[int]()
    classes = sorted(values - void)
    if step > 1:
        notes.append(f"values are those of {len(paths[::step])} of {len(paths)} label images; resdet check reads all")
    names = _names(tree)
    if classes and max(classes) < len(names) <= VOID_VALUE:
        return {"classes": names}
    called = ["background" if value == 0 else f"class_{value}" for value in classes]
    notes.append(f"classes are called by their values ({listed(called)}): give them names in `classes` of the card")
    card: dict[str, Any] = {"classes": (*called,)}
    if classes != [*range(len(classes))]:
        card["values"] = (*classes,)
    if VOID_VALUE in classes:
        card["void"] = ()
    return card


def _names(tree: Tree) -> tuple[str, ...]:
    """Returns the lines of the text file of class names that is nearest to the folder."""
    for path in tree.having(".txt", ".names"):
        if path.name in NAME_FILES:
            lines = tree.head(path, size=1 << 16).splitlines()
            return (*dict.fromkeys(filter(None, map(str.strip, lines))),)
    return ()

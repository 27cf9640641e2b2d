"""Recognises each label format in a folder, and describes its splits as entries of a card.

Every ``find_`` function looks at a ``Tree`` and returns a ``Layout``, or None for another format.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from detection.config.load import parse_yaml
from detection.data.objects import IMAGE_SUFFIXES
from detection.data.readers.csv_boxes import table_columns
from detection.data.readers.label_studio import image_of
from detection.data.readers.open_images import open_images_header
from detection.data.readers.yolo import NAME_FILES, label_file
from detection.data.tree import SAMPLED, SPLITS, Tree, split_of, topmost

__all__ = [
    "ALL",
    "Layout",
    "find_coco",
    "find_csv",
    "find_cvat",
    "find_data_yaml",
    "find_image_folders",
    "find_label_studio",
    "find_labelme",
    "find_open_images",
    "find_voc",
    "find_yolo",
    "is_panoptic",
    "known_splits",
]

Entry = dict[str, Any]
ALL = "all"  # the split of a folder without splits


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of a data set.

    Attributes:
        splits: name -> entries of a card; only "all" if the folder has no splits.
        reason: evidence for the format.
        notes: files that are left out, and why.
        card: further keys of the card, such as its classes.
    """

    splits: Mapping[str, list[Entry]]
    reason: str
    notes: tuple[str, ...] = ()
    card: Mapping[str, Any] = field(default_factory=dict)


def find_yolo(tree: Tree) -> Layout | None:
    """Finds YOLO: a data.yaml with names, or text files beside images or below ``labels`` with lines of numbers."""
    for path in tree.having(".yaml", ".yml"):
        content = _yaml(tree, path)
        if isinstance(content, Mapping) and "names" in content and {"train", "val", "path"} & content.keys():
            return _yolo_of_yaml(tree, str(path), path.parent, content)
    labelled = [path for path in tree.images if label_file(tree.folder / path).is_file()]
    samples = [label_file(tree.folder / path).relative_to(tree.folder) for path in labelled[:SAMPLED]]
    if not samples or not any(_is_yolo_line(tree.head(PurePosixPath(path.as_posix()))) for path in samples):
        return None
    names = next((str(path) for path in tree.having(".txt", ".names", ".labels") if path.name in NAME_FILES), None)
    splits = _by_folder({path.parent for path in labelled}, lambda folders: [{"images": _texts(folders)}])
    for entries in splits.values():
        entries[0] |= {"names": names} if names else {}
    said = f"names are in {names}" if names else "there is no file of names, so classes are called by their numbers"
    return Layout(splits, f"{len(labelled)} images have a text file of numbers, as {samples[0].as_posix()}; {said}")


def find_data_yaml(tree: Tree, file: Path) -> Layout | None:
    """Finds YOLO by a data.yaml elsewhere whose ``path`` is the folder."""
    content = parse_yaml(file.read_text(encoding="utf-8"))
    return _yolo_of_yaml(tree, str(file.resolve()), PurePosixPath(), content)


def _yolo_of_yaml(tree: Tree, path: str, beside: PurePosixPath, content: Mapping[str, Any]) -> Layout | None:
    """Returns the splits of the data.yaml at ``path``, whose own paths may be relative to its folder ``beside``."""
    splits, notes = dict[str, list[Entry]](), list[str]()
    for name in SPLITS:
        given = content.get(name, content.get("valid") if name == "val" else None)
        sources = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        found = [_yolo_source(tree, beside, str(content.get("path") or ""), str(source)) for source in sources]
        if missing := [source for source, place in zip(sources, found, strict=True) if place is None]:
            notes.append(f"{path} names {', '.join(map(str, missing))} for {name}, which is not there: left out")
        if places := [place for place in found if place is not None]:
            splits[name] = [{"images": _texts(places), "names": path}]
    if splits.get("val") == splits.get("train"):  # as in Ultralytics' small examples
        splits.pop("val", None)
        notes.append(f"{path} has the same images for train and val: val is drawn anew")
    if not splits and not tree.images:
        return None
    splits = splits or {ALL: [{"images": _texts(topmost(tree.image_folders)), "names": path}]}
    return Layout(known_splits(splits, notes), f"{path} has names and {', '.join(splits)}", tuple(notes))


def _yolo_source(tree: Tree, beside: PurePosixPath, root: str, source: str) -> PurePosixPath | None:
    """Resolves a path of a data.yaml: from its ``path``, from its own folder, or without ".." for Roboflow's."""
    tries = [tree.folder / beside / root / source, tree.folder / beside / source, tree.folder / source]
    plain = source.replace("\\", "/")
    while plain.startswith("../"):
        plain = plain.removeprefix("../")
    tries += [tree.folder / beside / plain, tree.folder / plain]
    for place in tries:
        resolved = place.resolve()
        if resolved.exists() and resolved.is_relative_to(tree.folder):
            return PurePosixPath(resolved.relative_to(tree.folder).as_posix())
    return None


def find_coco(tree: Tree) -> Layout | None:
    """Finds COCO's JSON files, with lists of images and categories; for the same images, the fuller file."""
    files = {
        path: content
        for path, content in tree.json.items()
        if isinstance(content, Mapping) and isinstance(content.get("images"), list) and "categories" in content
        if not is_panoptic(content)
    }
    notes, splits, taken = list[str](), dict[str, list[Entry]](), dict[str, set[str]]()
    ranked = sorted(files, key=lambda path: (-len(files[path]["images"]), -len(files[path].get("annotations", []))))
    for path in ranked:
        names = [str(image.get("file_name")) for image in files[path]["images"] if isinstance(image, Mapping)]
        folder = tree.folder_of(names, near=path.parent)
        split = split_of(path) or ALL
        if folder is None:
            notes.append(f"{path} left out: none of its images is there")
        elif taken.setdefault(split, set()) & {f"{folder}/{name}" for name in names}:
            notes.append(
                f"{path} left out: its images are those of {splits[split][0]['annotations']}, with fewer objects"
            )
        else:
            taken[split] |= {f"{folder}/{name}" for name in names}
            splits.setdefault(split, []).append({"annotations": str(path), "images": folder})
    if not splits:
        return None
    read = [entry["annotations"] for entries in splits.values() for entry in entries]
    return Layout(known_splits(splits, notes), f"{', '.join(read)} {_have(read)} images and categories", tuple(notes))


def is_panoptic(content: Any) -> bool:
    """Returns whether the ``content`` of a JSON file describes panoptic segments, which have no boxes of their own."""
    if not isinstance(content, Mapping) or not isinstance(content.get("images"), list):
        return False
    annotations = content.get("annotations")
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    return isinstance(first, Mapping) and "segments_info" in first


def find_cvat(tree: Tree) -> Layout | None:
    """Finds CVAT's XML files, with root <annotations> and elements <image>, which may name their subset."""
    heads = {path: tree.head(path, size=1 << 22) for path in tree.having(".xml") if "<annotations>" in tree.head(path)}
    files = [path for path, text in heads.items() if "<image " in text]
    if not files:
        return None
    said = {name: split_of(name) for name in re.findall(r'subset="([^"]+)"', heads[files[0]])}
    if len(files) == 1 and "train" in said.values():
        own = {"annotations": str(files[0]), "images": "."}
        splits = known_splits({split: [{**own, "subset": name}] for name, split in said.items() if split}, [])
    else:
        splits = _by_file(files, lambda path: {"annotations": str(path), "images": "."})
    return Layout(splits, f"{_texts_of(files)} {_have(files)} <annotations> with images")


def find_voc(tree: Tree) -> Layout | None:
    """Finds VOC's XML files, with root <annotation> and an image of the same name."""
    files = [path for path in tree.having(".xml") if path.stem in tree.by_stem]
    if not files or not any("<annotation>" in tree.head(path) for path in files[:SAMPLED]):
        return None
    pairs = dict[PurePosixPath, PurePosixPath]()
    for folder in sorted({path.parent for path in files}, key=lambda folder: len(folder.parts)):
        own = [path for path in files if path.parent == folder]
        images = Counter(image.parent for path in own[:SAMPLED] for image in tree.by_stem[path.stem]).most_common(1)[0][
            0
        ]
        if not any(
            folder.is_relative_to(other) and pairs[other] / folder.relative_to(other) == images for other in pairs
        ):
            pairs[folder] = images
    splits, notes = dict[str, list[Entry]](), list[str]()
    for folder, images in pairs.items():
        for split, entry in _voc_entries(tree, folder, images, notes).items():
            splits.setdefault(split, []).append(entry)
    lists = any("list" in entry for entries in splits.values() for entry in entries)
    said = "ImageSets/Main has lists" if lists else "there are no lists in ImageSets/Main"
    return Layout(
        known_splits(splits, notes), f"{len(files)} XML files of one image each, as {files[0]}; {said}", tuple(notes)
    )


def _voc_entries(tree: Tree, folder: PurePosixPath, images: PurePosixPath, notes: list[str]) -> dict[str, Entry]:
    """Returns the splits of one folder of XML files, from its lists, else from its name."""
    entry, main = {"images": str(images), "annotations": str(folder)}, folder.parent / "ImageSets" / "Main"
    lists = {
        name: main / f"{name}.txt" for name in (*SPLITS, "trainval") if main / f"{name}.txt" in {*tree.having(".txt")}
    }
    if "train" in lists and "val" in lists:
        lists.pop("trainval", None)
    elif "trainval" in lists:
        lists["train"] = lists.pop("trainval")
        notes.append(f"{lists['train']} is taken for training: train.txt or val.txt is missing")
    if "train" in lists:
        return {name: {"list": str(path), **entry} for name, path in lists.items()}
    return {split_of(folder) or split_of(images) or ALL: entry}


def find_labelme(tree: Tree) -> Layout | None:
    """Finds LabelMe's JSON files, with shapes and imagePath."""
    files = [
        path
        for path, content in tree.json.items()
        if isinstance(content, Mapping) and {"shapes", "imagePath"} <= content.keys()
    ]
    if not files:
        return None
    folders = {path.parent for path in tree.having(".json")}
    splits = _by_folder(folders, lambda found: [{"folder": str(folder)} for folder in topmost(found)])
    return Layout(splits, f"{files[0]} has shapes and imagePath")


def find_label_studio(tree: Tree) -> Layout | None:
    """Finds Label Studio's JSON files, with a list of tasks that name an image."""
    files = [
        path for path, content in tree.json.items() if isinstance(content, list) and content and image_of(content[0])
    ]
    if not files:
        return None
    splits = _by_file(files, lambda path: {"annotations": str(path), "images": "."})
    return Layout(splits, f"{_texts_of(files)} {_have(files)} a list of tasks with an image")


def find_open_images(tree: Tree) -> Layout | None:
    """Finds OpenImages' CSV files, with columns such as ImageID, LabelName and XMin."""
    headers = {path: _csv_lines(tree, path) for path in tree.having(".csv")}
    files = [path for path, lines in headers.items() if lines and open_images_header(lines[0])]
    if not files:
        return None
    names = next(
        (
            str(path)
            for path, lines in headers.items()
            if lines and lines[0][0].startswith("/m/") and len(lines[0]) == 2
        ),
        None,
    )
    own = {"names": names} if names else {}
    splits = _by_file(files, lambda path: {"annotations": str(path), "images": ".", **own})
    return Layout(splits, f"{_texts_of(files)} {_have(files)} the columns of OpenImages' boxes")


def find_csv(tree: Tree) -> Layout | None:
    """Finds a CSV of boxes, with columns for the image, the corners and the class, or six columns without a header."""
    files = [path for path in tree.having(".csv") if _is_table(_csv_lines(tree, path))]
    if not files:
        return None
    splits = _by_file(files, lambda path: {"annotations": str(path), "images": "."})
    return Layout(splits, f"{_texts_of(files)} {_have(files)} columns for image, box and class")


def find_image_folders(tree: Tree) -> Layout | None:
    """Finds image folders: two or more folders of images, named after their classes, and no labels."""
    depths = {len(folder.parts) for folder in tree.image_folders}
    if len(depths) != 1 or depths == {0}:
        return None
    parents = {folder.parent for folder in tree.image_folders}
    counts = {parent: sum(folder.parent == parent for folder in tree.image_folders) for parent in parents}
    classes = {folder.name for folder in tree.image_folders}
    if min(counts.values()) < 2 or any(split_of(name) for name in classes) or classes & {"images", "labels"}:
        return None
    splits = _by_folder(parents, lambda found: [{"folder": str(folder)} for folder in sorted(found)])
    return Layout(splits, f"images lie in {len(classes)} folders, as {sorted(classes)[0]}, and have no labels")


def _by_file(files: Iterable[PurePosixPath], entry: Callable[[PurePosixPath], Entry]) -> dict[str, list[Entry]]:
    splits = dict[str, list[Entry]]()
    for path in files:
        splits.setdefault(split_of(path) or ALL, []).append(entry(path))
    return known_splits(splits, [])


def _by_folder(
    folders: Iterable[PurePosixPath], entries: Callable[[list[PurePosixPath]], list[Entry]]
) -> dict[str, list[Entry]]:
    groups = dict[str, list[PurePosixPath]]()
    for folder in sorted(folders):
        groups.setdefault(split_of(folder) or ALL, []).append(folder)
    return known_splits({split: entries([*topmost(found)]) for split, found in groups.items()}, [])


def known_splits(splits: dict[str, list[Entry]], notes: list[str]) -> dict[str, list[Entry]]:
    """Returns ``splits`` in their usual order; files outside all splits become "train", or "all" if there is none."""
    if "train" not in splits and len(splits) > (ALL in splits):  # a lone "val" is no split
        notes.append(f"no training set among {', '.join(splits)}: all images are one set")
        return {ALL: [entry for entries in splits.values() for entry in entries]}
    if "train" in splits and ALL in splits:
        splits["train"] = splits["train"] + splits.pop(ALL)
    return {name: splits[name] for name in (*SPLITS, ALL) if name in splits}


def _yaml(tree: Tree, path: PurePosixPath) -> Any:
    with suppress(ValueError):
        return parse_yaml(tree.head(path, size=1 << 20))
    return None


def _is_yolo_line(text: str) -> bool:
    words = text.partition("\n")[0].split()
    with suppress(ValueError):
        return len(words) >= 5 and words[0].isdecimal() and all(-1 <= float(word) <= 2 for word in words[1:])
    return False


def _csv_lines(tree: Tree, path: PurePosixPath) -> list[list[str]]:
    """Returns the first lines of a CSV."""
    text = tree.head(path)
    first = text.partition("\n")[0]
    with suppress(csv.Error):
        return [line for line in csv.reader(text.splitlines()[:3], delimiter=max(",;\t", key=first.count)) if line]
    return []


def _is_table(lines: list[list[str]]) -> bool:
    if not lines or open_images_header(lines[0]):
        return False
    if table_columns(lines[0]) is not None:
        return True
    first = lines[0]
    return len(first) == 6 and first[0].lower().endswith(IMAGE_SUFFIXES)


def _texts(paths: Iterable[PurePosixPath]) -> str | list[str]:
    found = [str(path) for path in topmost(paths)]
    return found[0] if len(found) == 1 else found


def _texts_of(paths: list[PurePosixPath]) -> str:
    return ", ".join(map(str, paths))


def _have(items: list[Any]) -> str:
    return "has" if len(items) == 1 else "have"

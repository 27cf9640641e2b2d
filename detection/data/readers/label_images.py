"""Reads label images: a grey or palette image per picture, whose values give the class of each pixel.

This is the format of PASCAL VOC's classes (SegmentationClass), Cityscapes' labelIds, COCO-stuff's pixel maps, ADE20K
and the masks that most tools export.  A card maps the values to classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detection.config.load import build_dataclass
from detection.config.schema import checked
from detection.data.images import image_size
from detection.data.index import AnnotationIndex
from detection.data.label_maps import LabelMaps
from detection.data.objects import IMAGE_SUFFIXES, ImageRows, ObjectRows, build_index
from detection.data.packed_strings import PackedStrings
from detection.data.problems import Problem, Severity
from detection.data.readers.frames import Exif, Frames, require_folder
from detection.data.readers.image_files import images_below

__all__ = ["LabelImagesSplit", "read_label_images"]

MAX_SHOWN = 4  # images without a label image that are shown


@checked
class LabelImagesSplit:
    """A split as a card describes it; folders and the list are below the data set's."""

    images: str  # folder; its subfolders are searched too
    labels: str | None = None  # folder with the same subfolders; null: images without ground truth
    list: str | None = None  # text file with one image per line, by its path below ``images`` or its name; null: all
    image_suffix: str = ""  # end of image names, such as _leftImg8bit.png; empty: any image suffix
    label_suffix: str = ".png"  # end of label image names in its place


def read_label_images(
    folder: Path,
    entry: dict[str, Any],
    classes: tuple[str, ...],
    *,
    values: Mapping[int, int],
    exif: Exif,
    drop_images: bool = False,
    label_maps: bool = False,
    source: str = "",
) -> tuple[AnnotationIndex, list[Problem]]:
    """Returns the index of the split ``entry`` of the data set at ``folder``, and its problems.

    Args:
        folder: folder of the data set.
        entry: entry of the split in the card.
        classes: K names of the card.
        values: pixel value -> label, or VOID.
        exif: use of orientation tags.
        drop_images: leave out unreadable images; else they are errors.
        label_maps: include the label images; else the index has only images.
        source: origin of the data, for a message.

    Raises:
        ValueError: ``entry`` does not describe such a split, or one of its folders is missing.
    """
    split = build_dataclass(LabelImagesSplit, entry)
    for name in filter(None, (split.images, split.labels)):
        require_folder(folder / name, source)
    problems, frames, images, files = list[Problem](), Frames(exif, "error"), ImageRows(), list[str]()
    missing = dict[str, str]()  # image -> the label image that it lacks
    for key, path in _chosen(folder, split, problems):
        label = None if split.labels is None else folder / split.labels / f"{key}{split.label_suffix}"
        file = str(label) if label is not None and label.is_file() else ""
        try:
            frame = frames.find(str(path), image_size(file, apply_exif=False) if file and exif == "by_size" else None)
        except ValueError as error:
            severity: Severity = "dropped" if drop_images else "error"
            problems.append(Problem(severity, "image that can't be read", str(path), str(error)))
            continue
        if label is not None and not file:
            missing[str(path)] = str(label)
        images.paths.append(str(path))
        images.ids.append(len(images.ids) + 1)
        images.sizes.append(frame.size)
        images.apply_exif.append(frame.apply_exif)
        files.append(file)
    problems += frames.notes(str(folder)) + _unlabelled(missing)
    if not any(files):
        where = "the split has no `labels`" if split.labels is None else f"no image has one in {folder / split.labels}"
        problems.append(Problem("note", "no ground truth", str(folder / split.images), where))
    index, found = build_index(
        images,
        ObjectRows(),
        class_names=classes,
        category_ids=tuple(value for value, label in values.items() if label < len(classes)),
        files=files,
        drop=True,
    )
    maps = LabelMaps(class_names=classes, files=PackedStrings.pack(files), values=values)
    index = replace(index, has_ground_truth=any(files), label_maps=maps if label_maps else None)
    return index, problems + found


def _unlabelled(missing: Mapping[str, str]) -> list[Problem]:
    """Returns a note if there are ``missing`` label images, by image."""
    if not missing:
        return []
    path, label = next(iter(missing.items()))
    detail = f"{len(missing)} of them, the first lacks {label}; void everywhere, they are not trained on"
    shown = tuple(missing)[:MAX_SHOWN]
    return [Problem("note", "image without a label image", path, detail, len(missing), images=shown)]


def _chosen(folder: Path, split: LabelImagesSplit, problems: list[Problem]) -> Iterator[tuple[str, Path]]:
    """Yields the images of ``split``, each with its path below the folder of images, without suffix."""
    above = folder / split.images
    found = {key: path for path in images_below(above) if (key := _key(path, above, split)) is not None}
    if split.list is None:
        yield from found.items()
        return
    file = folder / split.list
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        problems.append(Problem("error", "split list can't be read", str(file), str(error)))
        return
    by_name = {key.rpartition("/")[2]: key for key in reversed(found)}
    for line in dict.fromkeys(filter(None, map(str.strip, lines))):
        key = _known(line.removeprefix("./"), split, found, by_name)
        if key is None:
            detail = f"{line!r}; images are named by their path below {above}"
            problems.append(Problem("error", "listed image that the data set lacks", str(file), detail))
        else:
            yield key, found[key]


def _known(name: str, split: LabelImagesSplit, found: Mapping[str, Path], by_name: Mapping[str, str]) -> str | None:
    suffixes: Sequence[str] = (split.image_suffix,) if split.image_suffix else ("", *IMAGE_SUFFIXES)
    for suffix in ("", *suffixes):
        if name.lower().endswith(suffix):
            stem = name[: len(name) - len(suffix)]
            for key in (stem, by_name.get(stem)):
                if key in found:
                    return key
    return None


def _key(path: Path, above: Path, split: LabelImagesSplit) -> str | None:
    """Returns the path of an image below ``above`` without suffix; None for other files, such as labels."""
    relative = path.relative_to(above).as_posix()
    if split.image_suffix:
        return relative.removesuffix(split.image_suffix) if relative.endswith(split.image_suffix) else None
    if split.labels == split.images and relative.endswith(split.label_suffix):
        return None
    return relative.removesuffix(path.suffix)

"""Reads a classification set: one folder of images per class, as torchvision's ImageFolder.

Alternatively one folder of images and a text file of their classes, as the validation images of Tiny-ImageNet.

Every image gets one object, the whole image, so that code for detection sets also works on these.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from detection.config.load import build_dataclass
from detection.config.schema import checked
from detection.data.images import image_size
from detection.data.index import AnnotationIndex
from detection.data.objects import IMAGE_SUFFIXES, ImageRows, ObjectRows, build_index, nearest_class
from detection.data.problems import Problem
from detection.data.readers.frames import Exif, require_folder

__all__ = ["ImageFolderSplit", "read_image_folder"]

READERS = 16  # threads; reading a header waits for the disk
SUFFIXES = (*IMAGE_SUFFIXES, ".ppm", ".pgm")  # those of torchvision's ImageFolder


@checked
class ImageFolderSplit:
    """A split as a card describes it."""

    folder: str  # below the data set's folder; has a folder for each class
    # A text file below the data set's folder; each line has an image of ``folder``, its class and optional columns.
    labels: str | None = None

    def __post_init__(self) -> None:
        if Path(self.folder).is_absolute() or ".." in Path(self.folder).parts:
            raise ValueError(f"folder is below the data set's, got {self.folder!r}")


def read_image_folder(
    folder: Path, entry: dict[str, Any], classes: tuple[str, ...], *, exif: Exif, source: str = ""
) -> tuple[AnnotationIndex, list[Problem]]:
    """Returns the index of the split ``entry`` of the data set at ``folder``, by class and file name, and its problems.

    ``classes`` are the names of the folders; if empty, every folder is a class, in alphabetical order.  ``source`` says
    where the data come from, for a message.

    Raises:
        ValueError: ``entry`` does not describe such a split, its folder is missing, there are neither classes nor
            folders, or a class name is impossible for a folder.
    """
    split = build_dataclass(ImageFolderSplit, entry)
    root = folder / split.folder
    require_folder(root, source)
    if split.labels is not None:
        classes, problems, files, labels = _listed(root, folder / split.labels, classes)
    else:
        classes, problems, files, labels = _sorted(root, classes)
    return _index(files, labels, classes, problems, apply_exif=exif != "ignore")


def _sorted(root: Path, classes: tuple[str, ...]) -> tuple[tuple[str, ...], list[Problem], list[Path], list[int]]:
    """Returns the classes, problems, files and labels of a folder with one folder per class."""
    found = sorted(path.name for path in root.iterdir() if path.is_dir())
    classes = classes or tuple(found)
    if not classes:
        raise ValueError(f"{root} must hold a folder for each class, and there is none")
    for name in classes:
        if name in ("", "..") or name != Path(name).name:
            raise ValueError(f"a class is the name of a folder in {root}, got {name!r}")
    problems = [
        Problem("error", "folder of a class that the card lacks", str(root / name), nearest_class(name, classes))
        for name in found
        if name not in classes
    ]
    files, labels = list[Path](), list[int]()
    for label, name in enumerate(classes):
        below = (Path(folder, file) for folder, _, names in os.walk(root / name, followlinks=True) for file in names)
        own = sorted(path for path in below if path.suffix.lower() in SUFFIXES and path.is_file())  # no pipes
        if not own:
            problems.append(Problem("error", "class without an image", str(root / name), repr(name)))
        files += own
        labels += [label] * len(own)
    return classes, problems, files, labels


def _listed(
    root: Path, file: Path, classes: tuple[str, ...]
) -> tuple[tuple[str, ...], list[Problem], list[Path], list[int]]:
    """Returns the classes, problems, files and labels of a folder of images whose classes ``file`` lists."""
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} can't be read: {error}") from error
    pairs = {words[0]: words[1] for words in lines if len(words) > 1}
    classes = classes or tuple(sorted(set(pairs.values())))
    numbers = {name: number for number, name in enumerate(classes)}
    kind = "class that the card lacks"
    problems = [
        Problem("error", kind, str(file), f"{image}, {nearest_class(name, classes)}")
        for image, name in pairs.items()
        if name not in numbers
    ]
    if short := [words[0] for words in lines if len(words) < 2]:
        problems.append(Problem("error", "image without a class", str(file), repr(short[0]), len(short)))
    for image in [image for image in pairs if Path(image).is_absolute() or ".." in Path(image).parts]:
        problems.append(Problem("error", "image outside the folder", str(file), repr(image)))
        del pairs[image]
    known = {image: numbers[name] for image, name in sorted(pairs.items()) if name in numbers}
    return classes, problems, [root / image for image in known], list(known.values())


def _index(
    files: list[Path], labels: list[int], classes: tuple[str, ...], problems: list[Problem], *, apply_exif: bool
) -> tuple[AnnotationIndex, list[Problem]]:
    """Returns the index of ``files``, each with one object of its label, and all problems, earlier ones included."""
    images, objects = ImageRows(), ObjectRows()
    for path, label, size in zip(files, labels, _sizes(files, apply_exif=apply_exif), strict=True):
        if isinstance(size, ValueError):
            problems.append(Problem("error", "image that can't be read", str(path), str(size)))
            continue
        height, width = size
        objects.images.append(len(images.ids))
        objects.boxes.append((0.0, 0.0, float(width), float(height)))
        objects.labels.append(label)
        objects.ignore.append(False)
        objects.areas.append(None)
        objects.names.append("the whole image")
        images.paths.append(str(path))
        images.ids.append(len(images.ids) + 1)
        images.sizes.append(size)
        images.apply_exif.append(apply_exif)
    index, bad = build_index(
        images,
        objects,
        class_names=classes,
        category_ids=tuple(range(1, len(classes) + 1)),
        files=images.paths,
        drop=True,
    )
    return index, problems + bad


def _sizes(files: list[Path], *, apply_exif: bool) -> Iterable[tuple[int, int] | ValueError]:
    """Returns the (height, width) of every file, or its error."""

    def read(path: Path) -> tuple[int, int] | ValueError:
        try:
            return image_size(path, apply_exif=apply_exif)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(read, files))

"""Reads PASCAL VOC annotations: a list of image names, one XML file per image.

VOC's pixels count from 1 and its boxes include their last pixel; ours are (xmin - 1, ymin - 1, xmax, ymax), so that
width = x2 - x1 is the number of pixels.  ImageNet has the same files, counts from 0 and keeps images in subfolders.
Source: the PASCAL VOC development kit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from xml.etree import ElementTree

from detection.config.load import build_dataclass
from detection.config.schema import checked
from detection.data.images import MAX_PIXELS, image_size
from detection.data.index import AnnotationIndex
from detection.data.objects import (
    IMAGE_SUFFIXES,
    ImageRows,
    ObjectRows,
    build_index,
    files_in,
    nearest_class,
    require_file,
)
from detection.data.problems import Problem
from detection.data.readers.segmentation import read_instances

__all__ = ["VOCSplit", "read_voc"]


@checked
class VOCSplit:
    """A split as a card describes it; folders are below the data set's."""

    list: str  # a file, or a pattern such as ImageSets/DET/train_*.txt: all images that one of its files names
    images: str = "JPEGImages"
    annotations: str = "Annotations"
    first_pixel: int = 1  # how the files call the leftmost column and the topmost row
    instances: str | None = None  # the folder SegmentationObject; null: no masks

    def __post_init__(self) -> None:
        if self.first_pixel not in (0, 1):
            raise ValueError(f"first_pixel is 0 or 1, got {self.first_pixel}")
        if "*" in self.list and Path(self.list).is_absolute():
            raise ValueError(f"a pattern of lists is below the data set's folder, got {self.list!r}")


def read_voc(
    folder: Path,
    entry: dict[str, Any],
    classes: tuple[str, ...],
    *,
    drop: bool,
    exif: Literal["apply", "ignore"],
    names: Mapping[str, str] | None = None,
    fields: Collection[str] = (),
) -> tuple[AnnotationIndex, list[Problem]]:
    """The index of the split ``entry`` of the data set at ``folder``, and all that is wrong with it.

    ``names`` are classes that the files call otherwise: {name in the files: class}.  With "masks" among ``fields``,
    the split's ``instances`` are read too.

    Raises:
        ValueError: ``entry`` is no description of a VOC split.
    """
    split = build_dataclass(VOCSplit, entry)
    images, objects, files, problems = ImageRows(), ObjectRows(), list[str](), list[Problem]()
    labels = {name: label for label, name in enumerate(classes)}
    labels |= {other: labels[name] for other, name in (names or {}).items()}
    stored = _StoredImages(folder / split.images)
    for name, list_file in _listed(folder, split.list, stored, problems):
        file = folder / split.annotations / f"{name}.xml"
        path = stored.find(name)
        if path is None:
            missing = folder / split.images / f"{name}.jpg"
            problems.append(Problem("error", "missing image", str(missing), f"named in {list_file}"))
            continue
        root = _parse(file, problems)
        if root is not None and (size := _size(root, path, file, problems, apply_exif=exif == "apply")):
            images.paths.append(str(path))
            images.ids.append(len(images.ids) + 1)
            images.sizes.append(size)
            files.append(str(file))
            _read_objects(root, file, len(images.ids) - 1, labels, split.first_pixel, objects, problems)
            if "masks" in fields and split.instances:
                masks = objects.fields["masks"]
                new = objects.boxes[len(masks) :]
                masks += read_instances(folder / split.instances / f"{name}.png", new, size, problems)
    index, found = build_index(
        images,
        objects,
        class_names=classes,
        category_ids=tuple(range(1, len(classes) + 1)),
        files=files,
        drop=drop,
        exif=exif,
    )
    return index, problems + found


class _StoredImages:
    """The images below a folder by name: the path below it, without the suffix.  Lists a subfolder when first asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listed: dict[str, dict[str, Path]] = {}

    def find(self, name: str) -> Path | None:
        """The image called ``name``; None if there is none."""
        parent, _, stem = name.rpartition("/")
        if parent not in self._listed:
            folder, found = self._folder / parent, {}
            for file in sorted(files_in(folder)):
                if file.lower().endswith(IMAGE_SUFFIXES):
                    found.setdefault(Path(file).stem, folder / file)
            self._listed[parent] = found
        return self._listed[parent].get(stem)


def _listed(folder: Path, pattern: str, stored: _StoredImages, problems: list[Problem]) -> Iterator[tuple[str, Path]]:
    """The image names of a split, each once, and the list that has it.

    Of one list a name may occur once; several, as in ImageNet one per class, may share images.
    """
    found = set[str]()
    for path in (sorted(folder.glob(pattern)) if "*" in pattern else ()) or [folder / pattern]:
        own = set[str]()
        for name in _names(path, stored, problems):
            if name in own:
                problems.append(Problem("error", "duplicate image", str(path), repr(name)))
            elif _leaves(name):
                problems.append(Problem("error", "image name that leaves the folder", str(path), repr(name)))
            elif name not in found:
                yield name, path
            own.add(name)
        found |= own


def _names(path: Path, stored: _StoredImages, problems: list[Problem]) -> Iterator[str]:
    """The names in one list.

    A second column is the flag of a class (-1: the image has no such object, and is left out) or, in ImageNet, a
    running number.
    """
    try:
        require_file(path)
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        problems.append(Problem("error", "split list can't be read", str(path), str(error)))
        return
    for line in filter(None, map(str.strip, lines)):
        name, _, number = line.rpartition(" ")
        if not name or not number.lstrip("-").isdigit() or (not _leaves(line) and stored.find(line)):
            yield line
        elif number != "-1":
            yield name.strip()


def _leaves(name: str) -> bool:
    """Whether the path ``name`` could lead out of the folder it is taken below."""
    return "\\" in name or name.startswith("/") or any(part.startswith(".") for part in PurePosixPath(name).parts)


def _parse(file: Path, problems: list[Problem]) -> ElementTree.Element | None:
    try:
        require_file(file)
        return ElementTree.parse(file).getroot()
    except FileNotFoundError:
        problems.append(Problem("error", "missing annotation", str(file), "no such file"))
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        problems.append(Problem("error", "XML that does not parse", str(file), str(error)))
    return None


def _size(
    root: ElementTree.Element, image: Path, file: Path, problems: list[Problem], *, apply_exif: bool
) -> tuple[int, int] | None:
    """(height, width) as annotated, or of the image file where the annotation has none."""
    texts = root.findtext("size/height"), root.findtext("size/width")
    try:
        if None in texts or texts == ("0", "0"):
            return image_size(image, apply_exif=apply_exif)
        height, width = (int(float(text or "")) for text in texts)
    except (ValueError, OverflowError) as error:
        problems.append(Problem("error", "size that can't be read", str(file), f"{texts}: {error}"))
        return None
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        problems.append(Problem("error", "size that can't be read", str(file), f"height {height}, width {width}"))
        return None
    return height, width


def _read_objects(
    root: ElementTree.Element,
    file: Path,
    image: int,
    labels: Mapping[str, int],
    first_pixel: int,
    objects: ObjectRows,
    problems: list[Problem],
) -> None:
    for number, node in enumerate(root.iter("object"), start=1):
        where = f"object {number}"
        name = (node.findtext("name") or "").strip()
        if name not in labels:
            problems.append(
                Problem(
                    "error", "class that the card lacks", str(file), f"{where}, {nearest_class(name, tuple(labels))}"
                )
            )
            continue
        try:
            xmin, ymin, xmax, ymax = (
                float(node.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax")
            )
            difficult = bool(int(node.findtext("difficult") or "0"))
        except ValueError as error:
            problems.append(Problem("error", "object that can't be read", str(file), f"{where} ({name}): {error}"))
            continue
        objects.images.append(image)
        end = 1 - first_pixel
        objects.boxes.append((xmin - first_pixel, ymin - first_pixel, xmax + end, ymax + end))
        objects.labels.append(labels[name])
        objects.ignore.append(difficult)
        objects.areas.append(None)
        objects.names.append(f"{where} ({name})")

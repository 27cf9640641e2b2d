"""Reads PASCAL VOC annotations: lists of image names, and one XML file per image.

VOC's pixels count from 1 and its boxes include their last pixel; ours are (xmin - 1, ymin - 1, xmax, ymax), so that
width = x2 - x1 is the number of pixels.  ImageNet has the same files, but counts from 0 and has images in subfolders.
Source: the PASCAL VOC development kit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import torch

from detection.config.load import build_dataclass
from detection.config.schema import checked
from detection.data.index import AnnotationIndex
from detection.data.objects import IMAGE_SUFFIXES, ImageRows, ObjectRows, build_index, files_in
from detection.data.problems import Problem
from detection.data.readers.frames import Exif, Frame, Frames, OtherSize
from detection.data.readers.meant import Meant
from detection.data.readers.segmentation import read_instances
from detection.data.readers.voc_list import ListedImage, read_blacklist, read_lists
from detection.data.readers.voc_xml import XMLError, XMLProblems, annotated_size, parse, read_objects, xml_files

__all__ = ["VOCSplit", "read_voc", "voc_classes"]


@checked
class VOCSplit:
    """A split as a card describes it; folders and files are below the data set's."""

    # A file, or a pattern such as ImageSets/DET/train_*.txt for all images of these files.  Null: all images with an
    # XML file.
    list: str | None = None
    images: str = "JPEGImages"
    annotations: str = "Annotations"
    first_pixel: int = 1  # number of the leftmost column and the topmost row
    instances: str | None = None  # the folder SegmentationObject; null: no masks
    # Images that the lists give a 0, in ImageNet those without boxes of some classes; null: 0 has no such meaning
    partial: Literal["train", "drop"] | None = None
    blacklist: str | None = None  # of images, or of classes on images, that a challenge does not judge

    def __post_init__(self) -> None:
        if self.first_pixel not in (0, 1):
            raise ValueError(f"first_pixel is 0 or 1, got {self.first_pixel}")
        if self.list is not None and "*" in self.list and Path(self.list).is_absolute():
            raise ValueError(f"a pattern of lists is below the data set's folder, got {self.list!r}")


def read_voc(
    folder: Path,
    entry: dict[str, Any],
    classes: tuple[str, ...],
    *,
    drop: bool,
    exif: Exif,
    other_size: OtherSize = "error",
    names: Mapping[str, str] | None = None,
    fields: Collection[str] = (),
) -> tuple[AnnotationIndex, list[Problem]]:
    """Returns the index of the split ``entry`` of the data set at ``folder``, and its problems.

    ``names`` renames classes: {name in the files: class}.  With "masks" among ``fields``, the split's ``instances`` are
    read.  If no image has an annotation, as VOC's test images, the index has no ground truth.

    Raises:
        ValueError: ``entry`` does not describe a VOC split.
    """
    split = build_dataclass(VOCSplit, entry)
    labels = {name: label for label, name in enumerate(classes)}
    labels |= {other: labels[name] for other, name in (names or {}).items()}
    read_masks = "masks" in fields and split.instances is not None
    reader = _Reader(folder, split, labels, Frames(exif, other_size), masks=read_masks)
    has_ground_truth = reader.read()
    index, found = build_index(
        reader.images,
        reader.objects,
        class_names=classes,
        category_ids=tuple(range(1, len(classes) + 1)),
        files=reader.files,
        drop=drop,
    )
    unjudged = torch.tensor(reader.unjudged, dtype=torch.int64).reshape(-1, 2)
    return replace(index, has_ground_truth=has_ground_truth, unjudged=unjudged), reader.problems + found


def voc_classes(folder: Path, entry: dict[str, Any]) -> tuple[str, ...]:
    """Returns the sorted class names of all XML files in the folder of the split ``entry``.

    Raises:
        ValueError: ``entry`` does not describe a VOC split.
    """
    names = set[str]()
    for file in xml_files(folder / build_dataclass(VOCSplit, entry).annotations):
        with suppress(OSError, ValueError):  # reading the split reports the problem
            names |= {(node.findtext("name") or "").strip() for node in parse(file).iter("object")}
    return tuple(sorted(names - {""}))


class _Reader:
    """Collects the images and objects of one split."""

    def __init__(
        self, folder: Path, split: VOCSplit, labels: Mapping[str, int], frames: Frames, *, masks: bool
    ) -> None:
        self.images, self.objects, self.files, self.problems = ImageRows(), ObjectRows(), list[str](), list[Problem]()
        self.unjudged = list[tuple[int, int]]()  # (image, label)
        self._folder, self._split, self._labels, self._frames, self._masks = folder, split, labels, frames, masks
        self._stored = _StoredImages(folder / split.images)
        self._meant = Meant(folder / split.images)
        self._xml = XMLProblems(self.problems, split.first_pixel)

    def read(self) -> bool:
        """Reads all images; returns false if there is no annotation at all."""
        split, folder, problems = self._split, self._folder, self.problems
        listed = self._wanted(self._listed())
        left_out, pairs = self._blacklist(listed)
        unjudged = dict[str, set[int]]()
        for number, name in pairs:
            if name in self._labels:
                unjudged.setdefault(number, set()).add(self._labels[name])
        bare = list[tuple[ListedImage, Path]]()
        for image in listed:
            path = self._stored.find(image.name)
            if image.number in left_out:
                continue
            if path is None:
                missing = folder / split.images / f"{image.name}.jpg"
                detail = f"named in {image.file}{self._meant.hint(image.name)}"
                problems.append(Problem("error", "missing image", str(missing), detail))
                continue
            try:
                root = parse(self._file(image))
            except FileNotFoundError:
                bare.append((image, path))
            except XMLError as error:
                self._xml.error(error.kind, self._file(image), error.detail)
            else:
                self._add(image, path, root, unjudged.get(image.number, ()))
        source = str(folder / (split.list or split.annotations))
        has_ground_truth = self._add_bare(bare, source)
        problems += self._xml.notes(source) + self._frames.notes(source)
        return has_ground_truth

    def _listed(self) -> list[ListedImage]:
        """Returns the images of the split's lists; without a list, the images with an XML file."""
        if self._split.list is not None:
            return read_lists(self._folder, self._split.list, self._stored.find, self._meant.hint, self.problems)
        root, listed = self._folder / self._split.annotations, list[ListedImage]()
        for file in xml_files(root):
            name = file.relative_to(root).with_suffix("").as_posix()
            if self._stored.find(name) is not None:
                listed.append(ListedImage(name, file, "", partial=False))
            else:
                detail = f"no image {name!r} in {self._folder / self._split.images}{self._meant.hint(name)}"
                self.problems.append(Problem("dropped", "annotation without its image", str(file), detail))
        return listed

    def _file(self, image: ListedImage) -> Path:
        return self._folder / self._split.annotations / f"{image.name}.xml"

    def _wanted(self, listed: list[ListedImage]) -> list[ListedImage]:
        """Returns ``listed`` without partially labelled images, if the split asks for this."""
        partial = sum(image.partial for image in listed)
        if self._split.partial is None or not partial:
            return listed
        dropped = self._split.partial == "drop"
        detail = f"{partial} images that the lists give a 0: {'left out' if dropped else 'some classes have no boxes'}"
        source = str(self._folder / (self._split.list or self._split.annotations))
        self.problems.append(
            Problem("dropped" if dropped else "note", "image with partial labels", source, detail, partial)
        )
        return [image for image in listed if not (dropped and image.partial)]

    def _blacklist(self, listed: list[ListedImage]) -> tuple[set[str], set[tuple[str, str]]]:
        """Returns the numbers of images to leave out, and pairs (image, class name) whose objects are ignored."""
        if self._split.blacklist is None:
            return set(), set()
        file = self._folder / self._split.blacklist
        images, pairs = read_blacklist(file, self.problems)
        left_out = sum(image.number in images for image in listed)
        if left_out:
            self.problems.append(
                Problem(
                    "dropped", "image on the blacklist", str(file), f"{left_out} image{'s' * (left_out > 1)}", left_out
                )
            )
        if pairs:
            detail = f"{len(pairs)} pairs: neither objects nor detections count"
            self.problems.append(Problem("note", "class on the blacklist of an image", str(file), detail, len(pairs)))
        return images, pairs

    def _add(self, image: ListedImage, path: Path, root: ElementTree.Element | None, unjudged: Collection[int]) -> None:
        """Adds an image and its objects, ignoring ``unjudged`` labels; without a ``root``, only the image."""
        file = self._file(image)
        try:
            frame = self._frames.find(str(path), None if root is None else annotated_size(root))
        except ValueError as error:
            self._xml.error("size that can't be read", file, str(error))
            return
        row, first = len(self.images.ids), len(self.objects.boxes)
        self.images.paths.append(str(path))
        self.images.ids.append(row + 1)
        self.images.sizes.append(frame.size)
        self.images.apply_exif.append(frame.apply_exif)
        self.files.append(str(file))
        if root is None:
            return
        read_objects(root, file, row, frame, self._labels, self.objects, self._xml)
        self.unjudged += [(row, label) for label in sorted(unjudged)]
        for number in range(first, len(self.objects.boxes) if unjudged else first):
            self.objects.ignore[number] |= self.objects.labels[number] in unjudged
        if self._masks:
            self._add_masks(image, first, frame)

    def _add_masks(self, image: ListedImage, first: int, frame: Frame) -> None:
        boxes, masks = self.objects.boxes[first:], self.objects.fields["masks"]
        if frame.scale != (1.0, 1.0):  # masks have the annotated resolution
            masks += [None] * len(boxes)
        else:
            file = self._folder / str(self._split.instances) / f"{image.name}.png"
            masks += read_instances(file, boxes, frame.size, self.problems)

    def _add_bare(self, bare: list[tuple[ListedImage, Path]], source: str) -> bool:
        """Reports images without annotation; returns false if no image has one, so there is no ground truth."""
        if bare and not self.files and not any(problem.severity == "error" for problem in self.problems):
            folder = self._folder / self._split.annotations
            detail = f"no image has an XML file in {folder}; they can be predicted, not trained on or evaluated"
            self.problems.append(Problem("note", "no ground truth", source, detail, len(bare)))
            for image, path in bare:
                self._add(image, path, None, ())
            return False
        partial = [image for image, _ in bare if image.partial and self._split.partial]
        if partial:
            detail = f"{len(partial)} images that the lists give a 0, {partial[0].name} for one"
            self.problems.append(
                Problem("dropped", "image with partial labels and no annotation", source, detail, len(partial))
            )
        meant = Meant(self._folder / self._split.annotations)
        for image, _ in bare:
            if not (image.partial and self._split.partial):
                self._xml.error("missing annotation", self._file(image), f"no such file{meant.hint(image.name)}")
        return True


class _StoredImages:
    """The images below a folder by name (path without suffix); a subfolder is listed on first use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listed: dict[str, dict[str, Path]] = {}

    def find(self, name: str) -> Path | None:
        """Returns the image called ``name``; None if there is none."""
        parent, _, stem = name.rpartition("/")
        if parent not in self._listed:
            folder, found = self._folder / parent, {}
            for file in sorted(files_in(folder)):
                if file.lower().endswith(IMAGE_SUFFIXES):
                    found.setdefault(Path(file).stem, folder / file)
            self._listed[parent] = found
        return self._listed[parent].get(stem)

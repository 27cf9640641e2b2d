"""Data-set cards: one YAML file that gives the folder, the label format and the classes of a data set.

``load_dataset("voc2007:trainval")`` turns a card and a split into an AnnotationIndex.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from detection.config.load import build_dataclass, parse_yaml
from detection.config.schema import Positive, checked
from detection.data.bad_images import usable_images
from detection.data.index import AnnotationIndex
from detection.data.problems import Problem, refuse_errors
from detection.data.readers.frames import Exif, OtherSize
from detection.data.readers.table import FORMATS, FormatName
from detection.data.selection import select_images, split_entry
from detection.packaged import CARDS, DATA
from detection.structures import VOID

__all__ = ["Card", "data_root", "load_card", "load_dataset", "read_split", "with_classes_of_data"]

PixelValue = Annotated[int, Field(ge=0, le=255)]


@checked
class Card:
    """The keys of a card; datasets/README.md explains them."""

    name: str
    format: FormatName
    splits: dict[str, Any]
    # Empty: the classes that ``names`` maps to, in its order, else the classes of the data.
    classes: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)  # class name in the files -> class name of the card
    source: str = ""  # origin of the data, and their licence
    root: str | None = None  # folder below the data root, or an absolute path; null: the card's name
    bad_boxes: Literal["drop", "error"] = "drop"
    bad_images: Literal["error", "drop"] = "error"
    exif: Exif = "apply"
    other_size: OtherSize = "error"
    voc_metric: Literal["11point", "area", "imagenet"] = "area"
    values: tuple[PixelValue, ...] = ()  # pixel values of label_images, one per class; empty: 0, 1, 2, ...
    void: tuple[PixelValue, ...] = (VOID,)  # pixel values of label images that are not scored
    # For coco: label maps are also made from the objects' masks, with an additional first class "background".
    label_maps: Literal["polygons"] | None = None
    keypoint_sigmas: tuple[Positive, ...] = ()  # of OKS, one per keypoint; empty: COCO's by name, else 0.05
    download: tuple[dict[str, str], ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.classes:
            object.__setattr__(self, "classes", tuple(dict.fromkeys(self.names.values())))
        doubled = {name for name in self.classes if self.classes.count(name) > 1}
        if doubled:
            raise ValueError(f"card {self.name!r} needs class names, each once; given twice: {sorted(doubled)}")
        if self.names and self.format != "voc":
            raise ValueError(f"card {self.name!r}: names is for the voc format; others name their own classes")
        unknown = sorted(set(self.names.values()) - set(self.classes))
        if unknown:
            raise ValueError(f"names of card {self.name!r} lead to {unknown}, which are not among its classes")
        if self.label_maps and self.format != "coco":
            raise ValueError(f"card {self.name!r}: label_maps is for the coco format, got {self.format}")
        if self.format == "label_images":
            self._check_values()
        elif self.values:
            raise ValueError(f"card {self.name!r}: values is for the format label_images, got {self.format}")

    def _check_values(self) -> None:
        if not 1 <= len(self.classes) <= VOID:
            raise ValueError(
                f"card {self.name!r} needs 1 to {VOID} classes of its label images, got {len(self.classes)}"
            )
        values = self.values or tuple(range(len(self.classes)))
        if len(values) != len(self.classes):
            raise ValueError(
                f"card {self.name!r} has {len(self.classes)} classes and {len(values)} values; values takes that of "
                "each class's pixels, in their order"
            )
        doubled = sorted({value for value in (*values, *self.void) if (*values, *self.void).count(value) > 1})
        if doubled:
            raise ValueError(
                f"card {self.name!r}: each value has one meaning; given twice in values and void: {doubled}"
            )

    @property
    def labels_of_values(self) -> dict[int, int]:
        """The label of each pixel value of a label image; VOID for values that are not scored."""
        values = self.values or range(len(self.classes))
        return {value: label for label, value in enumerate(values)} | dict.fromkeys(self.void, VOID)

    def folder(self, root: Path) -> Path:
        """Returns the data set's folder below the data root ``root``."""
        return root / (self.root or self.name)


def data_root(configured: str | None = None) -> Path:
    """Returns the folder that holds the data sets: ``configured``, else $RESDET_DATA_ROOT, else datasets/."""
    return Path(configured or os.environ.get("RESDET_DATA_ROOT") or DATA)


def load_card(name: str) -> Card:
    """Returns the card ``name`` of datasets/, or the card at the path ``name`` if that ends in .yaml.

    Raises:
        ValueError: there is no such card, or it has an unknown key or an invalid value.
    """
    path = _find(name)
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"card {path} can't be read: {error}") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"card {path} holds no keys")
    if "format" not in values and values.keys() & {"solver", "_BASE_"}:
        raise ValueError(f"{path} is a training config, not a card: give the card before the colon in its data.train")
    try:
        return build_dataclass(Card, {"name": path.stem, **values})
    except ValueError as error:
        raise ValueError(f"card {path}: {error}") from error


def load_dataset(
    specs: Sequence[str], root: Path, *, fields: Collection[str] = (), label_maps: bool = False
) -> tuple[AnnotationIndex, list[Problem]]:
    """Reads and joins the data sets ``specs`` ("card:split") below the data root ``root``, and lists what was dropped.

    ``fields`` (such as "masks") and ``label_maps`` are read on request only, as they take time and memory.

    Raises:
        ValueError: a data set has errors (the message names its files), a split is empty, or classes differ from those
            of the first data set.
    """
    parts, problems = [], []
    for spec in specs:
        card, split = _parse(spec)
        index, found = read_split(card, split, root, fields=fields, label_maps=label_maps)
        refuse_errors(found, f"data set {spec!r}")
        index, bad = usable_images(index, card.bad_images)
        refuse_errors(bad, f"data set {spec!r}", repair="; or set `bad_images: drop` in the card to train without them")
        if not len(index):
            raise ValueError(f"data set {spec!r} has no images; its card is {_find(spec.rpartition(':')[0])}")
        parts.append(index)
        problems += found + bad
    return AnnotationIndex.concatenate(parts), problems + _shared_images(specs, parts)


def _shared_images(specs: Sequence[str], parts: Sequence[AnnotationIndex]) -> list[Problem]:
    """Returns a note for each of ``specs`` that shares images with an earlier one: these count twice."""
    seen, problems = dict[str, str](), list[Problem]()
    for spec, part in zip(specs, parts, strict=True) if len(parts) > 1 else ():
        own = [part.paths[row] for row in range(len(part))]
        twice = [path for path in own if path in seen]
        if twice:
            detail = f"{len(twice)} of {spec!r} in {seen[twice[0]]!r} too; this one is the first"
            problems.append(Problem("note", "image in two of the joined sets", twice[0], detail, len(twice)))
        seen |= {path: spec for path in own if path not in seen}
    return problems


def read_split(
    card: Card, split: str, root: Path, *, fields: Collection[str] = (), label_maps: bool = False
) -> tuple[AnnotationIndex, list[Problem]]:
    """Reads the images of a split with the ``fields`` of their objects, and all problems, errors included.

    With ``label_maps`` the index also has the label maps that the card describes.

    Raises:
        ValueError: the data set's folder is missing, or the card lacks the split or describes it wrongly.
    """
    if split not in card.splits:
        raise ValueError(f"card {card.name!r} has no split {split!r}; it has {', '.join(card.splits)}")
    folder = card.folder(root)
    if not folder.is_dir():
        raise ValueError(
            f"data set {card.name!r} is not at {folder}: {_root_to_set(folder, root)}. "
            f"Where to get it: {card.source.strip() or 'its card does not say'}"
        )
    own = FORMATS[card.format]
    options = {
        "exif": card.exif,
        "other_size": card.other_size,
        "drop": card.bad_boxes == "drop",
        "drop_images": card.bad_images == "drop",
        "names": card.names,
        "fields": fields,
        "label_maps": label_maps,
        "polygons": label_maps and card.label_maps == "polygons",
        "source": card.source.strip(),
    }
    if card.format == "label_images":
        options["values"] = card.labels_of_values
    entries, found = _entries(card, split), list[Problem]()
    if not card.classes and own.classes is not None:
        card = with_classes_of_data(card, root)
        detail = "the card has no `classes`; copy these into it to fix their order"
        found.append(Problem("note", f"classes taken from the data: {', '.join(card.classes)}", str(folder), detail))
    parts = list[AnnotationIndex]()
    try:
        for entry in entries:
            taken, selection = split_entry(entry, own_list=own.own_list)
            part, problems = own.read(folder, taken, card.classes, **{key: options[key] for key in own.options})
            part, missing = select_images(part, folder, selection)
            parts.append(part)
            found += problems + missing
    except ValueError as error:
        raise ValueError(f"card {card.name!r}, split {split!r}: {error}") from error
    return _with_sigmas(AnnotationIndex.concatenate(parts), card), found


def _root_to_set(folder: Path, root: Path) -> str:
    if not folder.is_relative_to(root):
        return "its card has this root"
    way = "$RESDET_DATA_ROOT, data.root=DIR of a config, or --root DIR of resdet check"
    return f"the data root {root} must hold {folder.relative_to(root)}; set it by {way}"


def _with_sigmas(index: AnnotationIndex, card: Card) -> AnnotationIndex:
    if index.keypoints is None or not card.keypoint_sigmas:
        return index
    try:
        return replace(index, keypoints=replace(index.keypoints, sigmas=card.keypoint_sigmas))
    except ValueError as error:
        raise ValueError(f"card {card.name!r}: {error}") from error


def with_classes_of_data(card: Card, root: Path) -> Card:
    """Returns ``card`` with the class names of all its splits, so that the splits agree; image folders find their own.

    Raises:
        ValueError: the data have no class names.
    """
    own, names = FORMATS[card.format], dict[str, None]()
    if own.classes is None:
        return card
    for split in card.splits:
        for entry in _entries(card, split):
            taken, _ = split_entry(entry, own_list=own.own_list)
            names |= dict.fromkeys(own.classes(card.folder(root), taken))
    if not names:
        raise ValueError(f"card {card.name!r} names no classes, and its data at {card.folder(root)} have none either")
    return replace(card, classes=(*names,))


def _entries(card: Card, split: str) -> list[dict[str, Any]]:
    described = card.splits[split]
    entries = described if isinstance(described, list) else [described]
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        keys = FORMATS[card.format].keys
        raise ValueError(f"card {card.name!r}: split {split!r} takes {keys}, or a list of such, got {described!r}")
    return entries


def _parse(spec: str) -> tuple[Card, str]:
    name, colon, split = spec.rpartition(":")
    if not colon or not name or not split:
        raise ValueError(f"a data set has the form card:split, such as voc2007:trainval, got {spec!r}")
    return load_card(name), split


def _find(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise ValueError(f"no card {name!r}")
        return Path(name)
    folders = [Path("datasets"), CARDS]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
    what = f"no card and no folder {name!r}" if "/" in name else f"no card {name!r} in datasets/"
    raise ValueError(f"{what}; {hint}")

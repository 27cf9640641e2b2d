"""Writes the card of a recognised folder, with a random split if the folder has none.

A random split is a list of images per split, with similar class shares, and with groups and copies kept together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from detection.data.cards import Card, read_split, with_classes_of_data
from detection.data.index import AnnotationIndex
from detection.data.label_check import check_label_maps
from detection.data.near_copies import Look, look_at, pairs_alike
from detection.data.problems import Problem, listed
from detection.data.readers.table import FORMATS
from detection.data.recognise import Recognised
from detection.data.split import class_counts, divide, group_images, join_groups
from detection.data.tree import SPLITS
from detection.fields.table import FIELDS
from detection.structures import VOID

__all__ = ["FirstCard", "card_text", "draw_card"]

ALL = "all"  # name of the only split in a folder without splits
LEAST_FOR_TEST = 100  # images; a smaller data set gets no test set
MANY_IMAGES = 20_000  # with more, a broken image is an error: decoding all takes minutes at every start
ROOT = Path()  # cards of folders have absolute paths

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class FirstCard:
    """A card and what it describes.

    Attributes:
        card: card of the data set.
        sets: train, val and test, as far as they exist.
        lists: files of the random splits -> the images in them.
    """

    card: Card
    sets: Mapping[str, AnnotationIndex]
    lists: Mapping[str, Sequence[str]]


def draw_card(found: Recognised, place: Path, *, group: str | None, seed: int, say: Say) -> FirstCard:
    """Returns the card of ``found``; splits the validation set off the training set if there is none.

    Args:
        found: the folder.
        place: folder for the lists of images.
        group: regular expression on the path of an image; images with the same match stay in one split.
        seed: seed of the split.
        say: called with each line of progress.

    Raises:
        ValueError: unusable labels, or an invalid regular expression ``group``.
    """
    card = _card(found)
    parts = {name: _read(card, name, say) for name in card.splits}
    sets = {name: AnnotationIndex.concatenate(own) for name, own in parts.items()}
    first = next(iter(sets.values()))
    card = replace(card, classes=first.class_names if first.label_maps is None else first.label_maps.class_names)
    say(f"{len(card.classes)} classes: {listed(card.classes, most=20)}")
    whole, looks = ALL if ALL in sets else "train", _looks(sets, say)
    if whole == "train" and "val" in sets:
        say(f"split: the folder's own: {_counts(sets)}")
        _say_copies(sets, looks, say)
        return FirstCard(card, sets, {})
    rows = _draw(sets[whole], looks, _shares(whole, len(sets[whole])), group=group, seed=seed, say=say)
    index = sets.pop(whole)
    sets |= {name: index.take(torch.tensor(own, dtype=torch.int64)) for name, own in rows.items()}
    sets = {name: sets[name] for name in SPLITS if name in sets}
    say(f"split: drawn with seed {seed}, classes alike in each: {_counts(sets)}")
    _say_copies(sets, looks, say)
    splits, lists = _lists(card, parts[whole], card.splits[whole], rows, place)
    splits = {name: splits.get(name, card.splits.get(name)) for name in sets}
    return FirstCard(replace(card, splits=splits), sets, lists)


def _card(found: Recognised) -> Card:
    """Returns the card of a folder as it is, with the classes of the data."""
    card = Card(
        name=found.folder.name,
        format=found.format,
        source="",
        root=str(found.folder),
        splits={name: [*entries] for name, entries in found.layout.splits.items()},
        bad_images="drop" if found.images < MANY_IMAGES else "error",
        **found.layout.card,
    )
    return with_classes_of_data(card, ROOT)


def _read(card: Card, name: str, say: Say) -> list[AnnotationIndex]:
    """Returns the images of each entry of a split, with their masks; reports problems."""
    parts = list[AnnotationIndex]()
    for entry in card.splits[name]:
        fields = ("masks",) if "fields" in FORMATS[card.format].options else ()
        index, problems = read_split(replace(card, splits={name: entry}), name, ROOT, fields=fields, label_maps=True)
        for problem in [problem for problem in problems if problem.severity == "error"][:5]:
            say(f"error: {problem}")
        _say_dropped(problems, say)
        parts.append(index)
    if not sum(map(len, parts)):
        raise ValueError(f"{card.root}: the split {name!r} has no usable image; resdet check lists the reasons")
    return parts


def _say_dropped(problems: Sequence[Problem], say: Say) -> None:
    masks = FIELDS["masks"].unusable  # boxes among polygons have no mask
    dropped = [problem for problem in problems if problem.severity == "dropped" and problem.kind != masks]
    for kind in dict.fromkeys(problem.kind for problem in dropped):
        own = [problem for problem in dropped if problem.kind == kind]
        say(f"left out: {sum(problem.count for problem in own)} x {kind}, such as {own[0].file}: {own[0].detail}")


def _shares(whole: str, images: int) -> dict[str, float]:
    if whole == "train":  # a test set exists, or is not wanted
        return {"train": 0.9, "val": 0.1}
    return {"train": 0.8, "val": 0.1, "test": 0.1} if images >= LEAST_FOR_TEST else {"train": 0.8, "val": 0.2}


def _looks(sets: Mapping[str, AnnotationIndex], say: Say) -> dict[str, Look]:
    """Returns path -> appearance of the image, to find copies; empty for very many images."""
    paths = [*dict.fromkeys(path for index in sets.values() for path in index.paths)]
    if len(paths) > MANY_IMAGES:
        say(f"{len(paths)} images: not searched for copies, which takes minutes; resdet check does it")
        return dict.fromkeys(paths, Look(None, None, None))
    return dict(zip(paths, look_at(paths), strict=True))


def _draw(
    index: AnnotationIndex,
    looks: Mapping[str, Look],
    shares: Mapping[str, float],
    *,
    group: str | None,
    seed: int,
    say: Say,
) -> dict[str, list[int]]:
    """Draws the rows of each set."""
    paths = [*index.paths]
    groups, rule = group_images(paths, pattern=group)
    pairs = pairs_alike([looks[path] for path in paths])
    same = sum(pair.same for pair in pairs)
    say(f"images that stay together: by {rule}; {same} copies and {len(pairs) - same} near copies")
    joined = join_groups(groups, [(pair.one, pair.other) for pair in pairs])
    counts = class_counts(index) if index.label_maps is None else _label_counts(index)
    return divide(joined, counts, shares, seed=seed)


def _label_counts(index: AnnotationIndex) -> NDArray[np.int64]:
    """Returns (N, K) of 0 and 1: whether image n has a pixel of class k."""
    return check_label_maps(index)[0].present.astype(np.int64)


def _lists(
    card: Card,
    parts: Sequence[AnnotationIndex],
    entries: Sequence[Mapping[str, Any]],
    rows: Mapping[str, list[int]],
    place: Path,
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[str]]]:
    """Returns the entries of the random splits, each with its list, and the lines of the lists."""
    splits, lists = {name: list[dict[str, Any]]() for name in rows}, dict[str, list[str]]()
    start = 0
    for number, (part, entry) in enumerate(zip(parts, entries, strict=True), start=1):
        # Formats with lists of their own name images relative to their folder, others relative to the data set's.
        below = Path(str(card.root)) / (str(entry["images"]) if FORMATS[card.format].own_list else "")
        for name, own in rows.items():
            inside = [row - start for row in own if start <= row < start + len(part)]
            if inside:
                file = f"{name}.txt" if len(parts) == 1 else f"{name}_{number}.txt"
                lists[file] = [Path(part.paths[row]).relative_to(below).as_posix() for row in inside]
                splits[name].append({**entry, "list": str((place / file).resolve())})
        start += len(part)
    return splits, lists


def _say_copies(sets: Mapping[str, AnnotationIndex], looks: Mapping[str, Look], say: Say) -> None:
    """Reports images that are in two sets, also as near copies."""
    owners = [(name, path) for name, index in sets.items() for path in index.paths]
    pairs = pairs_alike([looks[path] for _, path in owners])
    shared = [pair for pair in pairs if owners[pair.one][0] != owners[pair.other][0]]
    for pair in shared[:10]:
        (one, first), (other, second) = owners[pair.one], owners[pair.other]
        say(f"warning: {second} of {other} {'is' if pair.same else 'is nearly'} {first} of {one}")
    if len(shared) > 10:
        say(f"warning: {len(shared) - 10} more images are in two sets; resdet check names them all")


def _counts(sets: Mapping[str, AnnotationIndex]) -> str:
    def held(index: AnnotationIndex) -> str:
        if index.label_maps is not None:
            return f"{int(index.label_maps.labelled().sum())} label images"
        return f"{len(index.boxes)} objects"

    return ", ".join(f"{name} {len(index)} images and {held(index)}" for name, index in sets.items())


def card_text(card: Card, found: Recognised) -> str:
    """Returns ``card`` as YAML, with the recognised format as a header."""
    values = {
        "name": card.name,
        "format": card.format,
        "root": card.root,
        "bad_images": card.bad_images,
        "classes": [*card.classes],
        **({"values": [*card.values]} if card.values else {}),
        **({"void": [*card.void]} if card.void != (VOID,) else {}),
        "splits": {name: entries[0] if len(entries) == 1 else entries for name, entries in card.splits.items()},
    }
    header = "".join(f"# {line}\n" for line in (f"{card.name}: {FORMATS[card.format].title}", *found.lines))
    return header + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)

"""Writes the file for ImageNet's localisation server, for a test set without ground truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from detection.config.load import build_dataclass
from detection.data.cards import data_root, load_card
from detection.data.readers.voc import VOCSplit
from detection.evaluation.submission import Guesses, write_imagenet_loc
from detection.files import require_file
from detection.localization.config import LocalizationConfig

__all__ = ["find_submission"]

CLASSES = "devkit/data/map_clsloc.txt"  # below the data set's folder; lines such as "n02119789 1 kit_fox"


def find_submission(config: LocalizationConfig) -> Callable[[Sequence[Guesses], Path], Path]:
    """Returns a function that writes guesses on ``config.data.test``, which has no ground truth, into a folder.

    Raises:
        ValueError: no classifier to guess with, other than a single split of the voc format, a split that may lack
            images, or classes that the development kit does not number.
    """
    if config.localization.classifier is None:
        raise ValueError(
            f"data.test={list(config.data.test)} has no ground truth, so the classes are guessed, and "
            "localization.classifier is null; give a run of `resdet pretrain`, a file of weights or torchvision"
        )
    name, _, split = config.data.test[0].rpartition(":")
    card = load_card(name)
    entry = card.splits[split]
    if len(config.data.test) != 1 or card.format != "voc" or isinstance(entry, list):
        raise ValueError(
            f"data.test={list(config.data.test)} has no ground truth, and ImageNet's server judges one whole list of "
            "images; give one [CARD:SPLIT] of a card of format voc, described by one list"
        )
    if card.bad_images == "drop":
        raise ValueError(
            f"card {name!r} has bad_images: drop, but ImageNet's server wants a line for every image of {split!r}; "
            "set bad_images: error and replace the files that it names"
        )
    numbers = _class_numbers(card.folder(data_root(config.data.root)) / CLASSES, card.classes)
    first_pixel = build_dataclass(VOCSplit, entry).first_pixel
    return partial(write_imagenet_loc, class_numbers=numbers, split=split, first_pixel=first_pixel)


def _class_numbers(file: Path, class_names: Sequence[str]) -> list[int]:
    """Returns the challenge's numbers of ``class_names``."""
    kit = "it belongs to the development kit of https://image-net.org/challenges/LSVRC/2015/ (CLS-LOC)"
    try:
        require_file(file)
        lines = filter(None, map(str.split, file.read_text(encoding="utf-8").splitlines()))
        numbers = {name: int(number) for name, number, *_ in lines}
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} can't be read, which numbers the classes for the server: {error}; {kit}") from error
    missing = [name for name in class_names if name not in numbers]
    if missing:
        raise ValueError(f"{file} has no number for the class {missing[0]!r} ({len(missing)} such); {kit}")
    return [numbers[name] for name in class_names]

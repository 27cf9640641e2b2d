"""Finds test images of an experiment that are also used in training or in the search of learning rates.

OUTPUT/leakage.json  the findings, reused until the name, size or time of a file changes

Exact copies are an error: a network trained on them has seen their labels.  Near copies, such as frames of one scene,
are listed in the report.  The search for copies reads the size of every file, and the content of files of equal size.
The search for near copies decodes every image once, at a small size.  docs/compare.md has the times.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from detection.config.sections import ProgramConfig
from detection.data.near_copies import copies_between, look_at, near_copies_between
from detection.experiments.experiment import Experiment
from detection.experiments.kind import Kind
from detection.experiments.runs import write_json
from detection.files import digest

__all__ = ["check_leakage"]

FILE = "leakage.json"
MOST_EXAMPLES = 5
THREADS = 16  # threads that read file sizes, possibly over a network

ConfigT = TypeVar("ConfigT", bound=ProgramConfig)
Pairs = Sequence[tuple[str, str]]
Sizes = Mapping[str, tuple[int, int]]  # path -> bytes, modification time


def check_leakage(
    experiment: Experiment,
    configs: Mapping[str, ConfigT],
    kind: Kind[ConfigT],
    output: Path,
    *,
    near: bool = False,
    say: Callable[[str], None],
) -> None:
    """Searches the training images for images of data.test, and writes leakage.json; reports unreadable images.

    Args:
        experiment: the experiment, which may allow copies.
        configs: variant -> its config.
        kind: reads the images.
        output: folder of the experiment.
        near: also look for near copies, which decodes all images.
        say: called with each line of progress.

    Raises:
        ValueError: copies that the experiment does not allow.
    """
    protocol, first = experiment.protocol, next(iter(configs.values()))
    seen = dict.fromkeys(spec for config in configs.values() for spec in config.data.train)
    seen |= dict.fromkeys((*protocol.train, *protocol.validation))
    sets = {"data.test": first.data.test, "data.train": [*seen]}
    try:
        test, train = ([*kind.read(first, specs, key, lambda _: None).paths] for key, specs in sets.items())
    except ValueError as error:
        say(f"warning: copies of test images in the training set are not looked for: {error}")
        return
    sizes = (_sizes(test), _sizes(train))
    found = _before(output / FILE, digest(sizes)) or _look_for_copies(*sizes)
    if found["copies"]["count"] and not experiment.allow_leakage:
        raise ValueError(
            f"experiment {experiment.name}: {_refusal(found['copies'], first.data.test, [*seen], len(test))}"
        )
    if near and found["near_copies"] is None:
        found["near_copies"] = _listed(_near_copies(test, train, say=say))
    write_json(output / FILE, found)
    for found_as, what in (("copies", "the same"), ("near_copies", "nearly the same")):
        if found[found_as] and found[found_as]["count"]:
            count, (one, other) = found[found_as]["count"], found[found_as]["examples"][0]
            say(f"warning: test and training images that are {what}: {count:,}, such as {one} and {other}")


def _before(path: Path, stamp: str) -> dict[str, Any] | None:
    """Returns the earlier findings on the same files; None if there are none."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found if found.get("stamp") == stamp else None


def _look_for_copies(test: Sizes, train: Sizes) -> dict[str, Any]:
    """Returns the content of leakage.json, without near copies."""
    known = [{path: size for path, (size, _) in files.items() if size >= 0} for files in (test, train)]
    copies, unread = copies_between(*known)
    return {
        "stamp": digest((test, train)),
        "test_images": len(test),
        "train_images": len(train),
        "unread": sum(size < 0 for files in (test, train) for size, _ in files.values()) + len(unread),
        "copies": _listed(copies),
        "near_copies": None,
    }


def _refusal(copies: dict[str, Any], test: Sequence[str], seen: Sequence[str], images: int) -> str:
    one, other = copies["examples"][0]
    return (
        f"of the {images:,} images of data.test {[*test]} {copies['count']:,} are in {[*seen]} too, byte for byte, "
        f"such as {one} as {other}: figures on them say nothing of new images. Take them out of one of the sets "
        "(resdet check lists all), or add `allow_leakage: true` to the experiment file, which puts them into the report"
    )


def _near_copies(test: Sequence[str], train: Sequence[str], *, say: Callable[[str], None]) -> Pairs:
    """Returns each of ``test`` that looks like one of ``train``, with the first match."""
    shared = {*test} & {*train}
    own = [path for path in test if path not in shared]
    say(f"looking at {len(own) + len(train):,} images for near copies between training and test")
    first = dict[int, int]()
    for one, other in near_copies_between(look_at(own), look_at(train)):
        first.setdefault(one, other)
    return [(own[one], train[other]) for one, other in first.items()]


def _sizes(paths: Sequence[str]) -> Sizes:
    """Returns the sizes of files, -1 for one that is missing."""
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(paths, pool.map(_size, paths), strict=True))


def _size(path: str) -> tuple[int, int]:
    try:
        known = Path(path).stat()
    except (OSError, ValueError):
        return -1, 0
    return known.st_size, known.st_mtime_ns


def _listed(pairs: Pairs) -> dict[str, Any]:
    return {"count": len(pairs), "examples": [list(pair) for pair in pairs[:MOST_EXAMPLES]]}

"""Divides images into training, validation and test sets, by groups and stratified by class.

Images of one group stay together: frames of a video, versions of an image, copies.  A group goes to the set that needs
its classes most (iterative stratification), the rarest classes first.
Source: Sechidis et al. 2011, "On the Stratification of Multi-Label Data".

Shapes: N images, K classes, S sets.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detection.data.index import AnnotationIndex

__all__ = ["Grouping", "class_counts", "divide", "group_images", "join_groups"]

# A frame number, or Roboflow's suffix of augmented versions.
FRAME = re.compile(r"[-_. ]?(frame|img|f)?[-_. ]?\d+$", re.IGNORECASE)
VERSION = re.compile(r"\.rf\.[0-9a-zA-Z]+$")
LEAST_GROUPS = 8  # fewer can't be divided among three sets
LARGEST_GROUP = 0.3  # fraction of all images

Grouping = tuple[list[str], str]  # group of each image, and the rule in words


def group_images(paths: Sequence[str], *, pattern: str | None = None) -> Grouping:
    """Returns the group of each of ``paths``, and the rule that was used.

    Without a ``pattern``, the rule is the first of these whose groups can be divided: the name without its frame
    number, the folder, each image by itself.  Versions that Roboflow made of one image are always one group.

    Args:
        paths: image files.
        pattern: regular expression on the path; its first group, or else the whole match, names the group.

    Raises:
        ValueError: ``pattern`` is no regular expression.
    """
    plain = [str(Path(path).with_name(VERSION.sub("", Path(path).stem))) for path in paths]
    if pattern is not None:
        try:
            found = [re.search(pattern, path) for path in paths]
        except re.error as error:
            raise ValueError(f"--group takes a regular expression, got {pattern!r}: {error}") from error
        groups = [match[match.re.groups and 1] if match else path for match, path in zip(found, plain, strict=True)]
        return groups, f"the part of their path that {pattern!r} finds"
    rules = {
        "file names without their last number": [FRAME.sub("", path) for path in plain],
        "folder": [str(Path(path).parent) for path in paths],
    }
    for rule, groups in rules.items():
        counts = Counter(groups)
        alone = len(counts) == len(set(plain))
        if len(counts) >= LEAST_GROUPS and max(counts.values()) <= LARGEST_GROUP * len(paths) and not alone:
            return groups, f"{rule} ({len(counts)} groups)"
    return plain, "nothing: every image is for itself"


def join_groups(groups: Sequence[str], pairs: Iterable[tuple[int, int]]) -> list[str]:
    """Returns the ``groups`` of the images after joining the two groups of each of ``pairs`` (rows)."""
    above = {group: group for group in groups}

    def root(group: str) -> str:
        while above[group] != group:
            above[group] = above[above[group]]
            group = above[group]
        return group

    for one, other in pairs:
        above[root(groups[one])] = root(groups[other])
    return [root(group) for group in groups]


def class_counts(index: AnnotationIndex) -> NDArray[np.int64]:
    """Returns the number (N, K) of objects of each image and class that are not ignored."""
    counts = np.zeros((len(index), len(index.class_names)), dtype=np.int64)
    for row in range(len(index)):
        objects = index.objects(row)
        labels = index.labels[objects][~index.ignore[objects]].numpy()
        counts[row] = np.bincount(labels, minlength=len(index.class_names))
    return counts


def divide(
    groups: Sequence[str], counts: NDArray[np.int64], shares: Mapping[str, float], *, seed: int
) -> dict[str, list[int]]:
    """Returns the sorted rows of the images of each set.

    Args:
        groups: group of each of the N images.
        counts: number (N, K) of objects of each image and class.
        shares: set -> fraction of the images; the fractions add up to 1.
        seed: seed of the order of the groups.
    """
    members = dict[str, list[int]]()
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    names, sizes = [*shares], [*members.values()]
    generator = np.random.default_rng(seed)
    # Images count like one more class, so that sets without objects are divided too.
    amounts = np.array([[len(rows), *(counts[rows] > 0).sum(axis=0)] for rows in sizes], dtype=np.float64)
    amounts = amounts.reshape(-1, 1 + counts.shape[1])
    totals = np.maximum(amounts.sum(axis=0), 1)
    wanted = np.array([[shares[name]] for name in names]) * amounts.sum(axis=0)  # (S, 1 + K) still needed
    rarest = np.where(amounts > 0, totals, np.inf).min(axis=1)
    order = sorted(generator.permutation(len(sizes)), key=lambda number: (rarest[number], -len(sizes[number])))
    found = {name: list[int]() for name in names}
    for number in order:
        own = amounts[number]
        classes = np.flatnonzero(own[1:]) + 1
        rare = classes[totals[classes].argmin()] if len(classes) else 0
        needs = wanted[:, [rare, 0]]
        best = max(range(len(names)), key=lambda place: (round(needs[place, 0], 6), needs[place, 1]))
        if wanted[best, 0] < len(sizes[number]) / 2 and wanted[:, 0].max() > 0:  # the set is full
            best = int(wanted[:, 0].argmax())
        wanted[best] -= own
        found[names[best]] += sizes[number]
    return {name: sorted(rows) for name, rows in found.items()}

"""Pictures for a data set's page: findings of the check, worst first, and samples of every class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from detection.data.images import ImageError
from detection.data.index import AnnotationIndex
from detection.data.problems import Problem, Severity
from detection.label_overlay import draw_label_map
from detection.pages.page import Pictures
from detection.pages.photos import framed, jpeg, page_scale
from detection.tasks.label_pictures import draw_labels, drawn_target
from detection.visualize import resized

__all__ = ["SEVERITIES", "Finding", "found_pictures", "sample_pictures"]

SEVERITIES: tuple[Severity, ...] = ("error", "dropped", "note")  # worst first
MAX_FOUND = 60  # at most so many pictures of findings: keeps the page below some megabytes
MAX_OF_KIND = 12
MAX_SIDE_BY_SIDE = 4
MAX_SAMPLES = 8  # sample pictures of a split
MAX_DETAIL = 240  # characters of a caption


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem and the splits that have it; no splits for a problem between splits."""

    problem: Problem
    splits: tuple[str, ...]

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return SEVERITIES.index(self.problem.severity)


def found_pictures(findings: Sequence[Finding], splits: Mapping[str, AnnotationIndex]) -> list[Pictures]:
    """Returns the images of ``findings``, worst first, with all their labels and a frame around the problem.

    Images that can't be drawn are left out.
    """
    images, drawn, kinds = _Images(splits), list[Pictures](), dict[str, int]()
    for number, finding in enumerate(findings):
        kind = finding.problem.kind
        if kinds.get(kind, 0) >= MAX_OF_KIND or len(drawn) >= MAX_FOUND:
            continue
        pictures = _found(number, finding, images)
        if pictures is not None:
            drawn.append(pictures)
            kinds[kind] = kinds.get(kind, 0) + 1
    return drawn


def sample_pictures(split: str, index: AnnotationIndex) -> list[Pictures]:
    """Returns images of ``index`` with their labels: first of every class, the rarest first, then any."""
    drawn = list[Pictures]()
    for row in _samples(index):
        try:
            jpeg = _draw(index, row, ())
        except ValueError:  # named among the findings
            continue
        name = Path(index.paths[row]).name
        labels = index.labels[index.objects(row)].bincount(minlength=len(index.class_names)).tolist()
        counts = [f"{count} {of}" for of, count in zip(index.class_names, labels, strict=True) if count]
        drawn.append(Pictures(f"sample_{split}_{row}", [jpeg], f"{name}: {', '.join(counts) or 'no object'}", [name]))
        if len(drawn) == MAX_SAMPLES:
            break
    return drawn


def _samples(index: AnnotationIndex) -> Iterator[int]:
    """Yields rows of images in a fixed random order: first images that show each class, then the others."""
    order = np.random.default_rng(0).permutation(len(index)).tolist()
    rows = torch.repeat_interleave(torch.arange(len(index)), torch.diff(index.ends, prepend=index.ends.new_zeros(1)))
    counts = index.labels.bincount(minlength=len(index.class_names))
    given, place = set[int](), {row: number for number, row in enumerate(order)}
    for label in counts.argsort(stable=True).tolist():
        holding = sorted(set(rows[index.labels == label].tolist()), key=place.__getitem__)
        if holding and given.isdisjoint(holding):
            given.add(holding[0])
            yield holding[0]
    yield from (row for row in order if row not in given)


def _found(number: int, finding: Finding, images: _Images) -> Pictures | None:
    problem = finding.problem
    jpegs, names = list[bytes](), list[str]()
    for place, path in enumerate((problem.images or (problem.file,))[:MAX_SIDE_BY_SIDE]):
        jpeg = images.draw(path, problem.boxes if place == 0 else ())
        if jpeg is not None:
            jpegs.append(jpeg)
            names.append(Path(path).name)
    if not jpegs:
        return None
    detail = problem.detail if len(problem.detail) <= MAX_DETAIL else f"{problem.detail[:MAX_DETAIL]}..."
    where = f" ({', '.join(finding.splits)})" if finding.splits else ""
    unnamed = [name for name in names if name not in problem.detail]
    caption = f"{problem.severity}: {problem.kind}{where}. {', '.join(unnamed)}{': ' if unnamed else ''}{detail}"
    return Pictures(f"found_{number}", jpegs, caption, [f"{name}: {problem.kind}" for name in names])


class _Images:
    """The images of all splits by path, and by the path of an annotation file named like exactly one image."""

    def __init__(self, splits: Mapping[str, AnnotationIndex]) -> None:
        self.places = dict[str, tuple[AnnotationIndex, int]]()
        stems = dict[str, set[str]]()
        for index in splits.values():
            for row, path in enumerate([*index.paths]):
                self.places.setdefault(path, (index, row))
                stems.setdefault(Path(path).stem, set()).add(path)
        self.stems = {stem: next(iter(paths)) for stem, paths in stems.items() if len(paths) == 1}

    def draw(self, path: str, boxes: Sequence[tuple[float, ...]]) -> bytes | None:
        """Draws an image with its labels and frames around ``boxes`` as a JPEG; None if it is unknown or unreadable."""
        place = self.places.get(path) or self.places.get(self.stems.get(Path(path).stem, ""))
        if place is None:
            return None
        try:
            return _draw(*place, boxes)
        except ValueError:
            return None


def _draw(index: AnnotationIndex, row: int, boxes: Sequence[tuple[float, ...]]) -> bytes:
    image = index.image(row)
    scale = page_scale(image.shape)
    if index.label_maps is not None and not len(index.boxes):
        canvas = _under_labels(index, row, image, scale)
    else:
        canvas = draw_labels(image, drawn_target(index, row), index.class_names, keypoints=index.keypoints, scale=scale)
    return jpeg(framed(canvas, np.array(boxes, np.float64).reshape(-1, 4) * scale))


def _under_labels(index: AnnotationIndex, row: int, image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """Returns ``image`` (H, W, 3), resized by ``scale``, under its label map if that can be read."""
    maps = index.label_maps
    assert maps is not None
    try:
        labels = maps.read(row, (image.shape[0], image.shape[1]))
    except ImageError:
        return resized(image, scale)
    return draw_label_map(image, labels, maps.class_names, scale=scale)

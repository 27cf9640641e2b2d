"""Sections on label maps for a data set's page: pixel share of each class, and images under their labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detection.data.index import AnnotationIndex
from detection.data.label_check import LabelCounts
from detection.label_overlay import draw_label_map
from detection.pages.data_plots import shares
from detection.pages.page import Block, Figure, Notice, Pictures, Section, Table
from detection.pages.photos import jpeg, page_scale

__all__ = ["LabelledSplit", "label_pictures", "labels_section"]

MAX_CLASSES = 20  # classes in the figure; the table shows all
MAX_SAMPLES = 8  # pictures of a split


@dataclass(frozen=True, slots=True)
class LabelledSplit:
    """A split with label maps.

    Attributes:
        index: images of the split.
        counts: counts of their pixels; None: the label maps were not read.
    """

    index: AnnotationIndex
    counts: LabelCounts | None


def labels_section(splits: Mapping[str, LabelledSplit]) -> Section:
    """Returns the section with the pixel share of each class in each split, and the classes that a split lacks."""
    counts = {split: own.counts for split, own in splits.items() if own.counts is not None and own.counts.labelled}
    if not counts:
        return Section("Label maps", [])
    names = next(iter(counts.values())).class_names
    drawn, blocks = dict[str, dict[str, float]](), list[Block]()
    for split, own in counts.items():
        total = max(1, int(own.pixels.sum()) + own.void)
        for name, count in zip((*names, "void"), (*own.pixels.tolist(), own.void), strict=True):
            drawn.setdefault(name, {})[split] = count / total
        if missing := [name for name, count in zip(names, own.pixels.tolist(), strict=True) if not count]:
            blocks.append(Notice(f"{split} has no pixel of: {', '.join(missing)}."))
    order = sorted(drawn, key=lambda name: -max(drawn[name].values()))
    picked = f" The {MAX_CLASSES} largest of {len(order)}." if len(order) > MAX_CLASSES else ""
    figure = shares(
        "labels", {name: drawn[name] for name in order[:MAX_CLASSES]}, x_label="percent of the split's pixels"
    )
    rows, columns = list[list[str]](), {split: {row[0]: row[1:] for row in own.rows} for split, own in counts.items()}
    for name in order:
        rows.append([name, *(cell for own in columns.values() for cell in own[name])])
    header = ["class", *(f"{split}: {what}" for split in counts for what in ("% of pixels", "images"))]
    read = ", ".join(f"{split} {own.labelled:,} of {len(own.present):,}" for split, own in counts.items())
    alt = "; ".join(" ".join(row) for row in rows[:MAX_CLASSES])
    blocks += [
        Figure("labels", figure, f"Share of the pixels of each class in each split.{picked}", alt),
        Table(f"Images with a label map: {read}. Void pixels are neither trained on nor judged.", header, rows),
    ]
    return Section("Label maps", blocks)


def label_pictures(split: str, labelled: LabelledSplit) -> list[Pictures]:
    """Returns images of a split under their label colours: first of every class, the rarest first, then any."""
    index, drawn = labelled.index, list[Pictures]()
    for row in _samples(labelled):
        try:
            picture = _draw(index, row)
        except ValueError:  # named among the findings
            continue
        name = Path(index.paths[row]).name
        drawn.append(Pictures(f"labels_{split}_{row}", [picture], name, [f"{name} with its label map"]))
        if len(drawn) == MAX_SAMPLES:
            break
    return drawn


def _samples(labelled: LabelledSplit) -> Iterator[int]:
    """Yields rows of images in a fixed random order: first images with a pixel of each class, then the others."""
    maps = labelled.index.label_maps
    assert maps is not None
    rows = maps.labelled().nonzero().flatten().numpy()
    order, given = np.random.default_rng(0).permutation(rows), set[int]()
    if labelled.counts is not None:
        present = labelled.counts.present[order]
        for label in np.argsort(labelled.counts.pixels, kind="stable").tolist():
            holding = order[present[:, label]].tolist()
            if holding and given.isdisjoint(holding):
                given.add(holding[0])
                yield holding[0]
    yield from (row for row in order.tolist() if row not in given)


def _draw(index: AnnotationIndex, row: int) -> bytes:
    image, maps = index.image(row), index.label_maps
    assert maps is not None
    labels = maps.read(row, (image.shape[0], image.shape[1]))
    return jpeg(draw_label_map(image, labels, maps.class_names, scale=page_scale(image.shape)))

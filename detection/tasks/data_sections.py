"""Sections of a data set's page: classes, objects per image, object sizes and anchors, splits, masks and keypoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from detection.data.check import MEDIUM, SMALL, Summary
from detection.data.index import AnnotationIndex
from detection.evaluation.candidates import mask_areas
from detection.pages.data_plots import histogram, shares, sides_and_anchors
from detection.pages.page import Block, Code, Figure, Notice, Section, Table
from detection.tasks.anchor_reach import IOUS, Reach

__all__ = [
    "anchors_section",
    "classes_section",
    "keypoints_section",
    "masks_section",
    "objects_section",
    "splits_section",
]

MAX_CLASSES = 20  # classes in a figure; the tables show all
MOST_BINS = 30
SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # pixels, edges of bins
ASPECTS = tuple(2.0**power for power in np.arange(-4, 4.01, 0.5))  # edges of bins
FULL = 0.98  # a mask that fills a larger share of its box may be the box itself
ALL_OF = "Objects that no anchor reaches, wherever they lie on its grid."
QUARTILES = (0, 0.25, 0.5, 0.75, 1)


def classes_section(summaries: Mapping[str, Summary]) -> Section:
    """Returns the section with the objects of each class and split, and the classes that a split lacks."""
    counts = {split: {name: row[0] for name, *row in summary.classes} for split, summary in summaries.items()}
    first = next((own for own in counts.values() if any(own.values())), None)
    if first is None:
        return Section("Classes", [])
    names = sorted(first, key=lambda name: -first[name])
    blocks: list[Block] = [
        Notice(f"{split} has no object of: {', '.join(missing)}.")
        for split, own in counts.items()
        if any(own.values()) and (missing := [name for name, count in own.items() if not count])
    ]
    drawn = {
        name: {split: own.get(name, 0) / max(sum(own.values()), 1) for split, own in counts.items()}
        for name in names[:MAX_CLASSES]
    }
    picked = f" The {MAX_CLASSES} largest of {len(names)}." if len(names) > MAX_CLASSES else ""
    figure = shares("classes", drawn, x_label="percent of the split's objects")
    rows = [[name, *(f"{own.get(name, 0):,}" for own in counts.values())] for name in names]
    alt = "; ".join(" ".join(row) for row in rows[:MAX_CLASSES])
    blocks.append(Figure("classes", figure, f"Share of each class in each split.{picked}", alt))
    return Section("Classes", [*blocks, Table("Objects of each class.", ["class", *counts], rows)])


def objects_section(splits: Mapping[str, AnnotationIndex]) -> Section:
    """Returns the section on objects per image, without ignored objects."""
    counts = {split: index.num_wanted().numpy() for split, index in splits.items()}
    most = max((int(own.max()) for own in counts.values()), default=0)
    if not most:
        return Section("Objects per image", [])
    step = -(-most // MOST_BINS)
    edges = np.arange(-0.5, most + step + 0.5, step).tolist()
    drawn = histogram("objects", counts, edges, x_label="objects of an image", y_label="percent of images")
    rows = [
        [split, *(f"{value:.0f}" for value in np.quantile(own, QUARTILES)), f"{own.mean():.1f}"]
        for split, own in counts.items()
    ]
    alt = "; ".join(f"{row[0]}: median {row[3]}, at most {row[5]}" for row in rows)
    header = ["split", "fewest", "a quarter", "median", "three quarters", "most", "mean"]
    return Section(
        "Objects per image",
        [
            Figure("objects", drawn, "Objects of an image, without ignored ones.", alt),
            Table(
                "Objects that images have at most: a quarter of them, half, three quarters.", header, rows, fixed=True
            ),
        ],
    )


def anchors_section(reached: Sequence[Reach], lines: Sequence[str]) -> Section:
    """Returns the section on sides and aspect ratios of objects and anchors, and objects that no anchor reaches.

    Args:
        reached: reach of the suggested anchors and, if there is a config, of its anchors.
        lines: lines of a config with the suggested anchors.
    """
    if not reached:
        return Section("Sizes and anchors", [])
    shown = reached[0]
    over = {reach.name: reach.anchors for reach in reached if reach.size == shown.size}
    drawn = sides_and_anchors("anchors", shown.sides, ~shown.missed(IOUS[1]), over)
    caption = (
        f"Width and height of the objects in images resized to {shown.size[0]} pixels (the longer side at most "
        f"{shown.size[1]}), with anchors over them; not reached means by no anchor of {shown.name} at IoU 0.7."
    )
    aspects = shown.sides[:, 1] / shown.sides[:, 0]
    spread = histogram("aspects", {"objects": aspects}, ASPECTS, x_label="height / width", y_label="percent of objects")
    all_of = [
        [reach.name, f"{reach.size[0]}, {reach.size[1]}", f"{len(reach.ious):,}", *_missed(reach)] for reach in reached
    ]
    counts = np.bincount(shown.labels, minlength=len(shown.class_names))
    of_class = [
        [shown.class_names[label], f"{counts[label]:,}", *_missed(shown, label)]
        for label in np.argsort(-counts, kind="stable").tolist()
        if counts[label]
    ]
    header = ["objects", *(f"not at IoU {iou:g}" for iou in IOUS)]
    return Section(
        "Sizes and anchors",
        [
            Figure("anchors", drawn, caption, shown.line),
            Figure("aspects", spread, "Aspects of the objects.", f"median {np.median(aspects):.2f}"),
            Table(ALL_OF, ["anchors", "sides", *header], all_of, fixed=True),
            Table(f"The same of each class, {shown.name}.", ["class", *header], of_class),
            Code("What fits these objects, as lines of a config:", lines),
        ],
    )


def splits_section(splits: Mapping[str, AnnotationIndex], summaries: Mapping[str, Summary]) -> Section:
    """Returns the section that compares splits: counts, medians, and distribution of object sizes."""
    sides = {split: index.areas[~index.ignore].sqrt().numpy() for split, index in splits.items()}
    if not splits:
        return Section("Splits compared", [])
    rows = [_split_row(split, index, summaries[split], sides[split]) for split, index in splits.items()]
    names = [
        "split",
        "images",
        "empty",
        "objects",
        "ignored",
        "per image",
        "image",
        "object",
        "small",
        "medium",
        "large",
    ]
    caption = (
        "Sizes of images and objects (root of the area) are medians in pixels; small is under "
        f"{SMALL**0.5:.0f}, large from {MEDIUM**0.5:.0f}, as shares in percent."
    )
    blocks: list[Block] = [Table(caption, names, rows, fixed=True)]
    spread = {split: own for split, own in sides.items() if len(own)}
    if spread:
        drawn = histogram(
            "sizes", spread, SIZES, x_label="root of the object's area, pixels", y_label="percent of objects"
        )
        alt = "; ".join(f"{split}: median {np.median(own):.0f}" for split, own in spread.items())
        blocks.append(Figure("sizes", drawn, "Sizes of the objects in the images as they are stored.", alt))
    return Section("Splits compared", blocks)


def _split_row(split: str, index: AnnotationIndex, summary: Summary, sides: NDArray[np.floating]) -> list[str]:
    height, width = index.sizes.to(torch.float64).quantile(0.5, dim=0).tolist()
    sized = [sum(column) for column in zip(*(sizes for _, _, _, *sizes in summary.classes), strict=True)]
    return [
        split,
        f"{len(index):,}",
        f"{summary.empty:,}",
        f"{len(index.boxes):,}",
        f"{int(index.ignore.sum()):,}",
        f"{len(sides) / len(index):.1f}",
        f"{width:.0f}x{height:.0f}",
        f"{np.median(sides):.0f}" if len(sides) else "-",
        *(f"{100 * count / max(len(sides), 1):.0f}" for count in sized),
    ]


def masks_section(splits: Mapping[str, AnnotationIndex]) -> Section:
    """Returns the section on masks: how many objects have one, and the share of its box that it fills."""
    filled, rows = dict[str, NDArray[np.floating]](), list[list[str]]()
    for split, index in splits.items():
        if "masks" not in index.fields:
            continue
        pixels = np.concatenate([mask_areas(index.stored("masks", row)) for row in range(len(index))])
        boxes = (index.boxes[:, 2:] - index.boxes[:, :2]).prod(dim=1).numpy()
        known = pixels > 0
        own = np.minimum(pixels[known] / boxes[known], 1.0)
        covered = 100 * pixels.sum() / float(index.sizes.to(torch.float64).prod(dim=1).sum())
        rows.append(
            [
                split,
                f"{known.sum():,} of {len(pixels):,}",
                f"{np.median(own):.2f}" if len(own) else "-",
                f"{(own > FULL).sum():,}",
                f"{covered:.1f}",
            ]
        )
        filled |= {split: own} if len(own) else {}
    if not filled:
        return Section("Masks", [])
    edges = np.linspace(0, 1, 21).tolist()
    drawn = histogram("masks", filled, edges, x_label="share of its box that a mask fills", y_label="percent of masks")
    names = ["split", "objects with a mask", "median share of the box", "masks that fill it", "percent of all pixels"]
    caption = "Masks that fill their box may be boxes in disguise; pixels of two masks count twice."
    alt = "; ".join(f"{row[0]}: {row[1]} have a mask" for row in rows)
    return Section(
        "Masks",
        [Figure("masks", drawn, "How much of its box each mask fills.", alt), Table(caption, names, rows, fixed=True)],
    )


def keypoints_section(splits: Mapping[str, AnnotationIndex]) -> Section:
    """Returns the section on keypoints: their flip pairs, sigmas, and how often each is visible."""
    posed = {
        split: index for split, index in splits.items() if index.keypoints is not None and "keypoints" in index.fields
    }
    if not posed:
        return Section("Keypoints", [])
    spec, header, columns = next(iter(posed.values())).keypoints, ["keypoint", "in a mirror", "sigma"], []
    assert spec is not None
    for split, index in posed.items():
        seen = np.concatenate([index.stored("keypoints", row)[..., 2] for row in range(len(index))])  # (M, J)
        header += [f"{split}: visible", f"{split}: hidden"]
        columns += [100 * (seen == visibility).mean(axis=0) for visibility in (2, 1)]
    rows = [
        [name, spec.names[spec.mirrored[place]], f"{spec.sigmas[place]:g}", *(f"{own[place]:.1f}" for own in columns)]
        for place, name in enumerate(spec.names)
    ]
    caption = "Percent of the objects that have each keypoint, visible or hidden; what it is called in a mirror image."
    return Section("Keypoints", [Table(caption, header, rows, fixed=True)])


def _missed(reach: Reach, label: int | None = None) -> list[str]:
    """Returns counts and shares of the objects, or of those of one class, that no anchor reaches."""
    own = np.ones(len(reach.ious), np.bool_) if label is None else reach.labels == label
    missed = [int((reach.missed(iou) & own).sum()) for iou in IOUS]
    return [f"{count:,} ({100 * count / max(int(own.sum()), 1):.1f} %)" for count in missed]

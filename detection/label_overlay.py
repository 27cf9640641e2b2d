"""Draws label maps: a colour for each class over the image, borders, and a legend of the classes present.

Shapes: H W height and width of an image, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detection.label_colors import VOID_COLOR, color_map
from detection.lettering import letters, letters_height, write, write_note
from detection.structures import VOID
from detection.visualize import resized

__all__ = ["draw_label_map", "label_palette", "save_labels"]

BACKGROUND = "background"  # a class that is left as it is in pictures, and black in label images
OPACITY = 0.55  # of the colours
LEGEND_HEIGHT = 0.6  # of the image, that a legend may take at most


def draw_label_map(
    image: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    class_names: Sequence[str],
    *,
    outlines: NDArray[np.integer] | None = None,
    note: str = "",
    scale: float = 1.0,
) -> NDArray[np.uint8]:
    """Returns a copy of ``image`` (H, W, 3) RGB, ``scale`` times as large, under the colours of ``labels`` (H, W).

    Borders between labels are white, and so are those between the numbers of ``outlines`` (H, W), such as segments.
    The legend names the classes from the largest share on, then void, as many as there is room for.
    Pixels of VOID are pale.
    """
    canvas = image.copy() if scale == 1 else resized(image, scale)
    size = canvas.shape[1::-1]
    shown = np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    colors = np.concatenate([label_palette(class_names), np.zeros((256 - len(class_names), 3), np.uint8)])
    colors[VOID] = VOID_COLOR
    painted = np.ones(256, np.bool_)
    painted[: len(class_names)] = [name != BACKGROUND for name in class_names]
    inside = painted[shown]
    mixed = OPACITY * colors[shown] + (1 - OPACITY) * canvas
    canvas[inside] = np.rint(mixed).astype(np.uint8)[inside]
    canvas[_borders(shown)] = 255
    if outlines is not None:
        canvas[_borders(cv2.resize(outlines.astype(np.float64), size, interpolation=cv2.INTER_NEAREST))] = 255
    _legend(canvas, labels, class_names, colors)
    if note:
        write_note(canvas, note, letters_height(canvas.shape))
    return canvas


def label_palette(class_names: Sequence[str]) -> NDArray[np.uint8]:
    """Returns the colour (K, 3) of each class: PASCAL VOC's colour map, whose black is kept for the background."""
    first = 0 if class_names and class_names[0] == BACKGROUND else 1
    return color_map()[np.arange(first, first + len(class_names)) % 256]


def save_labels(path: Path, labels: NDArray[np.uint8], class_names: Sequence[str]) -> None:
    """Writes ``labels`` (H, W) to the PNG ``path``, a palette image of these numbers.

    Raises:
        ValueError: the file can't be written.
    """
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(class_names)], palette[VOID] = label_palette(class_names), VOID_COLOR
    image = Image.fromarray(labels)
    image.putpalette(palette.tobytes())
    try:
        image.save(path)
    except OSError as error:
        raise ValueError(f"can't write the label image {path}: {error}") from error


def _borders(numbers: NDArray[np.generic] | cv2.typing.MatLike) -> NDArray[np.bool_]:
    """Returns the pixels (H, W) whose right or lower neighbour has another of ``numbers`` (H, W)."""
    values = np.asarray(numbers)
    found = np.zeros(values.shape, np.bool_)
    found[:, :-1] |= values[:, :-1] != values[:, 1:]
    found[:-1] |= values[:-1] != values[1:]
    return found


def _legend(
    canvas: NDArray[np.uint8], labels: NDArray[np.uint8], class_names: Sequence[str], colors: NDArray[np.uint8]
) -> None:
    """Writes the classes of ``labels`` with their shares at the upper left, and that of VOID below."""
    counts = np.bincount(labels.ravel(), minlength=256)
    order = [label for label in np.argsort(-counts[: len(class_names)], kind="stable").tolist() if counts[label]]
    names = dict(enumerate(class_names)) | {VOID: "void"}
    height, top = letters_height(canvas.shape), 0
    for label in [*order, *([VOID] if counts[VOID] else [])]:
        name = letters(f"{names[label]} {100 * counts[label] / labels.size:.0f} %", height)
        if top + name.shape[0] > LEGEND_HEIGHT * canvas.shape[0]:
            break
        red, green, blue = colors[label].tolist()
        write(canvas, name, (0, top, name.shape[1], top + name.shape[0]), (red, green, blue))
        top += name.shape[0]

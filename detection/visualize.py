"""Draws detections, and the ground truth in white, on an image."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from detection.evaluation.record import Record
from detection.masks import RLE, decode

__all__ = ["draw_boxes", "draw_record", "save_picture"]

WHITE = (255, 255, 255)
MAX_GROWN = 4096  # pixels of the longer side that a small image grows to
MAX_JPEG = 65_500  # pixels of a side, as libjpeg has it


def draw_record(
    image: NDArray[np.uint8], record: Record, class_names: Sequence[str], *, min_score: float = 0.5
) -> NDArray[np.uint8]:
    """A copy of ``image`` (H, W, 3) RGB with the boxes of ``record``: thin white for the ground truth, a colour per
    class for detections of at least ``min_score``, with name, score and, where it has one, mask."""
    shown = record.scores >= min_score
    masks = None if record.masks is None else [record.masks[row] for row in np.flatnonzero(shown)]
    return draw_boxes(
        image,
        record.boxes[shown],
        record.scores[shown],
        record.labels[shown],
        class_names,
        gt_boxes=record.gt_boxes,
        masks=masks,
    )


def draw_boxes(
    image: NDArray[np.uint8],
    boxes: NDArray[np.floating],
    scores: NDArray[np.floating],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    gt_boxes: NDArray[np.floating] | None = None,
    masks: Sequence[RLE] | None = None,
) -> NDArray[np.uint8]:
    """A copy of ``image`` (H, W, 3) RGB with ``boxes`` (N, 4), best first, and ``gt_boxes`` (G, 4) in thin white.

    ``masks``, one per box and of the whole image, are half transparent with an outline.  A small image grows, so that
    the labels can be read.
    """
    scale = max(1.0, min(480 / min(image.shape[:2]), MAX_GROWN / max(image.shape[:2])))
    canvas = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
    for row, rle in reversed(list(enumerate(masks or ()))):
        _fill(canvas, rle, _color(int(labels[row]), len(class_names)))
    for box in [] if gt_boxes is None else gt_boxes * scale:
        _rectangle(canvas, box, WHITE, 1)
    for row in reversed(range(len(boxes))):  # the best last, on top
        label = int(labels[row])
        color = _color(label, len(class_names))
        _rectangle(canvas, boxes[row] * scale, color, 2)
        _caption(canvas, f"{class_names[label]} {scores[row]:.2f}", boxes[row] * scale, color)
    return canvas


def save_picture(path: Path, image: NDArray[np.uint8]) -> None:
    """Writes ``image`` (H, W, 3) RGB; as .png beside ``path`` what is too long or too high for a JPEG.

    Raises:
        ValueError: the file can't be written.
    """
    if max(image.shape[:2]) > MAX_JPEG:
        path = path.with_suffix(".png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _, content = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        path.write_bytes(content.tobytes())  # cv2.imwrite would not say why it can't
    except (cv2.error, OSError) as error:
        raise ValueError(f"can't write the picture {path}: {error}") from error


def _rectangle(canvas: NDArray[np.uint8], box: NDArray[np.floating], color: tuple[int, int, int], width: int) -> None:
    x1, y1, x2, y2 = (round(float(value)) for value in box)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), color, width, cv2.LINE_AA)


def _fill(canvas: NDArray[np.uint8], rle: RLE, color: tuple[int, int, int]) -> None:
    height, width = rle["size"]
    mask = decode([rle], (height, width))[0].numpy().astype(np.uint8)
    grown = np.asarray(cv2.resize(mask, canvas.shape[1::-1], interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
    inside = grown > 0
    canvas[inside] = (canvas[inside].astype(np.uint16) + np.array(color, np.uint16)) // 2
    contours, _ = cv2.findContours(grown, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, color, 1)


def _caption(canvas: NDArray[np.uint8], text: str, box: NDArray[np.floating], color: tuple[int, int, int]) -> None:
    (width, height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
    x, y = round(float(box[0])), max(round(float(box[1])), height + baseline)
    cv2.rectangle(canvas, (x, y - height - baseline), (x + width, y), color, cv2.FILLED)
    cv2.putText(canvas, text, (x, y - baseline // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)


def _color(label: int, num_classes: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(label / max(num_classes, 1), 0.65, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)

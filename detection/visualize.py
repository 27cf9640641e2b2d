"""Draws detections, and the ground truth in white, on an image at its own size.

Lines and letters grow with the image, and letters shrink with small boxes.  Captions come last, over all boxes and
masks, where they cover no other if there is such a place, in black or white, whichever is easier to read on the colour
of their class.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from detection.keypoints import KeypointSpec
from detection.lettering import BLACK, WHITE, Color, Place, letters, letters_height, write, write_note
from detection.masks import RLE, decode

if TYPE_CHECKING:  # a predictor needs no evaluation
    from detection.evaluation.record import Record

__all__ = ["WRITTEN", "draw_boxes", "draw_record", "resized", "save_picture"]

MAX_JPEG = 65_500  # pixels of a side, as libjpeg has it
LINE = 0.003  # width, a share of the geometric mean of an image's sides
POINT = 0.006  # radius of a keypoint, likewise
SHOWN_POINT = 0.05  # least score of a keypoint that is drawn; Detectron2's
POINT_IN_BOX = 0.03  # at most so much of the longer side of its box
SIDES: dict[str, Color] = {"left": (255, 140, 0), "right": (30, 144, 255)}  # of keypoints; others have their class's
WRITTEN = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # endings that pictures can have
MAX_WEBP = 16_383


def draw_record(
    image: NDArray[np.uint8],
    record: Record,
    class_names: Sequence[str],
    *,
    min_score: float = 0.5,
    scale: float = 1.0,
) -> NDArray[np.uint8]:
    """Returns a copy of ``image`` (H, W, 3) RGB, ``scale`` times as large, with the boxes of ``record``.

    Boxes of the ground truth are thin and white.  Detections of at least ``min_score`` have a colour per class, with
    name, score and, if present, mask and keypoints.
    """
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
        keypoints=None if record.keypoints is None else record.keypoints[shown],
        keypoint_spec=record.keypoint_spec,
        scale=scale,
    )


def draw_boxes(
    image: NDArray[np.uint8],
    boxes: NDArray[np.floating],
    scores: NDArray[np.floating] | None,
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    gt_boxes: NDArray[np.floating] | None = None,
    masks: Sequence[RLE] | None = None,
    keypoints: NDArray[np.floating] | None = None,
    keypoint_spec: KeypointSpec | None = None,
    note: str = "",
    scale: float = 1.0,
) -> NDArray[np.uint8]:
    """Returns a copy of ``image`` (H, W, 3) RGB with ``boxes`` (N, 4), best first, and ``gt_boxes`` (G, 4) in white.

    ``scores`` None draws labels, which have names alone.  ``masks``, one per box and of the whole image, are half
    transparent with an outline.  Of ``keypoints`` (N, J, 3), x, y and visibility or score, those of at most 0.05 are
    left out, and ``keypoint_spec`` says which are joined; left ones are orange, right ones blue.  A ``note`` about the
    whole stands at the lower left, unless the image is too small for it.  All is drawn at ``scale`` times the image's
    size.
    """
    canvas = image.copy() if scale == 1 else resized(image, scale)
    side = math.sqrt(canvas.shape[0] * canvas.shape[1])
    width, boxes = max(1, round(LINE * side)), boxes * scale
    colors = [_color(int(label), len(class_names)) for label in labels]
    for row, rle in reversed(list(enumerate(masks or ()))):
        _fill(canvas, rle, colors[row])
    for box in () if gt_boxes is None else gt_boxes * scale:
        _rectangle(canvas, box, WHITE, max(1, width // 2))
    for row in reversed(range(len(boxes))):  # the best last, on top
        _rectangle(canvas, boxes[row], colors[row], width + (width == 1))
    for row in reversed(range(0 if keypoints is None else len(keypoints))):
        assert keypoints is not None
        points = keypoints[row] * np.array([scale, scale, 1])
        radius = min(POINT * side, POINT_IN_BOX * float((boxes[row, 2:] - boxes[row, :2]).max()))
        _skeleton(canvas, points, colors[row], keypoint_spec, max(1, round(radius)))
    height = letters_height(canvas.shape, boxes)
    said = [""] * len(boxes) if scores is None else [f" {score:.2f}" for score in scores]
    captions = [letters(f"{class_names[label]}{score}", height) for label, score in zip(labels, said, strict=True)]
    places = _places(boxes, [line.shape for line in captions], (canvas.shape[0], canvas.shape[1]))
    for row in reversed(range(len(boxes))):
        write(canvas, captions[row], places[row], colors[row])
    if note:
        write_note(canvas, note, height)
    return canvas


def save_picture(path: Path, image: NDArray[np.uint8]) -> Path:
    """Writes ``image`` (H, W, 3) RGB and returns its path: ``path``.png where it is too long or high for the format.

    Raises:
        ValueError: the file can't be written.
    """
    limit = {".jpg": MAX_JPEG, ".jpeg": MAX_JPEG, ".webp": MAX_WEBP}.get(path.suffix.lower(), math.inf)
    if max(image.shape[:2]) > limit:
        path = path.with_name(f"{path.name}.png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _, content = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        path.write_bytes(content.tobytes())  # cv2.imwrite would not say why it can't
    except (cv2.error, OSError) as error:
        raise ValueError(f"can't write the picture {path}: {error}") from error
    return path


def resized(image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """Returns ``image`` (H, W, 3), ``scale`` times as large."""
    method = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return np.asarray(cv2.resize(image, size, interpolation=method), dtype=np.uint8)


def _rectangle(canvas: NDArray[np.uint8], box: NDArray[np.floating], color: Color, width: int) -> None:
    x1, y1, x2, y2 = (round(float(value)) for value in box)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), color, width, cv2.LINE_AA)


def _skeleton(
    canvas: NDArray[np.uint8], points: NDArray[np.floating], color: Color, spec: KeypointSpec | None, radius: int
) -> None:
    """Draws ``points`` (J, 3) of one object, joined as ``spec`` says, with a dark border that any ground shows."""
    sides = [""] * len(points) if spec is None else spec.sides
    colors = [SIDES.get(side, color) for side in sides]
    # A pixel's number is that of its corner, and OpenCV draws at middles.
    places = [(round(float(x) - 0.5), round(float(y) - 0.5)) for x, y, _ in points]
    shown = [bool(third > SHOWN_POINT) for third in points[:, 2]]
    edges = [] if spec is None else [edge for edge in spec.edges if all(shown[end] for end in edge)]
    for border in (2, 0):
        for first, last in edges:
            one_side = {sides[first], sides[last]} - {""}
            own = SIDES.get(one_side.pop(), color) if len(one_side) == 1 else color
            drawn = BLACK if border else own
            cv2.line(canvas, places[first], places[last], drawn, max(1, radius - 1) + border, cv2.LINE_AA)
    for place, own in ((place, own) for place, own, seen in zip(places, colors, shown, strict=True) if seen):
        cv2.circle(canvas, place, radius + 1, BLACK, -1, cv2.LINE_AA)
        cv2.circle(canvas, place, radius, own, -1, cv2.LINE_AA)


def _fill(canvas: NDArray[np.uint8], rle: RLE, color: Color) -> None:
    height, width = rle["size"]
    mask = decode([rle], (height, width))[0].numpy().astype(np.uint8)
    if mask.shape != canvas.shape[:2]:
        mask = np.asarray(cv2.resize(mask, canvas.shape[1::-1], interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
    inside = mask > 0
    canvas[inside] = (canvas[inside].astype(np.uint16) + np.array(color, np.uint16)) // 2
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, color, 1)


def _places(boxes: NDArray[np.floating], sizes: Sequence[tuple[int, ...]], image: tuple[int, int]) -> list[Place]:
    """Returns where the caption of each box lies: over it, in it or under it, the first that covers no better one's."""
    taken: list[Place] = []
    for (x1, y1, _, y2), (height, width) in zip(boxes.round().astype(int).tolist(), sizes, strict=True):
        left = max(0, min(x1, image[1] - width))
        tops = [top for top in (y1 - height, y1, y2) if 0 <= top <= image[0] - height] or [max(0, y1 - height)]
        options = [(left, top, left + width, top + height) for top in tops]
        taken.append(next((place for place in options if not any(_meet(place, other) for other in taken)), options[0]))
    return taken


def _meet(one: Place, other: Place) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _color(label: int, num_classes: int) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(label / max(num_classes, 1), 0.65, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)

"""Draws the first batch of a training as the network sees it, as one picture for people to check."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from detection.data.dataset import Batch
from detection.engine.distributed import is_main
from detection.keypoints import KeypointSpec
from detection.label_overlay import draw_label_map
from detection.structures import Target
from detection.tasks.label_pictures import draw_labels
from detection.visualize import save_picture

__all__ = ["draw_batch", "drawing_first"]

MAX_IMAGES = 16
WIDTH = 1920  # approximate width of the picture, pixels
TILE = 640  # longer side of an image at most, pixels
PADDING = (74, 58, 110)  # colour of padding
GAP = 4  # gap between images, pixels


def drawing_first(
    load: Callable[..., Iterable[Batch]],
    path: Path,
    class_names: Sequence[str],
    *,
    say: Callable[[str], None],
    keypoints: KeypointSpec | None = None,
    label_names: Sequence[str] = (),
) -> Callable[..., Iterable[Batch]]:
    """Wraps ``load`` so that the main process also draws the first batch of a new run to ``path``.

    ``label_names`` are the class names of the label maps, if targets have any.
    The batches do not change, and no random numbers are used.
    """

    draw = partial(draw_batch, class_names=class_names, keypoints=keypoints, label_names=label_names)

    def load_and_draw(*, start: int, **options: object) -> Iterable[Batch]:
        batches = load(start=start, **options)
        return map(_Once(path, draw, say), batches) if start == 0 and is_main() else batches

    return load_and_draw


class _Once:
    """Draws the first batch that is iterated."""

    def __init__(self, path: Path, draw: Callable[[Batch], NDArray[np.uint8]], say: Callable[[str], None]) -> None:
        self.path, self.draw, self.say = path, draw, say
        self.done = False

    def __call__(self, batch: Batch) -> Batch:
        if not self.done:
            self.done = True
            try:
                save_picture(self.path, self.draw(batch))
            except ValueError as error:  # a picture must not end a run
                self.say(f"warning: {error}")
        return batch


def draw_batch(
    batch: Batch,
    class_names: Sequence[str],
    keypoints: KeypointSpec | None = None,
    label_names: Sequence[str] = (),
) -> NDArray[np.uint8]:
    """Returns at most 16 images of ``batch`` in a grid, with their targets and lines between ``keypoints``.

    Ignored regions are hatched; padding is violet.  ``label_names`` are the classes of label maps.
    """
    count = min(len(batch.images), MAX_IMAGES)
    columns = math.ceil(math.sqrt(count))
    height, width = batch.images.pixels.shape[-2:]
    scale = min(TILE, WIDTH // columns) / max(height, width)
    tile_height, tile_width = (max(1, round(side * scale)) for side in (height, width))
    rows = -(-count // columns)
    grid = np.full((rows * (tile_height + GAP), columns * (tile_width + GAP), 3), 255, np.uint8)
    for number in range(count):
        image, target = _shown(batch, number)
        if target.label_map is not None:
            image = draw_label_map(image, target.label_map.numpy(), label_names)
        drawn = draw_labels(image, target, class_names, keypoints=keypoints, scale=scale)
        y, x = (number // columns) * (tile_height + GAP), (number % columns) * (tile_width + GAP)
        grid[y : y + tile_height, x : x + tile_width] = cv2.resize(
            drawn, (tile_width, tile_height), interpolation=cv2.INTER_AREA
        )
    return grid


def _shown(batch: Batch, number: int) -> tuple[NDArray[np.uint8], Target]:
    """Returns image ``number``, padded as in the batch, and its target."""
    image = batch.images.pixels[number].permute(1, 2, 0).numpy().copy()
    height, width = batch.images.sizes[number].tolist()
    image[height:], image[:, width:] = PADDING, PADDING
    targets, valid = batch.targets, batch.targets.valid[number]
    masks = None
    if targets.masks is not None and targets.mask_rows is not None:
        masks = targets.masks[targets.mask_rows[number][valid]]
    own = Target(
        boxes=targets.boxes[number][valid],
        labels=targets.labels[number][valid],
        ignore=targets.ignore[number][valid],
        masks=masks,
        keypoints=None if targets.keypoints is None else targets.keypoints[number][valid],
        label_map=None if targets.label_maps is None else targets.label_maps[number],
    )
    return image, own

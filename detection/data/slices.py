"""Training on windows of large images, cut in the same way as in testing (detection/windows.py).

Shapes: N images, W windows of all of them, G objects of an image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detection.boxes import areas, clip
from detection.data.index import AnnotationIndex
from detection.data.transforms import MIN_SIDE
from detection.fields.table import carried
from detection.structures import Target
from detection.windows import Window, windows

__all__ = ["Slices", "cut", "cut_index"]


@dataclass(frozen=True, slots=True)
class Slices:
    """The windows of the images of an index.

    Attributes:
        images: (W,) int64, row of each window's image.
        corners: (W, 2) int64 top, left.
        sizes: (W, 2) int64 height, width.
        wanted: (W,) int64, number of objects that are not ignored; with label maps 1 if the image has one.
        visible: fraction of an object's box that a window must show for the object to count.
        empty: upper limit of the fraction of windows without an object in an epoch.
    """

    images: Tensor
    corners: Tensor
    sizes: Tensor
    wanted: Tensor
    visible: float
    empty: float

    def window(self, number: int) -> Window:
        """Returns the window ``number``."""
        (top, left), (height, width) = self.corners[number].tolist(), self.sizes[number].tolist()
        return Window((top, left), (height, width))

    def of_images(self, rows: Tensor, repeats: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the windows (V,) of the images ``rows`` (R,), and how often (V,) each occurs in an epoch.

        A window with an object occurs as often as its image in ``repeats`` (R,), or once.  Windows without an object
        are sampled anew for each epoch, so that they make up at most the fraction ``empty`` of it.
        """
        factors = torch.zeros(int(self.images.max()) + 1)
        factors[rows] = torch.ones(len(rows)) if repeats is None else repeats
        factors = factors[self.images]
        full = float(factors[self.wanted > 0].sum())
        without = float(factors[self.wanted == 0].sum())
        if full and without:
            rate = min(1.0, self.empty / (1 - self.empty) * full / without)
            factors = torch.where(self.wanted == 0, factors * rate, factors)
        numbers = (factors > 0).nonzero().flatten()
        return numbers, factors[numbers]


def cut_index(
    index: AnnotationIndex, *, side: int, overlap: float, visible: float, empty: float, whole: bool
) -> Slices:
    """Returns the windows of all images of ``index``.

    Args:
        index: images and objects.
        side: side of a window, pixels of the stored image.
        overlap: smallest overlap of neighbouring windows, as a fraction of the side.
        visible: fraction of an object's box that a window must show for the object to count there.
        empty: upper limit of the fraction of windows without an object in an epoch.
        whole: add the whole image as a further window if it has several.
    """
    images, shown, wanted = list[int](), list[Window](), list[int]()
    labelled = None if index.label_maps is None else index.label_maps.labelled()
    for row, (height, width) in enumerate(index.sizes.tolist()):
        found, objects = windows((height, width), side, overlap), index.objects(row)
        boxes = index.boxes[objects][~index.ignore[objects]]
        if whole and len(found) > 1:
            found.append(Window((0, 0), (height, width)))
        images += [row] * len(found)
        shown += found
        if labelled is None:
            wanted += [int((_share(boxes, window) >= max(visible, 1e-6)).sum()) for window in found]
        else:
            wanted += [int(labelled[row])] * len(found)
    return Slices(
        torch.tensor(images, dtype=torch.int64),
        torch.tensor([window.corner for window in shown], dtype=torch.int64).reshape(-1, 2),
        torch.tensor([window.size for window in shown], dtype=torch.int64).reshape(-1, 2),
        torch.tensor(wanted, dtype=torch.int64),
        visible,
        empty,
    )


def cut(
    image: NDArray[np.uint8], target: Target, window: Window, *, visible: float
) -> tuple[NDArray[np.uint8], Target]:
    """Returns the part of an image (H, W, 3) in ``window``, and its objects, in pixels of the window.

    Boxes, fields and the label map are cut.  An object is ignored (neither positive nor background) if the window shows
    less than the fraction ``visible`` of its box.  It is dropped if less than a pixel of it, or nothing of a field that
    it had (its mask), is left.
    """
    rows, columns = window.slices
    (top, left), size = window.corner, (image.shape[0], image.shape[1])
    shares = _share(target.boxes, window)
    boxes = clip(target.boxes - target.boxes.new_tensor([left, top, left, top]), window.size)
    moved, kept = dict[str, Tensor](), ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(dim=1) | (shares >= 1)
    for name, field, values in carried(target):
        moved[name], left_over = field.place(values, size, size, window.corner, window.size)
        kept &= left_over
    if target.label_map is not None:
        moved["label_map"] = target.label_map[rows, columns]
    ignore = target.ignore | (shares < visible)
    return image[rows, columns], replace(target, boxes=boxes, ignore=ignore, **moved)[kept]


def _share(boxes: Tensor, window: Window) -> Tensor:
    """Returns the fraction (G,) of each of ``boxes`` (G, 4), in pixels of the image, that ``window`` shows."""
    (top, left), sizes = window.corner, areas(boxes)
    shown = clip(boxes - boxes.new_tensor([left, top, left, top]), window.size)
    return torch.where(sizes > 0, areas(shown) / sizes.clamp(min=torch.finfo(sizes.dtype).tiny), 0.0)

"""Sliced inference: a detector runs on overlapping windows of an image and on the whole image; detections are merged.

Window borders cut objects.  By the rule "ios" a detection that touches a border inside the image counts as cut.  Whole
detections rank before cut ones, whatever their scores, and a cut one is removed if it shares half of the smaller area
with a kept one (IoS, intersection over the smaller area).  Whole detections go through NMS by IoU as usual, so
neighbours in a crowd stay.

Source: Akyon et al. 2022, "Slicing Aided Hyper Inference and Fine-tuning for Small Object Detection" (SAHI), section 3:
windows, the whole image beside them, and both measures of overlap.
Shapes: H W height and width of an image, D detections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from detection.boxes import areas, clip, intersection
from detection.model.postprocess import rescale
from detection.structures import Detections, ImageBatch
from detection.windows import Window, windows

__all__ = ["Cutting", "Merge", "Sliced", "merge_slices"]

Merge = Literal["ios", "nms"]
Size = tuple[int, int]

SHARED = 0.5  # least IoS at which a cut detection is removed; SAHI's default
BORDER = 0.01  # of a window's side: a box that ends this near to it touches it, as boxes are no more exact
VIEWS = 8  # windows of a batch


@dataclass(frozen=True, slots=True)
class Cutting:
    """Settings by which images are cut and their detections merged.

    Attributes:
        side: of a window, pixels of the image.
        overlap: share of a side that neighbours have in common, at least.
        whole: also detect in the whole image, for objects larger than a window.
        merge: "ios" as described at the top of the file; "nms": NMS of all detections by IoU.
        nms_iou: IoU above which the worse of two boxes of a class is removed.
    """

    side: int
    overlap: float = 0.2
    whole: bool = True
    merge: Merge = "ios"
    nms_iou: float = 0.3


class Sliced(nn.Module):
    """Detects objects in large images by windows.

    Args:
        detect: detections of a batch; an Architecture, a Tester, or a function with the same call.
        cutting: how images are cut and detections merged.
        fit: maps the size of a view to the (height, width) at which ``detect`` takes it.
    """

    def __init__(
        self, detect: Callable[[ImageBatch], list[Detections]], *, cutting: Cutting, fit: Callable[[Size], Size]
    ) -> None:
        super().__init__()
        self.detect, self.cutting, self.fit = detect, cutting, fit

    def forward(self, images: ImageBatch) -> list[Detections]:
        """Returns the detections of each image, best first and on the CPU, in pixels of ``images``, at full size."""
        return [
            self._find(pixels[:, :height, :width])
            for pixels, (height, width) in zip(images.pixels, images.size_list(), strict=True)
        ]

    def _find(self, image: Tensor) -> Detections:
        """Returns the detections of one image (3, H, W)."""
        size = image.shape[1], image.shape[2]
        views = windows(size, self.cutting.side, self.cutting.overlap)
        parts = [views[start : start + VIEWS] for start in range(0, len(views), VIEWS)]
        if self.cutting.whole and len(views) > 1:
            parts.append([Window((0, 0), size)])  # by itself: no batch is padded
        found, cut = list[Detections](), list[Tensor]()
        for part in parts:
            shown = [self._view(image, view) for view in part]
            for view, pixels, seen in zip(part, shown, self.detect(ImageBatch.from_images(shown)), strict=True):
                own = rescale(seen.to("cpu"), (pixels.shape[1], pixels.shape[2]), view.size)
                cut.append(_is_cut(own.boxes, view, size))
                found.append(_on_image(own, view, size))
        first, *others = found
        for other in others:
            first = first.joined(other)
        return merge_slices(first, torch.cat(cut), rule=self.cutting.merge, nms_iou=self.cutting.nms_iou)

    def _view(self, image: Tensor, view: Window) -> Tensor:
        """Returns the pixels of a window (3, h, w), resized as whole images are in a plain test: bilinear."""
        rows, columns = view.slices
        pixels, size = image[:, rows, columns], self.fit(view.size)
        if size == view.size:
            return pixels
        resized = F.interpolate(pixels[None].float(), size=size, mode="bilinear", align_corners=False)
        return resized[0].round().to(torch.uint8)


def _on_image(found: Detections, view: Window, size: Size) -> Detections:
    """Converts ``found`` from pixels of the ``view`` to those of its image of ``size``."""
    top, left = view.corner
    boxes, keypoints = clip(found.boxes + found.boxes.new_tensor([left, top, left, top]), size), found.keypoints
    if keypoints is not None:
        keypoints = keypoints + keypoints.new_tensor([left, top, 0])
    return replace(found, boxes=boxes, keypoints=keypoints)


def _is_cut(boxes: Tensor, view: Window, size: Size) -> Tensor:
    """Tells (D,) which of ``boxes`` (D, 4), in pixels of the ``view``, end at a border of it inside the image."""
    (top, left), (height, width) = view.corner, view.size
    x1, y1, x2, y2 = boxes.unbind(1)
    near_x, near_y = BORDER * width, BORDER * height
    return (
        ((x1 <= near_x) & (left > 0))
        | ((y1 <= near_y) & (top > 0))
        | ((x2 >= width - near_x) & (left + width < size[1]))
        | ((y2 >= height - near_y) & (top + height < size[0]))
    )


def merge_slices(found: Detections, cut: Tensor, *, rule: Merge, nms_iou: float) -> Detections:
    """Merges the detections of an image's views; returns those that stay, best first.

    Args:
        found: (D) of all views, in pixels of the image.
        cut: (D,) bool, those that a window border cuts.
        rule: "ios" or "nms", as described at the top of the file.
        nms_iou: IoU above which the worse of two boxes of a class is removed.
    """
    order = found.scores.argsort(descending=True, stable=True)
    cut = cut if rule == "ios" else torch.zeros_like(cut)
    kept = [order[:0]]
    for label in found.labels.unique():
        rows = order[found.labels[order] == label]
        rows = rows[cut[rows].to(torch.uint8).argsort(stable=True)]  # whole ones first
        kept.append(rows[_survivors(found.boxes[rows], cut[rows], nms_iou)])
    rows = torch.cat(kept)
    return found[rows[found.scores[rows].argsort(descending=True, stable=True)]]


def _survivors(boxes: Tensor, cut: Tensor, nms_iou: float) -> Tensor:
    """Returns the rows of ``boxes`` (M, 4) of one class, in the order of their rank, that no kept one suppresses.

    One row at a time is compared with those after it, so memory is that of the boxes.
    """
    sizes, alive, kept = areas(boxes), torch.ones(len(boxes), dtype=torch.bool), list[int]()
    for row in range(len(boxes)):
        if not alive[row]:
            continue
        kept.append(row)
        common = intersection(boxes[row : row + 1], boxes[row + 1 :])[0]
        union = sizes[row] + sizes[row + 1 :] - common
        smaller = torch.minimum(sizes[row], sizes[row + 1 :])
        alive[row + 1 :] &= ~((common > nms_iou * union) | (cut[row + 1 :] & (common >= SHARED * smaller)))
    return torch.tensor(kept, dtype=torch.int64)

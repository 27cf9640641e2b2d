"""Averages the probabilities of label maps over scales, flips and several networks.

Source: Chen et al. 2017, "Rethinking Atrous Convolution for Semantic Image Segmentation", section 4.1, inference.
Shapes: N images, K classes, H W height and width of an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from detection.model.semantic import pixel_logits
from detection.model.test_time.views import flip_images, resize_images
from detection.structures import Detections, ImageBatch

__all__ = ["LabelTester"]


class LabelTester(nn.Module):
    """Scores of every pixel by ``detectors``, which predict label maps of the same classes and find no objects.

    Args:
        detectors: one, or an ensemble.
        scales: shorter sides, in pixels, to which images are resized; empty: the given scale only.
        flip: also use the horizontally flipped image.
    """

    def __init__(self, detectors: Sequence[nn.Module], *, scales: Sequence[int] = (), flip: bool = False) -> None:
        super().__init__()
        self.detectors, self.scales, self.flip = nn.ModuleList(detectors), tuple(scales), flip

    def forward(self, images: ImageBatch) -> list[Detections]:
        """Returns the logarithm of the mean probabilities as ``label_scores`` of each image, at its given size."""
        sums, found = list[Tensor](), list[Detections]()
        for found in self._views(images):
            probabilities = [
                pixel_logits(_scores(image)[None], size)[0].softmax(dim=0)
                for image, size in zip(found, images.size_list(), strict=True)
            ]
            sums = [own + more for own, more in zip(sums, probabilities, strict=True)] if sums else probabilities
        views = (len(self.scales) or 1) * len(self.detectors) * (2 if self.flip else 1)
        least = torch.finfo(torch.float32).tiny  # the logarithm of 0 becomes NaN where scores are interpolated
        return [
            replace(image, label_scores=(own / views).clamp(min=least).log())
            for image, own in zip(found, sums, strict=True)
        ]

    def _views(self, images: ImageBatch) -> Iterator[list[Detections]]:
        """Yields each network's predictions for each view, flipped back."""
        for view in [resize_images(images, shorter) for shorter in self.scales] or [images]:
            for detector in self.detectors:
                yield detector(view)
                if self.flip:
                    mirrored = detector(flip_images(view))
                    yield [replace(image, label_scores=_scores(image).flip(-1)) for image in mirrored]


def _scores(found: Detections) -> Tensor:
    assert found.label_scores is not None
    return found.label_scores

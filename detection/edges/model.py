"""An edge network that takes images as they are stored, and its losses.

Shapes: N images, H W height and width, G annotators, T maps of all images.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor, nn

from backbones.extras.hed import HED
from detection.model.normalize import Normalize
from detection.padded import Regions, Targets
from detection.structures import ImageBatch

__all__ = ["EdgeDetector", "agreed"]


class EdgeDetector(nn.Module):
    """Edge probabilities of images, or the losses of the boundaries that annotators agree on.

    Args:
        network: from normalised images to edges.
        agreeing: number of annotators who must mark a pixel; all, if there are fewer.
    """

    def __init__(self, network: HED, *, agreeing: int = 3) -> None:
        super().__init__()
        self.network = network
        self.normalize = Normalize(network.backbone.input_stats)
        self.agreeing = agreeing

    @overload
    def forward(self, images: ImageBatch) -> Tensor: ...

    @overload
    def forward(self, images: ImageBatch, targets: Targets, proposals: Regions | None = None) -> dict[str, Tensor]: ...

    def forward(
        self, images: ImageBatch, targets: Targets | None = None, proposals: Regions | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Returns edge probabilities (N, 1, H, W); with ``targets``, whose masks are boundaries, the losses.

        Raises:
            ValueError: images with targets have several sizes or no boundaries; or proposals are given.
        """
        if proposals is not None:
            raise ValueError("an edge detector takes no proposals; leave data.proposals unset")
        pixels = self.normalize(images)
        if targets is None:
            return self.network.edges(pixels)
        if len(sizes := set(images.size_list())) > 1:
            raise ValueError(
                f"the images of a batch have the sizes (height, width) {sorted(sizes)}, and their padding would be "
                "trained on; set solver.accumulate to solver.images_per_step, so that batches have one image"
            )
        return self.network.losses(pixels, agreed(targets, self.agreeing))


def agreed(targets: Targets, agreeing: int) -> Tensor:
    """Returns which pixels (N, 1, H, W) at least ``agreeing`` annotators draw, or all where an image has fewer.

    Raises:
        ValueError: an image without boundaries.
    """
    annotators = targets.valid.sum(dim=1)  # (N,)
    if targets.masks is None or not annotators.all():
        raise ValueError("an image has no boundaries to train on; its card needs the format bsds")
    owners = torch.arange(len(annotators), device=annotators.device).repeat_interleave(annotators)
    drawn = targets.masks[: len(owners)].float()  # (T, H, W)
    votes = drawn.new_zeros(len(annotators), *drawn.shape[1:]).index_add(0, owners, drawn)
    needed = annotators.clamp(max=agreeing)[:, None, None]
    return (votes >= needed)[:, None].float()

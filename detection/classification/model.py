"""A classifier that takes images as they are stored, and its loss.

Shapes: N images, H W height and width, K classes.
"""

from __future__ import annotations

from typing import overload

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from backbones.classifier import Classifier
from backbones.library_classifier import LibraryClassifier
from detection.model.normalize import Normalize
from detection.padded import Regions, Targets
from detection.structures import ImageBatch

__all__ = ["ImageClassifier"]


class ImageClassifier(nn.Module):
    """Class probabilities of images, or the loss of their classes.

    Args:
        network: from normalised images to logits; it may have losses of its own beside that of its end.
        label_smoothing: share of the probability that is spread evenly over all classes (Szegedy et al. 2016,
            "Rethinking the Inception Architecture", section 7).
        mixup: alpha of the beta distribution that a batch and its mirror image are mixed by (Zhang et al. 2018,
            "mixup", section 2); 0 does not mix.
    """

    def __init__(
        self, network: Classifier | LibraryClassifier, *, label_smoothing: float = 0.0, mixup: float = 0.0
    ) -> None:
        super().__init__()
        self.network = network
        self.normalize = Normalize(network.input_stats)
        self.label_smoothing, self.mixup = label_smoothing, mixup

    @overload
    def forward(self, images: ImageBatch) -> Tensor: ...

    @overload
    def forward(self, images: ImageBatch, targets: Targets, proposals: Regions | None = None) -> dict[str, Tensor]: ...

    def forward(
        self,
        images: ImageBatch,
        targets: Targets | None = None,
        proposals: Regions | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Probabilities (N, K); with ``targets``, of which the first object of each image counts, the losses.

        Raises:
            ValueError: images of several sizes with targets, an image without an object, or with proposals, which
                nothing here can use.
        """
        if proposals is not None:
            raise ValueError("an image classifier takes no proposals; leave data.proposals unset")
        pixels = self.normalize(images)
        if targets is None:
            return self.network(pixels).float().softmax(dim=1)
        if not targets.valid[:, 0].all():
            raise ValueError("an image lost its object to data.augment; a class needs one in every image")
        if len(sizes := set(images.size_list())) > 1:
            raise ValueError(
                f"the images of a batch have the sizes (height, width) {sorted(sizes)}, and a classifier "
                "would learn their padding; end data.augment in a crop of one size, such as RandomCrop"
            )
        labels = targets.labels[:, 0]
        wanted = F.one_hot(labels, self.network.num_classes).float()
        if self.mixup > 0:
            share = self._share(images)
            pixels = share * pixels + (1 - share) * pixels.flip(0)
            wanted = share * wanted + (1 - share) * wanted.flip(0)
        return self.network.losses(pixels, wanted, self._criterion)

    def _share(self, images: ImageBatch) -> float:
        """Of each image in its mixture; drawn from the batch's own seeds, so that a run that goes on draws the same."""
        return float(np.random.default_rng(int(images.draw_seeds()[0])).beta(self.mixup, self.mixup))

    def _criterion(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)

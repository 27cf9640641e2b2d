"""A classifier for images as stored, and its loss.

Shapes: N images, H W height and width, K classes.
"""

from __future__ import annotations

from typing import Literal, overload

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from backbones.classifier import Classifier
from backbones.extras.branchynet import feature_sources
from backbones.library_classifier import LibraryClassifier
from detection.classification.mixing import Mixing, blend, cut, draw_layer, mixed_output
from detection.model.normalize import Normalize
from detection.padded import Regions, Targets
from detection.structures import ImageBatch

__all__ = ["ImageClassifier"]


class ImageClassifier(nn.Module):
    """Computes class probabilities of images, or the loss of their classes.

    Source of softmax with several classes per image: Gong et al. 2014, "Deep Convolutional Ranking for Multilabel Image
    Annotation", section 3.1.

    Args:
        network: maps normalised images to logits; may have losses besides that of its output.
        label_smoothing: share of the probability that is spread evenly over all classes (Szegedy et al. 2016,
            "Rethinking the Inception Architecture", section 7).
        mixing: how training mixes the images of a batch; None: no mixing.
        loss: "softmax", cross-entropy over the classes; "sigmoid", binary cross-entropy of each class.
        tags: images have any number of classes, those of all their objects; else one, that of the first object.

    Raises:
        ValueError: features to mix that the network lacks.
    """

    def __init__(
        self,
        network: Classifier | LibraryClassifier,
        *,
        label_smoothing: float = 0.0,
        mixing: Mixing | None = None,
        loss: Literal["softmax", "sigmoid"] = "softmax",
        tags: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.normalize = Normalize(network.input_stats)
        self.label_smoothing, self.mixing, self.loss, self.tags = label_smoothing, mixing, loss, tags
        self._mixed = _mixed_layers(network) if mixing is not None and mixing.kind == "manifold" else ()

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
        """Returns probabilities (N, K) or, with ``targets``, the losses.

        Raises:
            ValueError: images of several sizes with targets, an image without an object, or with proposals, which
                nothing here can use.
        """
        if proposals is not None:
            raise ValueError("an image classifier takes no proposals; leave data.proposals unset")
        pixels = self.normalize(images)
        if targets is None:
            logits = self.network(pixels).float()
            return logits.softmax(dim=1) if self.loss == "softmax" else logits.sigmoid()
        if not self.tags and not targets.valid[:, 0].all():
            raise ValueError("an image lost its object to data.augment; a class needs one in every image")
        if len(sizes := set(images.size_list())) > 1:
            raise ValueError(
                f"the images of a batch have the sizes (height, width) {sorted(sizes)}, and a classifier "
                "would learn their padding; end data.augment in a crop of one size, such as RandomCrop"
            )
        wanted = self._wanted(targets)
        if self.mixing is None:
            return self.network.losses(pixels, wanted, self._criterion)
        return self._losses_mixed(self.mixing, pixels, wanted, images)

    def _losses_mixed(self, mixing: Mixing, pixels: Tensor, wanted: Tensor, images: ImageBatch) -> dict[str, Tensor]:
        """Draws from the seeds of the batch, so that a resumed run draws the same values."""
        random = np.random.default_rng(int(images.draw_seeds()[0]))
        share = mixing.draw_share(random)
        if mixing.kind == "cutmix":
            pixels, share = cut(pixels, share, random)
            return self.network.losses(pixels, blend(wanted, share), self._criterion)
        name = draw_layer(self._mixed, random)
        if name is None:
            return self.network.losses(blend(pixels, share), blend(wanted, share), self._criterion)
        with mixed_output(self.network.get_submodule(name), share):
            return self.network.losses(pixels, blend(wanted, share), self._criterion)

    def _wanted(self, targets: Targets) -> Tensor:
        """Returns the target (N, K) of each class; for softmax, the row of an image with classes sums to 1."""
        num_classes = self.network.num_classes
        if not self.tags:
            return F.one_hot(targets.labels[:, 0], num_classes).float()
        shown = F.one_hot(targets.labels, num_classes) * targets.wanted[:, :, None]  # (N, G, K)
        wanted = shown.amax(dim=1).float()
        return wanted / wanted.sum(dim=1, keepdim=True).clamp(min=1) if self.loss == "softmax" else wanted

    def _criterion(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.loss == "softmax":
            return F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        smoothed = labels * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits.float(), smoothed)


def _mixed_layers(network: Classifier | LibraryClassifier) -> tuple[str, ...]:
    """Returns the modules of ``network`` that give the features of its backbone, by name.

    Raises:
        ValueError: no module computes one of them.
    """
    if isinstance(network, LibraryClassifier):
        raise ValueError(
            "manifold_mixup mixes features of a backbone, and a library's own network has none; set it to 0"
        )
    sources = feature_sources(network.backbone)
    for name in network.backbone.specs:
        if name not in sources:
            raise ValueError(
                f"no module of {type(network.backbone).__name__} returns {name}, so manifold_mixup can't mix it"
            )
    return tuple(f"backbone.{sources[name]}" for name in network.backbone.specs)

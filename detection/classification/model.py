"""A classifier that takes images as they are stored, and its loss.

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
    """Class probabilities of images, or the loss of their classes.

    Source: of softmax with several classes of an image Gong et al. 2014, "Deep Convolutional Ranking for Multilabel
    Image Annotation", section 3.1.

    Args:
        network: from normalised images to logits; it may have losses of its own beside that of its end.
        label_smoothing: share of the probability that is spread evenly over all classes (Szegedy et al. 2016,
            "Rethinking the Inception Architecture", section 7).
        mixing: how training mixes the images of a batch; None does not.
        loss: "softmax", cross-entropy over the classes; "sigmoid", binary cross-entropy of each class.
        tags: images show any number of classes, all those of their objects; else one, that of their first object.

    Raises:
        ValueError: features of a network are to be mixed that it has not.
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
        """Returns probabilities (N, K); with ``targets`` the losses.

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
        """Draws from the batch's own seeds, so that a run that goes on draws the same."""
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
        """Returns the target (N, K) of each class; a softmax's rows sum to 1, as far as images have a class."""
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
        ValueError: no module gives one of them.
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

"""A classifier that takes images as they are stored, and its loss.

Shapes: N images, H W height and width, K classes.
"""

from __future__ import annotations

from typing import overload

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from backbones.base import Backbone
from backbones.classifier import Classifier
from backbones.extras.branchynet import feature_sources
from detection.classification.mixing import Mixing, blend, cut, draw_layer, mixed_output
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
        mixing: how training mixes the images of a batch; None does not.
    """

    def __init__(self, network: Classifier, *, label_smoothing: float = 0.0, mixing: Mixing | None = None) -> None:
        super().__init__()
        self.network = network
        self.normalize = Normalize(network.backbone.input_stats)
        self.label_smoothing, self.mixing = label_smoothing, mixing
        self._mixed = _mixed_layers(network.backbone) if mixing is not None and mixing.kind == "manifold" else ()

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
        wanted = F.one_hot(labels, self.network.fc.out_features).float()
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
        with mixed_output(self.network.backbone.get_submodule(name), share):
            return self.network.losses(pixels, blend(wanted, share), self._criterion)

    def _criterion(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)


def _mixed_layers(backbone: Backbone) -> tuple[str, ...]:
    """Returns the modules that give the features of ``backbone``, by name.

    Raises:
        ValueError: no module gives one of them.
    """
    sources = feature_sources(backbone)
    for name in backbone.specs:
        if name not in sources:
            raise ValueError(f"no module of {type(backbone).__name__} returns {name}, so manifold_mixup can't mix it")
    return tuple(sources[name] for name in backbone.specs)

"""Relay back-propagation: the lowest layers learn from an auxiliary loss, and the main loss does not reach them.

Source: Shen, Lin and Huang 2016, "Relay Backpropagation for Effective Learning of Deep Convolutional Neural Networks",
section 3. Departures: one auxiliary module, of which the paper allows several, and here a small convolution, the
average and a linear layer.
Shapes: N images, C channels, H W height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from backbones.base import Backbone
from backbones.classifier import Classifier
from backbones.extras.branchynet import make_branch

__all__ = ["RelayClassifier"]


class RelayClassifier(Classifier):
    """A classifier trained by two losses, each on its own segment of layers; only the main output predicts.

    The gradient of the main loss runs from the end down to the feature ``stop``, that of the auxiliary loss from the
    feature ``auxiliary`` down to the image. The layers between the two features are in both segments. With precision
    fp16 small auxiliary gradients can vanish before the loss scale is applied; bf16 has no loss scale.

    Args:
        backbone: one whose deeper layers see the earlier ones through the feature ``stop`` only.
        num_classes: K.
        stop: a feature; None for the first.
        auxiliary: a feature after ``stop``, which the auxiliary module reads; None for the last.
        loss_weight: weight of the auxiliary loss.

    Raises:
        ValueError: ``stop`` and ``auxiliary`` are not features of the backbone, or not in this order.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        stop: str | None = None,
        auxiliary: str | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(backbone, num_classes)
        names = list(backbone.specs)
        self.stop, self.at = stop or names[0], auxiliary or names[-1]
        if not {self.stop, self.at} <= set(names) or names.index(self.stop) >= names.index(self.at):
            raise ValueError(
                f"stop must be a feature before that of auxiliary, got {self.stop} and {self.at}; the backbone has "
                f"{', '.join(names)}, more with out_features"
            )
        self.auxiliary = make_branch(backbone.specs[self.at].channels, num_classes)
        self.loss_weight = loss_weight

    def losses(
        self, images: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Returns the main and the weighted auxiliary loss, for class probabilities ``labels`` (N, K).

        Args:
            images: normalised float (N, 3, H, W).
            labels: (N, K), rows sum to 1.
            criterion: maps logits and labels, both (N, K), to a scalar.

        Raises:
            ValueError: the backbone does not make the feature of the auxiliary module from that of ``stop``.
        """
        features = self.backbone(images)
        last = features[list(self.backbone.specs)[-1]]
        main = criterion(self.fc(self.tail(self.tail.pool_whole_image(last))), labels)
        auxiliary = self.loss_weight * criterion(self.auxiliary(features[self.at]), labels)
        if features[self.stop].requires_grad and not _let_through_only(auxiliary, features[self.stop]):
            raise ValueError(
                f"{type(self.backbone).__name__} does not make {self.at} from what it returns as {self.stop}, so no "
                "gradient can be stopped there; choose one of this package's own networks"
            )
        return {"classification": main, "auxiliary": auxiliary}


def _let_through_only(loss: Tensor, feature: Tensor) -> bool:
    """Lets only the gradient of ``loss`` flow back through ``feature``; other gradients stop there.

    Returns false if ``loss`` does not depend on ``feature``.
    """
    (gradient,) = torch.autograd.grad(loss, feature, retain_graph=True, allow_unused=True)
    if gradient is None:
        return False
    scale = loss.new_zeros(())  # of ``loss`` in this pass: 1, or a factor given to its sum, or 0 if it takes no part

    def note(upstream: Tensor) -> None:
        scale.copy_(upstream)

    def replace(_: Tensor) -> Tensor:
        relayed = gradient * scale
        scale.zero_()
        return relayed

    loss.register_hook(note)
    feature.register_hook(replace)
    return True

"""A backbone as an image classifier: for pre-training, and to compare with torchvision's networks.

Shapes: N images, H W height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from backbones.base import Backbone, InputStats
from backbones.weights.load import LoadReport, load_matching, rename_torchvision

__all__ = ["Classifier", "backbone_weights"]

# Prefix of a backbone's layers in a model that holds a classifier as ``network`` -> their prefix in the backbone;
# "body." is below spatial pyramid pooling, "model." a whole network of a library.
_OF_BACKBONE = {
    "network.backbone.body.": "",
    "network.backbone.": "",
    "network.tail.": "",
    "network.model.": "trunk.",
}


class Classifier(nn.Module):
    """The backbone, its tail run on whole images, and a linear layer."""

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.tail = backbone.tail()
        self.fc = nn.Linear(self.tail.out_channels, num_classes)

    @property
    def input_stats(self) -> InputStats:
        """The normalisation of images."""
        return self.backbone.input_stats

    @property
    def num_classes(self) -> int:
        """K."""
        return self.fc.out_features

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (N, K) of normalised float images (N, 3, H, W)."""
        features = self.backbone(images)
        last = features[list(self.backbone.specs)[-1]]
        return self.fc(self.tail(self.tail.pool_whole_image(last)))

    def losses(
        self, images: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Returns the loss of normalised float images (N, 3, H, W) with class probabilities ``labels`` (N, K).

        ``criterion`` maps logits and labels, both (N, K), to a scalar.
        """
        return {"classification": criterion(self(images), labels)}

    def load_torchvision(self, state: Mapping[str, Tensor]) -> LoadReport:
        """Loads the complete state dict of torchvision's network of the same architecture.

        Raises:
            ValueError: a name is missing or left over, or a shape differs; nothing is loaded then.
        """
        return self.load(rename_torchvision(state), source="torchvision")

    def load(self, state: Mapping[str, Tensor], *, source: str) -> LoadReport:
        """Loads all weights of backbone, tail and ``fc``, named as in a backbone with its tail.

        Raises:
            ValueError: a name is missing or left over, or a shape differs; nothing is loaded then.
        """
        in_tail = tuple(f"{name}." for name, _ in self.tail.named_children())
        renamed = {}
        for name, value in state.items():
            owner = "" if name.startswith("fc.") else "tail." if name.startswith(in_tail) else "backbone."
            renamed[owner + name] = value
        return load_matching(self, renamed, source=source)


def backbone_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of backbone and tail, by the backbone's names, of a model with a classifier as ``network``.

    The result is empty for other models.
    """
    found = {name: next(filter(name.startswith, _OF_BACKBONE), None) for name in state}
    return {
        _OF_BACKBONE[prefix] + name.removeprefix(prefix): state[name]
        for name, prefix in found.items()
        if prefix is not None
    }

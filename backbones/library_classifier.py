"""A network of timm or torchvision with its own head, as an image classifier: ``timm:densenet121``.

Nothing is cut, padded or traced, so that logits are the library's, and its published weights can be tested.

Source: Szegedy et al. 2015, "Going Deeper with Convolutions", section 5: auxiliary losses have weight 0.3, and a test
drops the auxiliary classifiers.
Shapes: N images, H W height and width, K classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import get_model, list_models

from backbones.adapters.fx import AUXILIARY, fix_norms
from backbones.adapters.timm import create_timm_classifier, read_timm_weights, timm_input_stats
from backbones.adapters.torchvision import HALVES
from backbones.base import IMAGENET_RGB, InputStats, he_initialise
from backbones.weights.load import LoadReport, download_torchvision, load_matching, read_state_dict
from backbones.weights.packages import find_packaged, packaged_file

__all__ = ["AUXILIARY_WEIGHT", "LibraryClassifier", "is_of_library"]

AUXILIARY_WEIGHT = 0.3

# torchvision's networks with auxiliary classifiers; their weights come from TensorFlow, on pixels of -1..1.
_INCEPTIONS = ("googlenet", "inception_v3")


class LibraryClassifier(nn.Module):
    """The network ``model`` of a library with K classes, and in training its auxiliary classifiers.

    torchvision's GoogLeNet and Inception-v3 have auxiliary classifiers; those of Inception-v3 take images of 299 x 299.

    Args:
        name: "timm:NAME" or "torchvision:NAME", any image classifier of these libraries.
        num_classes: K.
        norm: "bn", or "frozen_bn" for fixed statistics, scale and offset; None is "frozen_bn" where there is batch
            normalisation.
        auxiliary_weight: weight of the auxiliary losses; 0 builds no auxiliary classifiers.

    Attributes:
        input_stats: the normalisation of images that the library's weights need.
        heads: names in ``model`` of the tensors whose shape depends on the number of classes.

    Raises:
        ValueError: no such network, or ``norm`` for one without batch normalisation.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        *,
        norm: Literal["bn", "frozen_bn"] | None = None,
        auxiliary_weight: float = AUXILIARY_WEIGHT,
    ) -> None:
        super().__init__()
        self.name, self.num_classes, self.auxiliary_weight = name, num_classes, auxiliary_weight
        self.model = _build(name, num_classes, auxiliary=auxiliary_weight > 0)
        self.input_stats = _stats(name, self.model)
        with torch.device("meta"):
            wider: dict[str, Tensor] = _build(name, num_classes + 1, auxiliary=auxiliary_weight > 0).state_dict()
        self.heads = {entry for entry, value in self.model.state_dict().items() if value.shape != wider[entry].shape}
        fix_norms(self.model, norm, set(), name=name)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (N, K) of normalised float images (N, 3, H, W)."""
        return self._exits(images)[0]

    def losses(
        self, images: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Returns the loss of normalised float images (N, 3, H, W) with class probabilities ``labels`` (N, K).

        In training, auxiliary classifiers add their losses; torchvision runs them in training only.
        """
        main, *auxiliary = self._exits(images)
        losses = {"classification": criterion(main, labels)}
        for number, logits in enumerate(auxiliary, start=1):
            losses[f"auxiliary{number}"] = self.auxiliary_weight * criterion(logits, labels)
        return losses

    def load_weights(self, weights: str, *, head: bool) -> LoadReport:
        """Loads "timm" or "torchvision", the published weights, those of a package, or a file with the library's names.

        Args:
            weights: the library, which downloads its own, a name in ``PACKAGES``, or the path of a file.
            head: load the head too; else it keeps its values, whatever number of classes the weights have.

        Raises:
            ValueError: the weights are unavailable or do not fit.
        """
        library, _, model_name = self.name.partition(":")
        if (packaged := find_packaged(weights, self.name)) is not None:
            weights = str(packaged_file(packaged))
        if library == "timm":
            state = read_timm_weights(model_name, weights)
        else:
            state = download_torchvision(model_name) if weights == "torchvision" else read_state_dict(weights)
        return self.load(state, source=repr(weights), head=head)

    def load(self, state: Mapping[str, Tensor], *, source: str, head: bool) -> LoadReport:
        """Loads weights by the library's names; those of auxiliary classifiers may be left over or missing.

        Args:
            state: tensors by name.
            source: origin of the weights, for error messages.
            head: load the head too.

        Raises:
            ValueError: another name is missing or unknown, or a shape differs; nothing is loaded then.
        """
        own = self.model.state_dict()
        kept = {name for name in own if name.startswith(AUXILIARY) and name not in state}
        kept |= set() if head else self.heads
        given = {name: value for name, value in state.items() if name not in kept}
        return load_matching(self.model, given | {name: own[name] for name in kept}, source=source, unused_ok=AUXILIARY)

    def _exits(self, images: Tensor) -> list[Tensor]:
        """Returns logits (N, K), each, of the head and, in training, of the auxiliary classifiers."""
        out = self.model(images)
        return [logits for logits in out if logits is not None] if isinstance(out, tuple) else [out]


def is_of_library(name: str) -> bool:
    """Returns true for a name such as "timm:densenet121"."""
    return name.partition(":")[0] in ("timm", "torchvision")


def _build(name: str, num_classes: int, *, auxiliary: bool) -> Any:
    library, _, model_name = name.partition(":")
    if library == "timm":
        return create_timm_classifier(model_name, num_classes=num_classes)
    return _torchvision(model_name, num_classes, auxiliary=auxiliary)


def _torchvision(model_name: str, num_classes: int, *, auxiliary: bool) -> nn.Module:
    known = list_models(module=models)
    if model_name not in known:
        nearest = difflib.get_close_matches(model_name, known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
        raise ValueError(f"torchvision has no image classifier {model_name!r}; {hint}")
    if model_name not in _INCEPTIONS:
        return get_model(model_name, weights=None, num_classes=num_classes)
    model = get_model(
        model_name,
        weights=None,
        num_classes=num_classes,
        aux_logits=auxiliary,
        transform_input=False,
        init_weights=False,  # takes a minute for a truncated normal distribution
    )
    he_initialise(model)
    return model


def _stats(name: str, model: Any) -> InputStats:
    library, _, model_name = name.partition(":")
    if library == "timm":
        return timm_input_stats(model.pretrained_cfg)
    return HALVES if model_name in _INCEPTIONS else IMAGENET_RGB

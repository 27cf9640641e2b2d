"""Networks of torchvision that timm lacks, as backbones: ``torchvision:googlenet``.

Source: GoogLeNet is Szegedy et al. 2015, "Going Deeper with Convolutions", with batch normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn
from torchvision.models import get_model

from backbones.adapters.fx import Stage, TracedBackbone
from backbones.base import InputStats, he_initialise
from backbones.weights.load import LoadReport, download_torchvision, read_state_dict

__all__ = ["HALVES", "TorchvisionBackbone", "create_torchvision_classifier"]

# The last inception of each stride; its maps are the four branches side by side.
_STAGES: dict[str, dict[str, Stage]] = {
    "googlenet": {
        "c1": Stage("conv1", 64),
        "c2": Stage("conv3", 192),
        "c3": Stage("inception3b", 480),
        "c4": Stage("inception4e", 832),
        "c5": Stage("inception5b", 1024),
    },
}

# torchvision's GoogLeNet was trained with TensorFlow, on pixels of -1..1
HALVES = InputStats(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5), channel_order="rgb")


class TorchvisionBackbone(TracedBackbone):
    """A network of torchvision, without its auxiliary classifiers.

    Args:
        model_name: "googlenet".
        out_features: stages to return, of c2..c5.
        norm: "bn" or "frozen_bn"; None is "frozen_bn".
        freeze_at: k freezes all layers up to c_k.
        input_stats: how the input is normalised; by default as torchvision's weights need it.

    Raises:
        ValueError: an argument is not one of the values above.
    """

    def __init__(
        self,
        model_name: str,
        *,
        out_features: Sequence[str] = ("c4",),
        norm: Literal["bn", "frozen_bn"] | None = None,
        freeze_at: int = 0,
        input_stats: InputStats = HALVES,
    ) -> None:
        super().__init__(
            create_torchvision_classifier(model_name),
            name=f"torchvision:{model_name}",
            stages=_STAGES[model_name],
            out_features=out_features,
            norm=norm,
            freeze_at=freeze_at,
            input_stats=input_stats,
        )
        self.model_name = model_name

    def load_weights(self, weights: str) -> LoadReport:
        """Loads "torchvision", its ImageNet weights, or a file with torchvision's names.

        Raises:
            ValueError: the weights are unavailable or do not fit.
        """
        state = download_torchvision(self.model_name) if weights == "torchvision" else read_state_dict(weights)
        return self.load(state, source=repr(weights))


def create_torchvision_classifier(model_name: str) -> nn.Module:
    """Returns the whole model, without its auxiliary classifiers, with random weights.

    Raises:
        ValueError: the model is not one of the backbones listed here.
    """
    if model_name not in _STAGES:
        raise ValueError(
            f"no torchvision:{model_name} here; known: {', '.join(f'torchvision:{name}' for name in _STAGES)}; "
            f"timm has most others, as timm:{model_name}"
        )
    model = get_model(model_name, weights=None, aux_logits=False, transform_input=False, init_weights=False)
    he_initialise(model)
    return model

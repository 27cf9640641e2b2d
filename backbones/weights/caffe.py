"""Renames the layers of Caffe's networks, as Detectron and Detectron2 pickle MSRA's ResNets and VGG, to ours.

Source: Detectron's converter of Caffe models (tools/pickle_caffe_blobs.py), which folds batch normalisation into a
scale and an offset, and Detectron2's copies of the same networks, which keep its statistics.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["NORM_EPS", "has_caffe_names", "rename_caffe"]

NORM_EPS = 1e-5  # added to the variance, Caffe's default

RESNET_NAME = re.compile(r"(?:res_)?(?:conv1|res([2-5])_(\d+)_branch(1|2[abc]))(_bn)?_(\w+)")
LAYERS = {  # branch -> convolution and normalisation; None is the first layer of the network
    None: ("conv1", "bn1"),
    "1": ("downsample.0", "downsample.1"),
    "2a": ("conv1", "bn1"),
    "2b": ("conv2", "bn2"),
    "2c": ("conv3", "bn3"),
}
KINDS = {
    "w": "weight",
    "b": "bias",
    "s": "weight",
    "gamma": "weight",
    "beta": "bias",
    "running_mean": "running_mean",
    "running_var": "running_var",
}
VGG_NAME = re.compile(r"conv([1-5])_(\d)_([wb])")
LINEAR_NAME = re.compile(r"(fc6|fc7|fc8|fc1000|pred)_([wb])")


def has_caffe_names(state: Mapping[str, Tensor]) -> bool:
    """Returns whether ``state`` is one of Caffe's ResNets or VGGs."""
    return "conv1_w" in state or "conv1_1_w" in state


def rename_caffe(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns ``state`` by our names, torchvision's; names of neither a ResNet nor a VGG stay as they are.

    A scale and an offset become batch normalisation of mean 0 whose variance and eps add up to 1. Our convolutions
    before batch normalisation have no bias: a bias is subtracted from the mean, which gives the same network.
    """
    vgg = _vgg_layers(state)
    renamed = {_our_name(name, vgg): value for name, value in state.items()}
    for name in [name for name in renamed if _is_norm(name) and name.endswith(".weight")]:
        norm, scale = name.removesuffix(".weight"), renamed[name]
        renamed.setdefault(f"{norm}.running_mean", torch.zeros_like(scale))
        renamed.setdefault(f"{norm}.running_var", torch.full_like(scale, 1 - NORM_EPS))
        bias = renamed.pop(f"{_convolution_before(norm)}.bias", None)
        if bias is not None:
            renamed[f"{norm}.running_mean"] = renamed[f"{norm}.running_mean"] - bias.reshape(scale.shape)
    return renamed


def _our_name(name: str, vgg: Mapping[tuple[str, str], int]) -> str:
    if match := LINEAR_NAME.fullmatch(name):
        layer = match[1] if match[1] in ("fc6", "fc7") else "fc"
        return f"{layer}.{KINDS[match[2]]}"
    if match := VGG_NAME.fullmatch(name):
        return f"features.{vgg[match[1], match[2]]}.{KINDS[match[3]]}"
    match = RESNET_NAME.fullmatch(name)
    if match is None or match[5] not in KINDS:
        return name
    block = f"layer{int(match[1]) - 1}.{match[2]}." if match[1] else ""
    return f"{block}{LAYERS[match[3]][match[4] is not None]}.{KINDS[match[5]]}"


def _vgg_layers(state: Mapping[str, Tensor]) -> dict[tuple[str, str], int]:
    """Returns the layer index of each convolution (stage, number) of a VGG; a ReLU follows each, a pool each stage."""
    places = sorted({(match[1], match[2]) for name in state if (match := VGG_NAME.fullmatch(name))})
    return {place: 2 * number + int(place[0]) - 1 for number, place in enumerate(places)}


def _is_norm(name: str) -> bool:
    return re.search(r"(^|\.)(bn\d|downsample\.1)\.\w+$", name) is not None


def _convolution_before(norm: str) -> str:
    return norm.replace("bn", "conv").replace("downsample.1", "downsample.0")

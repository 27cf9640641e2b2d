"""Weights from files and from torchvision: what they were trained with, and loading that reports every name.

Strict by default: a name that is missing, left over, or of another shape is an error unless the caller expects it.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights

from backbones.base import IMAGENET_RGB, InputStats
from backbones.weights.caffe import NORM_EPS, has_caffe_names, rename_caffe
from backbones.weights.pickles import check_torch_file, read_pickle
from backbones.weights.plain import check_plain

__all__ = [
    "SOURCES",
    "UNREADABLE",
    "LoadReport",
    "WeightsSource",
    "download_torchvision",
    "load_matching",
    "our_names",
    "read_state_dict",
    "read_torch",
    "rename_torchvision",
]

MAX_NAMES_SHOWN = 10

# Errors of torch.load and safetensors for files that are damaged, of another format, or hold more than tensors.
UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """The properties of a network that its weights silently need.

    Attributes:
        input_stats: normalisation of the images they saw.
        norm_eps: added to the variance in batch normalisation.
        stride_in: convolution of a ResNet bottleneck that halves the size.
    """

    input_stats: InputStats
    norm_eps: float
    stride_in: Literal["1x1", "3x3"]


SOURCES: dict[str, WeightsSource] = {
    "torchvision": WeightsSource(IMAGENET_RGB, norm_eps=1e-5, stride_in="3x3"),
    # The paper's released models and the VGG-16 of py-faster-rcnn
    "caffe": WeightsSource(
        InputStats(mean=(102.9801, 115.9465, 122.7717), std=(1.0, 1.0, 1.0), channel_order="bgr"),
        norm_eps=NORM_EPS,
        stride_in="1x1",
    ),
    # The same networks in Detectron2, which takes torchvision's mean
    "msra": WeightsSource(
        InputStats(mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0), channel_order="bgr"),
        norm_eps=NORM_EPS,
        stride_in="1x1",
    ),
    # The ResNeXt-101 32x8d of Detectron2
    "caffe2": WeightsSource(
        InputStats(mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395), channel_order="bgr"),
        norm_eps=NORM_EPS,
        stride_in="3x3",
    ),
    # The VGG-16 of HED: Caffe's, with the mean of its own reference model
    "hed": WeightsSource(
        InputStats(mean=(104.00699, 116.66877, 122.67892), std=(1.0, 1.0, 1.0), channel_order="bgr"),
        norm_eps=NORM_EPS,
        stride_in="1x1",
    ),
}


@dataclass(frozen=True, slots=True)
class Mismatch:
    """An entry whose shape in the weights is not the module's."""

    name: str
    module_shape: tuple[int, ...]
    weights_shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} (module {self.module_shape}, weights {self.weights_shape})"


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The names of a module and of its weights, by the outcome of loading.

    Attributes:
        loaded: in both, of equal shape.
        missing: in the module only.
        unused: in the weights only.
        mismatched: in both, of different shapes.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]

    def __str__(self) -> str:
        lines = [f"loaded: {len(self.loaded)}"]
        for title in ("missing", "unused", "mismatched"):
            entries = [str(entry) for entry in getattr(self, title)]
            shown = ", ".join(entries[:MAX_NAMES_SHOWN])
            more = f", and {len(entries) - MAX_NAMES_SHOWN} more" if len(entries) > MAX_NAMES_SHOWN else ""
            lines.append(f"{title}: {len(entries)}" + (f": {shown}{more}" if entries else ""))
        return "\n".join(lines)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of a .safetensors file, of one by torch.save, or the arrays of a pickle (.pkl).

    They may lie under "state_dict" or "model". In a pickle, a pair of arrays at NAME is NAME_w and NAME_b.

    Raises:
        ValueError: no such file, one that cannot be read safely, or one that holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no weights file {str(path)!r}; give the path of a .pth, .pt, .pkl or .safetensors file")
    try:
        content: Any = _read(path)
    except UNREADABLE as error:
        raise ValueError(
            f"cannot read weights from {str(path)!r}; it is damaged or holds more than tensors: {error}"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ValueError(f"{str(path)!r} must hold a mapping of names to tensors, got a {type(content).__name__}")
    content = _with_tensors(content)
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"{str(path)!r} must map names to tensors, got a {type(value).__name__} at {name!r}")
    return content


def read_torch(path: Path) -> Any:
    """Reads what torch.save wrote into ``path``: dense tensors, numbers, texts, and containers of them.

    Raises:
        UNREADABLE: the file is damaged, holds something else, or would take unbounded time or memory.
    """
    check_torch_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    check_plain(content, path.stat().st_size)
    return content


def download_torchvision(name: str) -> dict[str, Tensor]:
    """Returns the state dict that torchvision trained on ImageNet (IMAGENET1K_V1), from its cache or the network.

    Raises:
        ValueError: torchvision has no such model, cannot be reached, or sent something with another hash.
    """
    try:
        entry = get_model_weights(name)["IMAGENET1K_V1"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"torchvision has no ImageNet weights for {name!r}; give a file's path as weights") from error
    try:
        return entry.get_state_dict(weights_only=True, check_hash=True)
    except UNREADABLE as error:
        raise ValueError(
            f"cannot get the weights of {name} from {entry.url}: {error}; "
            "download the file by other means and give its path as weights"
        ) from error


def rename_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames torchvision's layers: VGG's linear layers are fc6 and fc7, the last layer of any network is fc."""
    return {_our_name(name): value for name, value in state.items()}


def our_names(state: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """Renames ``state`` from torchvision's or Caffe's names to ours.

    Raises:
        ValueError: Caffe's names, but ``source`` (a key of ``SOURCES``) says that torchvision trained it.
    """
    if not has_caffe_names(state):
        return rename_torchvision(state)
    if source == "torchvision":
        raise ValueError(
            "the weights have Caffe's names; set backbone.weights_source to 'msra' (ResNet) or 'caffe' (VGG)"
        )
    return rename_caffe(state)


def load_matching(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    unused_ok: tuple[str, ...] = (),
    missing_ok: tuple[str, ...] = (),
) -> LoadReport:
    """Loads ``state`` into ``module`` and returns the outcome of every name, the allowed ones included.

    Step counters of batch normalisation (``num_batches_tracked``) are loaded where both sides have them and are never
    reported.

    Args:
        module: receives the values; unchanged if an error is raised.
        state: tensors by the module's names.
        source: where ``state`` comes from, for the error.
        unused_ok: prefixes of names that the module may lack.
        missing_ok: suffixes of names that ``state`` may lack; their values stay.

    Raises:
        ValueError: other names are missing or unused, shapes differ, or a value is infinite or not a number.
    """
    own = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    fitting = [name for name, value in own.items() if name in state and value.shape == state[name].shape]
    differing = [name for name in own if name in state and own[name].shape != state[name].shape]
    report = LoadReport(
        loaded=_reportable(fitting),
        missing=_reportable(name for name in own if name not in state),
        unused=_reportable(name for name in state if name not in own),
        mismatched=tuple(
            Mismatch(name, tuple(own[name].shape), tuple(state[name].shape)) for name in _reportable(differing)
        ),
    )
    refused = LoadReport(
        loaded=report.loaded,
        missing=tuple(name for name in report.missing if not name.endswith(missing_ok)),
        unused=tuple(name for name in report.unused if not name.startswith(unused_ok)),
        mismatched=report.mismatched,
    )
    if refused.missing or refused.unused or refused.mismatched:
        raise ValueError(
            f"the weights from {source} do not fit {type(module).__name__}; nothing was loaded. "
            f"Use the architecture and options they were trained with.\n{refused}"
        )
    valued = [name for name in fitting if not state[name].is_meta]  # on the meta device there are shapes only
    broken = {name: count for name in valued if (count := int((~state[name].isfinite()).sum()))}
    if broken:
        name, count = next(iter(broken.items()))
        raise ValueError(
            f"the weights from {source} have values that are not finite in {len(broken)} of {len(fitting)} tensors, "
            f"first {name} ({count} of {state[name].numel()} values); nothing was loaded. Take an earlier checkpoint"
        )
    module.load_state_dict({name: state[name] for name in fitting}, strict=False)
    return report


def _read(path: Path) -> Any:
    match path.suffix:
        case ".safetensors":
            return load_file(path)
        case ".pkl":
            return read_pickle(path)
        case _:
            return read_torch(path)


def _with_tensors(content: Mapping[Any, Any]) -> dict[Any, Any]:
    """Returns ``content`` with tensors in the place of arrays, and pairs of arrays under two names."""
    flat = dict[Any, Any]()
    for name, value in content.items():
        if isinstance(value, (tuple, list)) and len(value) == 2:
            flat |= {f"{name}_w": value[0], f"{name}_b": value[1]}
        else:
            flat[name] = value
    return {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in flat.items()}


def _our_name(name: str) -> str:
    for theirs, ours in (("classifier.0.", "fc6."), ("classifier.3.", "fc7."), ("classifier.6.", "fc.")):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _reportable(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the names without the step counters of batch normalisation, which have no effect at a fixed momentum."""
    return tuple(name for name in names if name.rpartition(".")[2] != "num_batches_tracked")

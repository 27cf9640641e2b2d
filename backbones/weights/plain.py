"""Checks that values read from a file are dense tensors and plain containers, no larger than the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_plain"]

PLAIN = (int, float, complex, str, bytes, bytearray, set, torch.dtype, torch.device, type(None))
MAX_DEPTH, MAX_VALUES = 50, 1_000_000
REPEATED = 10  # times the bytes of the file, where tensors share theirs


def check_plain(tree: Any, size: int) -> None:
    """Raises unless ``tree``, read from a file of ``size`` bytes, can be walked in bounded time without other code.

    Raises:
        ValueError: a container that holds itself, or more values than any has; a tensor that is sparse, conjugate, of
            another device, or larger than its own memory or the file; a value of another type.
    """
    waiting, values, room = [(tree, 0)], 0, REPEATED * size
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, Tensor):
            room -= _bytes_of(value, size)
            if room < 0:
                raise ValueError(f"its tensors have more than {REPEATED} times the bytes of the file")
        elif isinstance(value, (Mapping, list, tuple)):
            values += len(value)
            if depth > MAX_DEPTH or values > MAX_VALUES:
                raise ValueError("its containers hold themselves, or are nested or repeated without end")
            parts = (*value.keys(), *value.values()) if isinstance(value, Mapping) else value
            waiting += [(part, depth + 1) for part in parts]
        elif not isinstance(value, PLAIN):
            raise ValueError(f"it holds a {type(value).__name__}")


def _bytes_of(tensor: Tensor, size: int) -> int:
    """Returns the bytes of a dense ``tensor`` on the CPU."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise ValueError(f"it holds a tensor that is not dense: {tensor.layout}, device {tensor.device.type}")
    if tensor.is_conj() or tensor.is_neg():
        raise ValueError("it holds a tensor that is conjugate or negated without its numbers being so")
    needed, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if needed > stored or stored > size:
        raise ValueError(f"it holds a tensor of {needed} bytes in a memory of {stored}; the file has {size}")
    return needed

"""The same numbers from the same seed: only operations whose sums have a fixed order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.backends import cudnn

__all__ = ["fixed_order"]


@contextmanager
def fixed_order(enabled: bool) -> Iterator[None]:
    """Refuses, inside, operations of torch whose result depends on how threads take turns.

    The number of threads and the kind of processor still count: they decide how a sum is split up.

    Raises:
        RuntimeError: from torch, an operation has no such form on this device; it is named.
    """
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once, at its first product
    torch.use_deterministic_algorithms(True)
    cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.benchmark = before[1]

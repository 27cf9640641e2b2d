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
    """Makes torch raise for operations whose result depends on the order of threads, while the block runs.

    Results still depend on the number of threads and the processor, which decide how a sum is split.

    Raises:
        RuntimeError: from torch, with the name of an operation that has no deterministic form on this device.
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

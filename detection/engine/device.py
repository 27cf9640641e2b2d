"""The device that a program computes on, and the memory that it used."""

from __future__ import annotations

import sys
from typing import Literal

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None

__all__ = ["DeviceName", "choose_device", "peak_memory_gib"]

DeviceName = Literal["auto", "cpu", "cuda"]


def choose_device(name: DeviceName) -> torch.device:
    """Returns the device called ``name``; "auto" is CUDA where there is one.

    Raises:
        ValueError: CUDA is asked for and missing.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("device is 'cuda', but torch finds no CUDA device; set device=auto or device=cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def peak_memory_gib(device: torch.device) -> float:
    """Returns the most memory used so far, GiB: of the GPU ``device``, or of this process for the CPU.

    0 where the system does not tell, as on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if resource is None:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30

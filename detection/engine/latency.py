"""Measures the latency of detectors, and names the device."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import nn

from detection.structures import ImageBatch

__all__ = ["describe_device", "measure_latency", "percentile"]


@torch.inference_mode()
def measure_latency(
    model: nn.Module, batches: Sequence[ImageBatch], device: torch.device, *, dtype: torch.dtype, warmup: int
) -> list[float]:
    """Returns seconds for each of ``batches``, from images to detections in memory, after ``warmup`` untimed ones."""
    times = []
    for batch in [*batches[:warmup], *batches]:
        started = time.perf_counter()
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            for found in model(batch.to(device)):
                found.to("cpu")  # waits for a GPU
        times.append(time.perf_counter() - started)
    return times[-len(batches) :]


def percentile(values: Sequence[float], fraction: float) -> float:
    """Returns the value below which ``fraction`` of ``values`` lie, interpolated between neighbours."""
    return torch.tensor(values, dtype=torch.float64).quantile(fraction).item()


def describe_device(device: torch.device) -> str:
    """Returns the name of a GPU, or how many threads of the CPU work."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"

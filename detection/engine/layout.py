"""The memory layout of images and weights, chosen by timing convolutions in both on the device.

Without AVX-512, the gradient of weights over large channels-last maps takes three times what it takes over contiguous
ones; with it the two are alike, and on GPUs channels last is the faster one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from detection.model.normalize import Normalize

__all__ = ["FORMATS", "Layout", "Timing", "choose_layout", "set_layout", "time_layouts"]

Layout = Literal["channels_last", "contiguous"]
FORMATS: Mapping[Layout, torch.memory_format] = {
    "channels_last": torch.channels_last,
    "contiguous": torch.contiguous_format,
}
# Channels in and out, side of the kernel and stride of the map: those of a ResNet with a pyramid. The gradient of
# weights over large maps differs most, and more the larger they are: NEEDED of these are timed at least.
LAYERS = ((256, 64, 1, 4), (256, 64, 3, 4), (256, 256, 3, 8), (256, 256, 3, 16), (64, 64, 3, 4))
NEEDED = 2
BUDGET = 2.0  # seconds
MULTIPLY_ADDS = 8e9  # of a convolution at most, those of the second at 800 x 1067 pixels: larger maps are cut
ROUNDS = 5  # at most
SMALL = 256 * 256  # pixels of an image below which a choice is worth nothing
MARGIN = 0.9  # the contiguous layout must take less of the other one's time, so that equal ones do not alternate


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of the same convolutions, forward and backward, in both layouts."""

    channels_last: float
    contiguous: float

    @property
    def best(self) -> Layout:
        """The faster layout; channels last if the difference is small."""
        return "contiguous" if self.contiguous < MARGIN * self.channels_last else "channels_last"

    def __str__(self) -> str:
        return (
            f"convolutions take {1e3 * self.contiguous:.0f} ms contiguous, {1e3 * self.channels_last:.0f} channels last"
        )


def choose_layout(device: torch.device, dtype: torch.dtype, size: tuple[int, int]) -> tuple[Layout, Timing | None]:
    """Returns the layout for images of ``size`` (height, width), and the timing that it rests on.

    Small images are not timed: they are channels last.
    """
    if size[0] * size[1] < SMALL:
        return "channels_last", None
    timing = time_layouts(device, dtype, size)
    return timing.best, timing


def time_layouts(device: torch.device, dtype: torch.dtype, size: tuple[int, int]) -> Timing:
    """Times convolutions of maps of an image of ``size`` (height, width), computed in ``dtype``, for two seconds."""
    for layout in FORMATS:
        _seconds(LAYERS[0], layout, device, dtype, (64, 64))  # the first convolution of a process is slow
    started, longest, least = time.perf_counter(), 0.0, [dict[Layout, float]() for _ in LAYERS]
    for turn in range(ROUNDS):
        for layer, seconds in zip(LAYERS, least, strict=True):
            before = time.perf_counter()
            if all(least[:NEEDED]) and before - started + longest > BUDGET:
                break
            for layout in FORMATS:
                took = _seconds(layer, layout, device, dtype, size)
                if not turn and took < BUDGET / 8:  # the first call also chooses kernels
                    took = _seconds(layer, layout, device, dtype, size)
                seconds[layout] = min(took, seconds.get(layout, took))
            longest = max(longest, time.perf_counter() - before)
    least = [seconds for seconds in least if seconds]
    sums = {layout: sum(seconds[layout] for seconds in least) for layout in FORMATS}
    return Timing(sums["channels_last"], sums["contiguous"])


def set_layout(model: nn.Module, layout: Layout) -> None:
    """Puts the weights of ``model`` and the images that it normalises into ``layout``."""
    model.to(memory_format=FORMATS[layout])
    for module in model.modules():
        if isinstance(module, Normalize):
            module.memory_format = FORMATS[layout]


def _seconds(
    layer: tuple[int, int, int, int], layout: Layout, device: torch.device, dtype: torch.dtype, size: tuple[int, int]
) -> float:
    """Returns seconds of one convolution, forward and backward."""
    channels, out, kernel, stride = layer
    width = max(size) // stride
    height = max(1, min(min(size) // stride, round(MULTIPLY_ADDS / (channels * out * kernel**2 * width))))

    def made(*shape: int) -> Tensor:
        values = torch.ones(shape, device=device).contiguous(memory_format=FORMATS[layout])
        return values.requires_grad_()

    images, weight = made(1, channels, height, width), made(out, channels, kernel, kernel)
    with torch.enable_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        _wait(device)
        started = time.perf_counter()
        result = F.conv2d(images, weight, padding=kernel // 2)
        torch.autograd.grad(result, (images, weight), torch.ones_like(result))
        _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

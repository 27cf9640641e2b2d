"""Corruptions of test images by camera and transmission, at three strengths, to measure a detector's robustness.

Blur and noise are Gaussian, JPEG encodes and decodes the image, brightness multiplies it.  Strengths that depend on
the resolution are fractions of the image's shorter side, so that small and large images look alike.

Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
2019; of detectors, Michaelis et al., "Benchmarking Robustness in Object Detection", 2019.  The strengths are our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from detection.structures import Target

__all__ = ["CORRUPTIONS", "Corruption"]

Kind = Literal["blur", "noise", "jpeg", "brightness"]
Pixels = NDArray[np.uint8]

STRENGTHS: dict[Kind, tuple[float, float, float]] = {
    "blur": (0.0025, 0.005, 0.01),  # standard deviation, of the shorter side
    "noise": (10, 25, 50),  # standard deviation, of 255 grey levels
    "jpeg": (50, 25, 10),  # quality
    "brightness": (0.7, 0.5, 0.3),  # factor
}


@dataclass(frozen=True, slots=True)
class Corruption:
    """One change at one strength; called like an augmentation."""

    kind: Kind
    level: int  # 1..3

    @property
    def name(self) -> str:
        """The corruption's name in file names."""
        return f"{self.kind}_{self.level}"

    @property
    def strength(self) -> float:
        """The corruption's value in ``STRENGTHS``."""
        return STRENGTHS[self.kind][self.level - 1]

    def __call__(self, image: Pixels, target: Target, *, seed: Sequence[int]) -> tuple[Pixels, Target]:
        """Returns the corrupted ``image`` (H, W, 3) and the unchanged ``target``; ``seed`` fixes the noise."""
        return self.change(image, seed), target

    def change(self, image: Pixels, seed: Sequence[int]) -> Pixels:
        """Returns the corrupted ``image`` (H, W, 3), RGB."""
        match self.kind:
            case "blur":
                changed = cv2.GaussianBlur(image, (0, 0), max(self.strength * min(image.shape[:2]), 0.1))
            case "noise":
                noise = np.random.default_rng([*seed]).normal(0, self.strength, image.shape)
                changed = np.rint(image + noise).clip(0, 255)
            case "jpeg":
                options = [cv2.IMWRITE_JPEG_QUALITY, int(self.strength)]
                _, coded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
                decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
                assert decoded is not None
                changed = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
            case "brightness":
                changed = np.rint(image * self.strength)
        return np.asarray(changed, np.uint8)


CORRUPTIONS = tuple(
    Corruption(kind, level) for kind, levels in STRENGTHS.items() for level in range(1, len(levels) + 1)
)

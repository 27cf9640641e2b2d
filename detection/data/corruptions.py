"""Changes of test images that cameras and transmission make, at three strengths, to see what they cost a detector.

Blur and noise are Gaussian, JPEG is coded and decoded again, brightness is a factor.  Strengths that depend on the
resolution are fractions of the image's shorter side, so that a change looks alike in small and in large pictures.

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
        """Its name in files."""
        return f"{self.kind}_{self.level}"

    @property
    def strength(self) -> float:
        """Its value of ``STRENGTHS``."""
        return STRENGTHS[self.kind][self.level - 1]

    def __call__(self, image: Pixels, target: Target, *, seed: Sequence[int]) -> tuple[Pixels, Target]:
        """Returns ``image`` (H, W, 3) changed, and ``target`` as it is; the same ``seed`` gives the same noise."""
        return self.change(image, seed), target

    def change(self, image: Pixels, seed: Sequence[int]) -> Pixels:
        """Returns ``image`` (H, W, 3), RGB, changed."""
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

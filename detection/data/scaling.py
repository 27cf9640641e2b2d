"""albumentations' scaling transforms, with keypoints measured from pixel centres, as in its other transforms.

albumentations' scaling transforms multiply keypoint coordinates by the scale, which is right for coordinates measured
from the corner of the image.  Its flips and rotations are right for coordinates measured from the centre of the first
pixel.
"""

from __future__ import annotations

from typing import Any

import albumentations as A  # noqa: N812  # the name that its documentation uses
import numpy as np
from numpy.typing import NDArray

from detection.fields.keypoints import PIXEL_MIDDLE

__all__ = ["SCALING"]

Rows = NDArray[np.float32]  # (N, 5 or more): x, y, ...


class _FromMiddles(A.DualTransform):
    """Mixin before the class of a scaling transform; shifts keypoints from pixel centres to the corner and back."""

    def apply_to_keypoints(self, keypoints: Rows, *args: Any, **params: Any) -> Rows:
        moved = super().apply_to_keypoints(_shifted(keypoints, PIXEL_MIDDLE), *args, **params)
        return _shifted(moved, -PIXEL_MIDDLE)


class _CropAndPad(_FromMiddles, A.CropAndPad): ...


class _LongestMaxSize(_FromMiddles, A.LongestMaxSize): ...


class _RandomResizedCrop(_FromMiddles, A.RandomResizedCrop): ...


class _RandomScale(_FromMiddles, A.RandomScale): ...


class _RandomSizedBBoxSafeCrop(_FromMiddles, A.RandomSizedBBoxSafeCrop): ...


class _RandomSizedCrop(_FromMiddles, A.RandomSizedCrop): ...


class _Resize(_FromMiddles, A.Resize): ...


class _SmallestMaxSize(_FromMiddles, A.SmallestMaxSize): ...


# By name in albumentations.
SCALING: dict[str, type[A.DualTransform]] = {
    "CropAndPad": _CropAndPad,
    "LongestMaxSize": _LongestMaxSize,
    "RandomResizedCrop": _RandomResizedCrop,
    "RandomScale": _RandomScale,
    "RandomSizedBBoxSafeCrop": _RandomSizedBBoxSafeCrop,
    "RandomSizedCrop": _RandomSizedCrop,
    "Resize": _Resize,
    "SmallestMaxSize": _SmallestMaxSize,
}


def _shifted(keypoints: Rows, pixels: float) -> Rows:
    return np.concatenate([keypoints[:, :2] + np.float32(pixels), keypoints[:, 2:]], axis=1)

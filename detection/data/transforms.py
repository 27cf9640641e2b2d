"""What changes pixels, boxes and masks together: augmentation by albumentations, and the detector's resizing.

Shapes: H W height and width, M objects.
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from detection.boxes import scale
from detection.structures import Target

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks a server for its newest version
import albumentations as A  # noqa: N812  # the name that its own documentation uses

__all__ = ["Augment", "Resize"]


@dataclass(frozen=True)
class Resize:
    """Scales an image so that its shorter side is ``shorter``, unless its longer side would exceed ``longer``.

    Source: Fast R-CNN, section 4.1; py-faster-rcnn's 600 and 1000.
    """

    shorter: int
    longer: int

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) that an image of ``size`` gets."""
        factor = min(self.shorter / min(size), self.longer / max(size))
        return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))

    def __call__(self, image: NDArray[np.uint8], target: Target) -> tuple[NDArray[np.uint8], Target]:
        """The image (H, W, 3) and its target, both resized."""
        size = image.shape[0], image.shape[1]
        new_size = self.size(size)
        resized = cv2.resize(image, (new_size[1], new_size[0]), interpolation=cv2.INTER_LINEAR)
        masks = target.masks
        if masks is not None:
            rows = masks[:, None].to(torch.uint8)
            masks = torch.nn.functional.interpolate(rows, size=new_size, mode="nearest-exact")[:, 0].bool()
        return np.asarray(resized, dtype=np.uint8), replace(
            target, boxes=scale(target.boxes, size, new_size), masks=masks
        )


class Augment:
    """A pipeline of albumentations transforms, named as in albumentations.

    Args:
        steps: one {name: arguments} each, applied in order, such as {"HorizontalFlip": {"p": 0.5}}.

    Raises:
        ValueError: a transform that albumentations lacks, or arguments that it refuses.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]]) -> None:
        self._transforms = [_transform(step) for step in steps]
        moves = any(isinstance(transform, A.DualTransform) for transform in self._transforms)
        boxes = A.BboxParams(format="albumentations", label_fields=["rows"], clip=True)
        self._compose = A.Compose(list(self._transforms), bbox_params=boxes if moves else None)

    def __call__(
        self, image: NDArray[np.uint8], target: Target, *, seed: Sequence[int]
    ) -> tuple[NDArray[np.uint8], Target]:
        """The image (H, W, 3) and its target, changed together; the same ``seed`` gives the same change.

        Objects that leave the image are dropped.
        """
        if not self._transforms:
            return image, target
        # Compose would hand one seed to every transform, and all of them would draw the same numbers.
        seeds = np.random.SeedSequence(seed).generate_state(len(self._transforms) + 1)
        self._compose.set_random_seed(int(seeds[0]))
        for transform, own in zip(self._transforms, seeds[1:], strict=True):
            transform.set_random_seed(int(own))
        height, width = image.shape[:2]
        limits = np.array([width, height, width, height])
        masks: dict[str, Any] = {}
        if target.masks is not None and len(target):  # albumentations can't stack no masks
            masks = {"masks": target.masks.numpy().astype(np.uint8)}
        result = self._compose(image=image, bboxes=target.boxes.numpy() / limits, rows=np.arange(len(target)), **masks)
        return _unpack(result, target)


def _unpack(result: Mapping[str, Any], target: Target) -> tuple[NDArray[np.uint8], Target]:
    image = np.ascontiguousarray(result["image"])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"data.augment must leave images (H, W, 3) uint8, got {image.shape} {image.dtype}; "
            "the detector normalises them itself"
        )
    height, width = image.shape[:2]
    kept = torch.as_tensor(np.asarray(result["rows"], dtype=np.int64))
    boxes = np.asarray(result["bboxes"], dtype=np.float64).reshape(-1, 4) * [width, height, width, height]
    changed = replace(target[kept], boxes=torch.from_numpy(boxes.astype(np.float32)))
    if target.masks is not None:
        # Every mask comes back, also of objects that are gone.
        stacked = torch.from_numpy(np.asarray(result.get("masks", ()), dtype=np.uint8).reshape(-1, height, width))
        changed = replace(changed, masks=stacked[kept].bool())
    return image, changed


def _transform(step: Mapping[str, Any]) -> A.BasicTransform:
    if len(step) != 1:
        raise ValueError(f"an augmentation step reads {{name: arguments}}, got {dict(step)}")
    ((name, arguments),) = step.items()
    kind = getattr(A, name, None)
    if not (isinstance(kind, type) and issubclass(kind, A.BasicTransform)):
        known = [n for n in dir(A) if isinstance(getattr(A, n), type) and issubclass(getattr(A, n), A.BasicTransform)]
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"albumentations has no transform {name!r}{hint}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # an unknown argument is only warned of
            return kind(**(arguments or {}))
    except (TypeError, ValueError, NotImplementedError, UserWarning) as error:
        raise ValueError(f"augmentation {name} does not take {arguments}: {error}") from error

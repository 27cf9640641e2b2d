"""What changes pixels, boxes and masks together: augmentation by albumentations, resizing, and pasted objects.

Chance comes from a ``seed`` alone.

Shapes: H W height and width, M objects.
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import masks_to_boxes

from detection.boxes import clip, scale
from detection.structures import Target

# Importing it asks a server for its newest version unless this is set; nothing later reads the variable.
_update = os.environ.get("NO_ALBUMENTATIONS_UPDATE")
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations as A  # noqa: E402, N812  # after the variable; the name that its documentation uses

if _update is None:
    del os.environ["NO_ALBUMENTATIONS_UPDATE"]
else:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = _update

__all__ = ["Augment", "Jitter", "RandomResize", "Resize", "Scaling", "paste"]

PADDING = (124, 116, 104)  # of a canvas: ImageNet's mean colour, which normalisation makes about zero
MIN_SIDE = 1.0  # pixels


class Scaling(Protocol):
    """How an image and its target get to the detector's scale."""

    def __call__(
        self, image: NDArray[np.uint8], target: Target, *, seed: Sequence[int]
    ) -> tuple[NDArray[np.uint8], Target]: ...


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

    def __call__(
        self, image: NDArray[np.uint8], target: Target, *, seed: Sequence[int] = ()
    ) -> tuple[NDArray[np.uint8], Target]:
        """The image (H, W, 3) and its target, both resized; nothing is drawn, so ``seed`` does not matter."""
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


@dataclass(frozen=True)
class RandomResize:
    """``Resize`` with one of ``shorters``, each as likely as the others."""

    shorters: tuple[int, ...]
    longer: int

    def __call__(
        self, image: NDArray[np.uint8], target: Target, *, seed: Sequence[int]
    ) -> tuple[NDArray[np.uint8], Target]:
        """The image (H, W, 3) and its target, both resized."""
        return Resize(int(_chance(seed).choice(self.shorters)), self.longer)(image, target)


@dataclass(frozen=True)
class Jitter:
    """Large-scale jitter: a random scale, then a random crop where the image exceeds the canvas, and padding below it.

    The image is made to fit a square whose side is ``low`` to ``high`` times the canvas's.  An object goes if less than
    a pixel of its width or height is left in the canvas, or no pixel of a mask that had some.

    Args:
        size: side of the canvas, pixels.
        low, high: range of the factor, uniform.

    Source: Ghiasi et al. 2021, "Simple Copy-Paste", section 3.
    """

    size: int
    low: float
    high: float

    def __call__(
        self, image: NDArray[np.uint8], target: Target, *, seed: Sequence[int]
    ) -> tuple[NDArray[np.uint8], Target]:
        """The canvas (size, size, 3), which has the image at its top left, and its target."""
        chance = _chance(seed)
        side = self.size * chance.uniform(self.low, self.high)
        size = image.shape[0], image.shape[1]
        height, width = (max(1, round(length * side / max(size))) for length in size)
        top, left = (int(chance.integers(max(0, length - self.size) + 1)) for length in (height, width))
        resized = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
        visible = resized[top : top + self.size, left : left + self.size]
        canvas = np.empty((self.size, self.size, 3), dtype=np.uint8)
        canvas[:] = PADDING
        canvas[: visible.shape[0], : visible.shape[1]] = visible
        return canvas, self._move(target, size, (height, width), (top, left))

    def _move(self, target: Target, size: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int]) -> Target:
        """``target`` of an image of ``size`` in the canvas whose ``corner`` (y, x) lies in the ``resized`` image."""
        top, left = corner
        shown = min(self.size, resized[0]), min(self.size, resized[1])
        boxes = clip(scale(target.boxes, size, resized) - torch.tensor([left, top, left, top]), shown)
        masks, kept = None, ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(dim=1)
        if target.masks is not None:
            rows, columns = (
                ((torch.arange(shown[i]) + corner[i] + 0.5) * (size[i] / resized[i])).long() for i in (0, 1)
            )
            masks = target.masks.new_zeros(len(target), self.size, self.size)
            masks[:, : shown[0], : shown[1]] = target.masks[:, rows][:, :, columns]  # nearest, as Resize
            kept &= _pixels(masks).bool() | ~_pixels(target.masks).bool()
        return replace(target, boxes=boxes, masks=masks)[kept]


def paste(
    image: NDArray[np.uint8], target: Target, other: NDArray[np.uint8], objects: Target
) -> tuple[NDArray[np.uint8], Target]:
    """``image`` with the masked pixels of another image's ``objects`` over it, and the target with them at its end.

    They lie where they lay in ``other``, cut off at the border of ``image``.  An object that loses pixels gets a box
    that bounds the rest, and goes if nothing is left.  One whose mask is unknown stays as it is.

    Args:
        image: (H, W, 3).
        target: has masks.
        other: (H', W', 3), the image of the objects.
        objects: all have a mask of at least one pixel.

    Source: Ghiasi et al. 2021, "Simple Copy-Paste", section 3, without their blending.
    """
    assert target.masks is not None
    assert objects.masks is not None
    height, width = min(image.shape[0], other.shape[0]), min(image.shape[1], other.shape[1])
    moved = objects.masks.new_zeros(len(objects), *image.shape[:2])
    moved[:, :height, :width] = objects.masks[:, :height, :width]
    covered = moved.any(dim=0)
    pasted = image.copy()
    pixels = covered[:height, :width].numpy()
    pasted[:height, :width][pixels] = other[:height, :width][pixels]
    left, added = _with_less(target, target.masks & ~covered), _with_less(objects, moved)
    names = [field.name for field in fields(Target)]
    return pasted, Target(**{name: torch.cat([getattr(left, name), getattr(added, name)]) for name in names})


def _with_less(target: Target, masks: Tensor) -> Target:
    """``target`` with ``masks`` (M, H, W) that are parts of its own; boxes bound them where pixels were lost."""
    assert target.masks is not None
    before, after = _pixels(target.masks), _pixels(masks)
    boxes, changed = target.boxes.clone(), (after > 0) & (after < before)
    boxes[changed] = masks_to_boxes(masks[changed]) + torch.tensor([0.0, 0.0, 1.0, 1.0])  # it gives the last pixels
    return replace(target, boxes=boxes, masks=masks)[(after > 0) | (before == 0)]


def _pixels(masks: Tensor) -> Tensor:
    """How many pixels (M,) each of ``masks`` (M, H, W) has."""
    return torch.tensor([np.count_nonzero(mask) for mask in masks.numpy()], dtype=torch.int64)  # torch's sum is slow


def _chance(seed: Sequence[int]) -> np.random.Generator:
    """Random numbers that are not those of ``Augment`` with the same seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))


class Augment:
    """A pipeline of albumentations transforms, named as in albumentations.

    Args:
        steps: one {name: arguments} each, applied in order, such as {"HorizontalFlip": {"p": 0.5}}.

    Raises:
        ValueError: a transform that albumentations lacks, or arguments that it refuses.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]]) -> None:
        transforms = [_transform(step) for step in steps]
        moves = any(isinstance(transform, A.DualTransform) for transform in transforms)
        boxes = A.BboxParams(format="albumentations", label_fields=["rows"], clip=True)
        self._compose = A.Compose(list(transforms), bbox_params=boxes if moves else None)
        self._steps = tuple(steps)

    @cached_property
    def _pixels_only(self) -> A.Compose:
        # Transforms of its own: each knows from the last Compose that it is put into what becomes of its boxes.
        return A.Compose([_transform(step) for step in self._steps])

    def __call__(
        self, image: NDArray[np.uint8], target: Target, *, seed: Sequence[int]
    ) -> tuple[NDArray[np.uint8], Target]:
        """The image (H, W, 3) and its target, changed together; the same ``seed`` gives the same change.

        Objects that leave the image are dropped.
        """
        if not self._steps:
            return image, target
        self._seed(self._compose, seed)
        height, width = image.shape[:2]
        limits = np.array([width, height, width, height])
        masks: dict[str, Any] = {}
        if target.masks is not None and len(target):  # albumentations can't stack no masks
            masks = {"masks": target.masks.numpy().astype(np.uint8)}
        result = self._compose(image=image, bboxes=target.boxes.numpy() / limits, rows=np.arange(len(target)), **masks)
        return _unpack(result, target)

    def pixels(self, image: NDArray[np.uint8], *, seed: Sequence[int]) -> NDArray[np.uint8]:
        """The image (H, W, 3) as ``__call__`` changes it with this ``seed``, in half the time, since no boxes move.

        Raises:
            ValueError: a transform chooses by the boxes.
        """
        if not self._steps:
            return image
        self._seed(self._pixels_only, seed)
        try:
            return _checked(self._pixels_only(image=image))
        except KeyError as error:
            raise ValueError(f"data.augment has a transform that needs {error}, and here are only images") from error

    def _seed(self, compose: A.Compose, seed: Sequence[int]) -> None:
        # Compose would hand one seed to every transform, and all of them would draw the same numbers.
        seeds = np.random.SeedSequence(seed).generate_state(len(self._steps) + 1)
        compose.set_random_seed(int(seeds[0]))
        for transform, own in zip(compose.transforms, seeds[1:], strict=True):
            transform.set_random_seed(int(own))


def _checked(result: Mapping[str, Any]) -> NDArray[np.uint8]:
    image = np.ascontiguousarray(result["image"])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"data.augment must leave images (H, W, 3) uint8, got {image.shape} {image.dtype}; "
            "the model normalises them itself"
        )
    return image


def _unpack(result: Mapping[str, Any], target: Target) -> tuple[NDArray[np.uint8], Target]:
    image = _checked(result)
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

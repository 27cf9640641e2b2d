"""Transforms of images together with boxes and their fields: augmentation by albumentations, and resizing.

Randomness depends only on a ``seed``.

Shapes: H W height and width, M objects.
"""

from __future__ import annotations

import difflib
import os
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detection.boxes import clip, scale
from detection.data.label_pixels import nearest, on_canvas
from detection.fields.table import FIELDS, Field, carried
from detection.structures import VOID, Target

# Without this, importing albumentations asks a server for its newest version; nothing later reads the variable.
_update = os.environ.get("NO_ALBUMENTATIONS_UPDATE")
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations as A  # noqa: E402, N812  # after the variable; the name that its documentation uses

if _update is None:
    del os.environ["NO_ALBUMENTATIONS_UPDATE"]
else:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = _update

from detection.data.scaling import SCALING  # noqa: E402  # which imports it too

__all__ = ["Augment", "Change", "Jitter", "RandomResize", "Resize", "full_size"]

LABEL_MAP = "label_map"
# albumentations' transforms that use a mask for something other than labels.
NOT_OF_LABELS = (A.Morphological, A.MaskDropout, A.OverlayElements, A.Mosaic)
PADDING = (124, 116, 104)  # colour of padding: ImageNet's mean, about zero after normalisation
MIN_SIDE = 1.0  # pixels


class Change(Protocol):
    """A joint change of an image and its target: augmentation, resizing or corruption."""

    def __call__(
        self, image: NDArray[np.uint8], target: Target, *, seed: Sequence[int]
    ) -> tuple[NDArray[np.uint8], Target]: ...


@dataclass(frozen=True)
class Resize:
    """Scales an image to the shorter side ``shorter``, or less where its longer side would exceed ``longer``.

    Source: Fast R-CNN, section 4.1; py-faster-rcnn's 600 and 1000.
    """

    shorter: int
    longer: int

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the (height, width) of a resized image of ``size``."""
        factor = min(self.shorter / min(size), self.longer / max(size))
        return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))

    def chosen(self, seed: Sequence[int]) -> Resize:
        """Returns itself, as nothing is random."""
        return self

    def __call__(
        self,
        image: NDArray[np.uint8],
        target: Target,
        *,
        seed: Sequence[int] = (),
        out: NDArray[np.uint8] | None = None,
    ) -> tuple[NDArray[np.uint8], Target]:
        """Resizes the image (H, W, 3), into ``out`` if given, and its target; ``seed`` is not used."""
        size = image.shape[0], image.shape[1]
        new_size = self.size(size)
        resized = cv2.resize(image, (new_size[1], new_size[0]), dst=out, interpolation=cv2.INTER_LINEAR)
        moved = {name: field.resize(values, size, new_size) for name, field, values in carried(target)}
        if target.label_map is not None:
            moved["label_map"] = nearest(target.label_map, new_size)
        target = replace(target, boxes=scale(target.boxes, size, new_size), **moved)
        return np.asarray(resized, dtype=np.uint8), target


def full_size(
    image: NDArray[np.uint8], target: Target, *, seed: Sequence[int] = ()
) -> tuple[NDArray[np.uint8], Target]:
    """Returns a copy of the image (H, W, 3) and its target without resizing, as testing on windows resizes each."""
    return image.copy(), target


@dataclass(frozen=True)
class RandomResize:
    """``Resize`` to one of ``shorters``, chosen uniformly at random."""

    shorters: tuple[int, ...]
    longer: int

    def __call__(
        self, image: NDArray[np.uint8], target: Target, *, seed: Sequence[int]
    ) -> tuple[NDArray[np.uint8], Target]:
        """Returns the resized image (H, W, 3) and its target."""
        return self.chosen(seed)(image, target)

    def chosen(self, seed: Sequence[int]) -> Resize:
        """Returns the ``Resize`` chosen by ``seed``."""
        return Resize(int(_chance(seed).choice(self.shorters)), self.longer)


@dataclass(frozen=True)
class Jitter:
    """Large-scale jitter: random scaling, then a random crop if the image exceeds the canvas, or padding otherwise.

    The image is scaled to fit a square with ``low`` to ``high`` times the canvas's side.  An object is dropped if less
    than a pixel of its width or height, or nothing of a field that it had (its mask), is left in the canvas.

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
        """Returns the canvas (size, size, 3), with the image at its top left, and its target."""
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
        """Moves ``target``, of an image of ``size``, to the canvas at ``corner`` (y, x) of the ``resized`` image."""
        top, left = corner
        shown = min(self.size, resized[0]), min(self.size, resized[1])
        boxes = clip(scale(target.boxes, size, resized) - torch.tensor([left, top, left, top]), shown)
        moved, kept = dict[str, Tensor](), ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(dim=1)
        for name, field, values in carried(target):
            moved[name], left_over = field.place(values, size, resized, corner, (self.size, self.size))
            kept &= left_over
        if target.label_map is not None:
            moved["label_map"] = on_canvas(nearest(target.label_map, resized, corner, shown), (self.size, self.size))
        return replace(target, boxes=boxes, **moved)[kept]


def _chance(seed: Sequence[int]) -> np.random.Generator:
    """Returns a random generator that differs from that of ``Augment`` for the same seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))


class Augment:
    """A pipeline of albumentations' transforms, under their names.

    Args:
        steps: {name: arguments} of each transform, applied in order, such as {"HorizontalFlip": {"p": 0.5}}.
        fields: operations on the fields of targets; None: those of the table.

    Raises:
        ValueError: albumentations lacks a transform or refuses its arguments.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]], fields: Mapping[str, Field] | None = None) -> None:
        self._steps, self._fields = tuple(steps), FIELDS if fields is None else fields
        self._composed = dict[tuple[str, ...], A.Compose]()  # by what is transformed: fields, and perhaps LABEL_MAP
        self._compose(())

    def _compose(self, names: tuple[str, ...]) -> A.Compose:
        """Returns the pipeline for targets with ``names``: fields, and perhaps LABEL_MAP."""
        if names not in self._composed:
            transforms = [_transform(step) for step in self._steps]
            if LABEL_MAP in names:
                for transform in transforms:
                    _suit_labels(transform)
            moved: dict[str, Any] = {}
            if any(isinstance(transform, A.DualTransform) for transform in transforms):
                moved["bbox_params"] = A.BboxParams(format="albumentations", label_fields=["rows"], clip=True)
                for name in names:
                    if name == LABEL_MAP:
                        continue
                    moved |= self._fields[name].compose()
            self._composed[names] = A.Compose(list(transforms), **moved)
        return self._composed[names]

    @cached_property
    def _pixels_only(self) -> A.Compose:
        # Each pipeline needs its own transforms, since a transform takes its box settings from its last Compose.
        return A.Compose([_transform(step) for step in self._steps])

    def __call__(
        self, image: NDArray[np.uint8], target: Target, *, seed: Sequence[int]
    ) -> tuple[NDArray[np.uint8], Target]:
        """Returns the augmented image (H, W, 3) and its target; the same ``seed`` gives the same change.

        Objects outside the image are dropped; pixels of the label map from outside the image are VOID.

        Raises:
            ValueError: a step can't be applied to this image, such as a crop larger than it.
        """
        if not self._steps:
            return image, target
        following = [*carried(target, self._fields)]
        names = tuple(name for name, _, _ in following)
        compose = self._compose(names if target.label_map is None else (*names, LABEL_MAP))
        self._seed(compose, seed)
        height, width = image.shape[:2]
        limits = np.array([width, height, width, height])
        given: dict[str, Any] = {"bboxes": target.boxes.numpy() / limits, "rows": np.arange(len(target))}
        for _, field, values in following:
            given |= field.to_albumentations(values, (height, width))
        if target.label_map is not None:
            given["mask"] = VOID - target.label_map.numpy()  # pixels from outside become 0
        result = self._apply(compose, image, **given)
        return _unpack(result, target, self._fields)

    def pixels(self, image: NDArray[np.uint8], *, seed: Sequence[int]) -> NDArray[np.uint8]:
        """Returns the image (H, W, 3) of ``__call__`` with ``seed`` in half the time, as no boxes are transformed.

        Raises:
            ValueError: a transform depends on the boxes, or can't be applied to this image.
        """
        if not self._steps:
            return image
        self._seed(self._pixels_only, seed)
        return _checked(self._apply(self._pixels_only, image))

    def _apply(self, compose: A.Compose, image: NDArray[np.uint8], **given: Any) -> Mapping[str, Any]:
        try:
            return compose(image=image, **given)
        except MemoryError:
            raise
        except Exception as error:  # albumentations' own exceptions, and OpenCV's
            if isinstance(error, KeyError) and not given:
                message = f"data.augment has a transform that needs {error}, and here are only images"
                raise ValueError(message) from error
            number = _failed(compose.transforms, error)
            raise ValueError(f"{self._described(number, image)}: {error}; {self._repair(number)}") from error

    def _described(self, number: int | None, image: NDArray[np.uint8]) -> str:
        """Returns a message about the failed step ``number`` (from 0) and ``image``."""
        step = "data.augment" if number is None else f"data.augment, step {number + 1}, {dict(self._steps[number])},"
        return f"{step} failed on an image of {image.shape[1]}x{image.shape[0]} pixels"

    def _repair(self, number: int | None) -> str:
        if number is None:
            return "leave out one step after the other to find the one that can't be used"
        ((name, arguments),) = self._steps[number].items()
        if {"height", "width"} <= (arguments or {}).keys():
            sides = f"min_height: {arguments['height']}, min_width: {arguments['width']}"
            return f"make height and width of {name} smaller, or put {{PadIfNeeded: {{{sides}}}}} before it"
        return f"change the arguments of {name} or leave it out"

    def _seed(self, compose: A.Compose, seed: Sequence[int]) -> None:
        # Compose would give all transforms the same seed, and so the same random numbers.
        seeds = np.random.SeedSequence(seed).generate_state(len(self._steps) + 1)
        compose.set_random_seed(int(seeds[0]))
        for transform, own in zip(compose.transforms, seeds[1:], strict=True):
            transform.set_random_seed(int(own))


def _failed(transforms: Sequence[Any], error: Exception) -> int | None:
    """Returns the number of the transform that raised ``error``; None if it was raised outside of them."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        for number, transform in enumerate(transforms):
            if transform is owner:
                return number
    return None


def _checked(result: Mapping[str, Any]) -> NDArray[np.uint8]:
    image = np.ascontiguousarray(result["image"])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"data.augment must leave images (H, W, 3) uint8, got {image.shape} {image.dtype}; "
            "the model normalises them itself"
        )
    return image


def _unpack(result: Mapping[str, Any], target: Target, fields: Mapping[str, Field]) -> tuple[NDArray[np.uint8], Target]:
    image = _checked(result)
    height, width = image.shape[:2]
    kept = torch.as_tensor(np.asarray(result["rows"], dtype=np.int64))
    boxes = np.asarray(result["bboxes"], dtype=np.float64).reshape(-1, 4) * [width, height, width, height]
    moved = {
        name: field.from_albumentations(result, kept, (height, width)) for name, field, _ in carried(target, fields)
    }
    if target.label_map is not None:
        mask = np.ascontiguousarray(result["mask"])
        if mask.shape != (height, width) or mask.dtype != np.uint8:
            raise ValueError(
                f"data.augment left an image of {width}x{height} pixels and a label map of {mask.shape} {mask.dtype}; "
                "leave the step that does so out"
            )
        moved["label_map"] = VOID - torch.from_numpy(mask)
    plain = replace(target, **dict.fromkeys(moved))[kept]
    return image, replace(plain, boxes=torch.from_numpy(boxes.astype(np.float32)), **moved)


def _suit_labels(transform: A.BasicTransform) -> None:
    """Makes ``transform`` use nearest-neighbour interpolation for labels, and 0 for pixels from outside.

    Raises:
        ValueError: the transform has no meaning for labels.
    """
    if isinstance(transform, NOT_OF_LABELS):
        raise ValueError(f"data.augment: {type(transform).__name__} does not move label maps; leave it out")
    options: Any = transform
    if hasattr(options, "mask_interpolation"):
        # OpenCV, by which those resize, takes another pixel for NEAREST than for LINEAR.
        resizing = isinstance(transform, tuple(SCALING.values()))
        options.mask_interpolation = cv2.INTER_NEAREST_EXACT if resizing else cv2.INTER_NEAREST
    if getattr(options, "area_for_downscale", None) == "image_mask":
        options.area_for_downscale = "image"
    for name in ("fill_mask", "mask_drop_value"):  # None: labels are unchanged
        if getattr(options, name, None) is not None:
            setattr(options, name, 0)


def _transform(step: Mapping[str, Any]) -> A.BasicTransform:
    if len(step) != 1:
        raise ValueError(f"an augmentation step has the form {{name: arguments}}, got {dict(step)}")
    ((name, arguments),) = step.items()
    kind = getattr(A, name, None)
    if not (isinstance(kind, type) and issubclass(kind, A.BasicTransform)):
        known = [n for n in dir(A) if isinstance(getattr(A, n), type) and issubclass(getattr(A, n), A.BasicTransform)]
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"albumentations has no transform {name!r}{hint}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # albumentations only warns of an unknown argument
            return SCALING.get(name, kind)(**(arguments or {}))
    except (TypeError, ValueError, NotImplementedError, UserWarning) as error:
        raise ValueError(f"augmentation {name} does not take {arguments}: {error}") from error

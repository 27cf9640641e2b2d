"""Keypoints as a field that moves with boxes.

A target has (M, J, 3) x, y and visibility (0 not labelled, 1 hidden, 2 visible), detections (D, J, 3) x, y and score.
x and y are in pixels from the corner of the first one, like those of boxes, so a flip maps x to width - x; COCO's
files number pixels, whose centres are half a pixel further.  A keypoint that is not labelled or not in its image is
(0, 0, 0).

Shapes: M objects, J keypoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detection.keypoints import KeypointSpec

__all__ = ["PIXEL_MIDDLE", "Keypoints", "of_coco", "to_coco"]

Size = tuple[int, int]  # (height, width)

MOST = 1e6  # pixels that any coordinate can be, either way
PIXEL_MIDDLE = 0.5  # pixels from a pixel's corner, which files of COCO's format mean by its number


class Keypoints:
    """The operations of ``detection.fields.table.Field`` on keypoints.

    Args:
        spec: keypoints of the data set; None where no file is read and nothing is flipped.
    """

    lacking = (
        "the data set has no keypoints, or they were not read; COCO files need `keypoints` in their categories (the "
        "names) and annotations"
    )
    unusable = "keypoints that can't be used; the object's box is kept, without a labelled one"

    def __init__(self, spec: KeypointSpec | None = None) -> None:
        self.spec = spec

    def pack(self, raw: Any, size: Size) -> bytes:
        """Packs COCO's flat list ``raw`` of x, y and visibility; None, an object without keypoints, is no error."""
        if raw is None or raw == []:
            return self.unknown(size)
        return of_coco(raw, () if self.spec is None else self.spec.names).astype(np.float32).tobytes()

    def unknown(self, size: Size) -> bytes:
        return np.zeros((0 if self.spec is None else len(self.spec), 3), np.float32).tobytes()

    def unpack(self, packed: Sequence[bytes], size: Size) -> NDArray[np.float32]:
        values = np.frombuffer(bytearray(b"".join(packed)), np.float32)
        count = len(self.spec) if self.spec is not None else values.size // (3 * max(1, len(packed)))
        return values.reshape(len(packed), count, 3)

    def to_tensor(self, values: NDArray[np.float32], size: Size) -> Tensor:
        return _seen(torch.from_numpy(values), size)

    def resize(self, values: Tensor, size: Size, new_size: Size) -> Tensor:
        return values * values.new_tensor([new_size[1] / size[1], new_size[0] / size[0], 1])

    def place(
        self, values: Tensor, size: Size, resized: Size, corner: tuple[int, int], canvas: Size
    ) -> tuple[Tensor, Tensor]:
        """Moves keypoints; an object stays whatever becomes of its keypoints, since its box is visible."""
        moved = self.resize(values, size, resized) - values.new_tensor([corner[1], corner[0], 0])
        shown = min(canvas[0], resized[0]), min(canvas[1], resized[1])
        return _seen(moved, shown), torch.ones(len(values), dtype=torch.bool)

    def cut(self, values: Tensor, size: Size) -> Tensor:
        return _seen(values, size)

    def hide(self, values: Tensor, covered: Tensor) -> Tensor:
        """Marks keypoints under other objects as hidden, not as unlabelled."""
        height, width = covered.shape
        columns = values[..., 0].long().clamp(0, max(width - 1, 0))
        rows = values[..., 1].long().clamp(0, max(height - 1, 0))
        hidden = covered[rows, columns] & (values[..., 2] > 0)
        return torch.cat([values[..., :2], torch.where(hidden, 1.0, values[..., 2])[..., None]], dim=-1)

    def compose(self) -> Mapping[str, Any]:
        return {"keypoint_params": {"format": "xy", "remove_invisible": False}}

    def to_albumentations(self, values: Tensor, size: Size) -> Mapping[str, Any]:
        """Returns rows of x, y, visibility and number; albumentations keeps further columns, and may drop rows.

        The corners of small triangles follow the keypoints; they reveal a flip.
        """
        flat = values.reshape(-1, 3).double().numpy()
        rows = np.column_stack([flat, np.arange(len(flat))])
        rows[flat[:, 2] == 0, :2] = (size[1] / 2, size[0] / 2)  # albumentations warns of points outside
        corners = _triangles(size).reshape(-1, 2)
        numbers = -1 - np.arange(len(corners))
        witnesses = np.column_stack([corners, np.full(len(corners), values.shape[1]), numbers])
        rows = np.concatenate([rows, witnesses])
        rows[:, :2] -= PIXEL_MIDDLE  # albumentations counts from the centre of the first pixel
        return {"keypoints": rows.astype(np.float32)}

    def from_albumentations(self, result: Mapping[str, Any], kept: Tensor, size: Size) -> Tensor:
        rows = np.array(result["keypoints"], np.float64)
        if rows.ndim != 2 or rows.shape[1] != 4:
            raise ValueError(f"data.augment returned keypoints of shape {rows.shape}, expected (N, 4)")
        numbers = np.rint(rows[:, 3]).astype(np.int64)
        rows[:, :2] += PIXEL_MIDDLE
        witnesses = rows[numbers < 0]
        count = int(witnesses[0, 2]) if len(witnesses) else 0  # of an object
        objects = max(int(kept.max()) + 1 if len(kept) else 0, numbers.max(initial=-1) // max(count, 1) + 1)
        values = np.zeros((objects * count, 3))
        values[numbers[numbers >= 0]] = rows[numbers >= 0, :3]
        moved = torch.from_numpy(values.reshape(objects, count, 3).astype(np.float32))[kept]
        if self.spec is not None and _is_mirrored(witnesses[:, :2], -1 - numbers[numbers < 0]):
            moved = moved[:, list(self.spec.mirrored)]
        return _seen(moved, size)

    def on_image(self, values: Tensor, boxes: Tensor, size: Size) -> NDArray[np.float32]:
        return values.float().numpy()


def of_coco(raw: Any, names: Sequence[str], *, scores: bool = False) -> NDArray[np.float64]:
    """Returns the keypoints (J, 3) called ``names`` (J,) from COCO's flat list ``raw`` of x, y and visibility.

    With ``scores``, these replace the visibilities, as in results.

    Raises:
        ValueError: it is no list of 3 J numbers of at most a million, with visibilities 0, 1 or 2.
    """
    points = _checked(raw, names, scores=scores)
    points[:, :2] += PIXEL_MIDDLE
    if not scores:
        points[points[:, 2] == 0] = 0
    return points


def to_coco(keypoints: NDArray[np.floating]) -> list[list[float]]:
    """Returns COCO's flat list of x, y and score of the ``keypoints`` (J, 3) of each of N detections."""
    exact = keypoints.astype(np.float64)
    return (exact - np.array([PIXEL_MIDDLE, PIXEL_MIDDLE, 0])).reshape(len(exact), exact.shape[1] * 3).tolist()


def _checked(raw: Any, names: Sequence[str], *, scores: bool) -> NDArray[np.float64]:
    third = "score" if scores else "visibility"
    expected = f"{3 * len(names)} numbers, x, y and {third} of each of {len(names)} keypoints"
    if type(raw) is not list:
        raise ValueError(f"keypoints are {raw!r:.60}, expected a list of {expected}")
    if len(raw) != 3 * len(names):
        raise ValueError(f"keypoints have {len(raw)} numbers, expected {expected}")
    if not set(map(type, raw)) <= {int, float} or not all(-MOST < value < MOST for value in raw):
        place, value = next((place, value) for place, value in enumerate(raw) if not _is_number(value))
        which = ("x", "y", third)[place % 3]
        raise ValueError(
            f"{which} of keypoint {names[place // 3]!r} is {value!r:.60}, expected a number of at most {MOST:g}"
        )
    points = np.array(raw, np.float64).reshape(-1, 3)
    wrong = np.flatnonzero(~np.isin(points[:, 2], (0, 1, 2)) & (not scores))
    if len(wrong):
        name, value = names[wrong[0]], raw[3 * wrong[0] + 2]
        raise ValueError(
            f"visibility of keypoint {name!r} is {value}, expected 0 (not labelled), 1 (hidden) or 2 (visible)"
        )
    return points


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -MOST < value < MOST


def _seen(values: Tensor, size: Size) -> Tensor:
    """Returns ``values``, unlabelled outside an image of ``size``; its border counts as inside."""
    x, y, visibility = values.unbind(dim=-1)
    outside = (x < 0) | (y < 0) | (x > size[1]) | (y > size[0]) | (visibility <= 0)
    return torch.where(outside[..., None], 0.0, values)


def _triangles(size: Size) -> NDArray[np.float64]:
    """Returns the corners (9, 3, 2) of triangles all over an image of ``size``, each turning the same way."""
    height, width = size
    side = max(1.0, min(size) / 16)
    places = np.stack(np.meshgrid(width * np.array([0.25, 0.5, 0.75]), height * np.array([0.25, 0.5, 0.75])), axis=-1)
    return places.reshape(-1, 1, 2) + side * np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])


def _is_mirrored(corners: NDArray[np.float64], numbers: NDArray[np.int64]) -> bool:
    """Returns whether most of ``_triangles`` were flipped, by the returned ``corners`` (R, 2) of ``numbers`` (R,)."""
    places = np.full((27, 2), np.nan)
    places[numbers] = corners
    first, second, third = places.reshape(9, 3, 2).transpose(1, 0, 2)
    (ax, ay), (bx, by) = (second - first).T, (third - first).T
    turns = np.sign(ax * by - ay * bx)
    return bool(np.nansum(turns) < 0)

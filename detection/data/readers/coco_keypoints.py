"""Reads the keypoints of a COCO file: names and skeleton from its categories, and coordinates in resized images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detection.data.problems import listed
from detection.data.readers.values import FieldError, text, whole_number
from detection.fields.keypoints import PIXEL_MIDDLE
from detection.keypoints import KeypointSpec

__all__ = ["read_spec", "scaled"]


def read_spec(categories: Sequence[Any], classes: tuple[str, ...]) -> KeypointSpec | None:
    """Returns the keypoints of the ``categories`` among ``classes``; None if none of them has any.

    Some of the categories may have no keypoints.

    Raises:
        ValueError: names or skeleton are invalid, or differ between categories.
    """
    first, found = "", None
    for position, record in enumerate(categories):
        if not isinstance(record, dict) or str(record.get("name")) not in classes or not record.get("keypoints"):
            continue
        try:
            spec = _spec(record)
        except ValueError as error:
            raise ValueError(f"categories[{position}] ({record['name']}): {error}") from error
        if found is not None and spec.names != found.names:
            raise ValueError(
                f"category {first!r} has the {len(found)} keypoints {listed(found.names)}, {record['name']!r} the "
                f"{len(spec)} keypoints {listed(spec.names)}; a data set has one kind: leave the others out of its "
                "classes"
            )
        if found is None:
            first, found = str(record["name"]), spec
    return found


def scaled(points: Any, scale: tuple[float, float]) -> Any:
    """Returns COCO's flat list ``points`` scaled by ``scale`` (along x, along y); other values unchanged."""
    if type(points) is not list or any(type(value) not in (int, float) for value in points):
        return points
    factors = (*scale, None)
    return [
        value if (factor := factors[place % 3]) is None else (value + PIXEL_MIDDLE) * factor - PIXEL_MIDDLE
        for place, value in enumerate(points)
    ]


def _spec(record: dict[str, Any]) -> KeypointSpec:
    names, skeleton = record["keypoints"], record.get("skeleton") or []
    if type(names) is not list:
        raise FieldError("keypoints", names, "a list of names")
    if type(skeleton) is not list or any(type(edge) is not list or len(edge) != 2 for edge in skeleton):
        raise FieldError("skeleton", skeleton, "a list of pairs of keypoints, which count from 1")
    ends = [[whole_number(end, "skeleton") for end in edge] for edge in skeleton]
    wrong = [edge for edge in ends if not all(1 <= end <= len(names) for end in edge)]
    if wrong:
        raise FieldError("skeleton", wrong[0], f"pairs of the keypoints 1..{len(names)}")
    return KeypointSpec(tuple(text(name, "keypoints") for name in names), tuple((a - 1, b - 1) for a, b in ends))

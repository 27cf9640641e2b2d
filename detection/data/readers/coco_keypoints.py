"""The keypoints of a COCO file: names and skeleton in its categories, and their places where an image was resized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detection.data.problems import listed
from detection.data.readers.values import FieldError, text, whole_number
from detection.fields.keypoints import PIXEL_MIDDLE
from detection.keypoints import KeypointSpec

__all__ = ["read_spec", "scaled"]


def read_spec(categories: Sequence[Any], classes: tuple[str, ...]) -> KeypointSpec | None:
    """Returns the keypoints of those ``categories`` that are ``classes``; None where no such category has any.

    Categories without keypoints may stand beside them.

    Raises:
        ValueError: names or a skeleton that can't be used, or categories with different keypoints.
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
    """Returns COCO's flat list ``points`` after the image was scaled (along x, along y); another value as it is."""
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

"""The keypoints of a data set: names, edges that a picture draws, flip pairs, sigmas.

Shapes: J keypoints.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

__all__ = ["COCO_SIGMAS", "DEFAULT_SIGMA", "KeypointSpec"]

# Sigmas of object keypoint similarity, shares of the square root of an object's area: one standard deviation of
# annotators.  Source: https://cocodataset.org/#keypoints-eval, pycocotools' ``kpt_oks_sigmas``.
COCO_SIGMAS = {
    "nose": 0.026,
    "left_eye": 0.025,
    "right_eye": 0.025,
    "left_ear": 0.035,
    "right_ear": 0.035,
    "left_shoulder": 0.079,
    "right_shoulder": 0.079,
    "left_elbow": 0.072,
    "right_elbow": 0.072,
    "left_wrist": 0.062,
    "right_wrist": 0.062,
    "left_hip": 0.107,
    "right_hip": 0.107,
    "left_knee": 0.087,
    "right_knee": 0.087,
    "left_ankle": 0.089,
    "right_ankle": 0.089,
}
# Of other keypoints, near the mean of COCO's, 0.067, and on its strict side.  1 / J would judge sets of few keypoints
# so mildly that any place in the box is right.
DEFAULT_SIGMA = 0.05

SIDE = re.compile(r"(?<![a-z])([Ll]eft|LEFT|[Rr]ight|RIGHT)(?![a-z])")
OTHER_SIDE = {"left": "right", "Left": "Right", "LEFT": "RIGHT", "right": "left", "Right": "Left", "RIGHT": "LEFT"}


@dataclass(frozen=True, slots=True)
class KeypointSpec:
    """The J keypoints that objects of a data set have.

    Attributes:
        names: J.
        edges: pairs of 0..J-1 that pictures join, COCO's ``skeleton``.
        sigmas: J, of object keypoint similarity; empty: COCO's where all names are COCO's, else 0.05 each.
    """

    names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"keypoints need names, each once, got {list(self.names)}")
        outside = [edge for edge in self.edges if not all(0 <= end < len(self.names) for end in edge)]
        if outside:
            raise ValueError(f"edges join the keypoints 0..{len(self.names) - 1}, got {list(outside[0])}")
        if not self.sigmas:
            known = all(name in COCO_SIGMAS for name in self.names)
            sigmas = tuple(COCO_SIGMAS[name] if known else DEFAULT_SIGMA for name in self.names)
            object.__setattr__(self, "sigmas", sigmas)
        if len(self.sigmas) != len(self.names) or not all(sigma > 0 for sigma in self.sigmas):
            raise ValueError(
                f"keypoint_sigmas needs a number above 0 for each of the {len(self.names)} keypoints "
                f"{', '.join(self.names)}, got {list(self.sigmas)}"
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def mirrored(self) -> tuple[int, ...]:
        """Returns the keypoint (J,) that each one becomes under a flip: the one of the other side, else itself."""
        places = {name: place for place, name in enumerate(self.names)}
        others = (SIDE.sub(lambda found: OTHER_SIDE[found[0]], name) for name in self.names)
        return tuple(places.get(other, own) for own, other in enumerate(others))

    @property
    def sides(self) -> tuple[str, ...]:
        """Returns "left" or "right" (J,) of keypoints with a counterpart on the other side, else ""."""
        words = (SIDE.search(name) for name in self.names)
        own = ("" if word is None else word[0].lower() for word in words)
        return tuple(
            side if place != other else "" for place, (side, other) in enumerate(zip(own, self.mirrored, strict=True))
        )

    @classmethod
    def numbered(cls, count: int) -> Self:
        """Returns ``count`` keypoints without names or edges."""
        return cls(tuple(str(number) for number in range(1, count + 1)))

"""Problems that readers find in a data set: collected first, judged once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

__all__ = ["Problem", "listed", "refuse_errors", "summarize"]

Severity = Literal["error", "dropped", "note"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding.

    Attributes:
        severity: "error" stops a training, "dropped" leaves the object out, "note" only tells.
        kind: short name that equal findings share, such as "box without area".
        file: the file to open.
        detail: the object and the value.
        count: of images, objects or files that it stands for.
        images: that show it, where ``file`` is none of them.
        boxes: where in the first image, pixels; of a box that was cut or left out, as it was written.
    """

    severity: Severity
    kind: str
    file: str
    detail: str
    count: int = 1
    images: tuple[str, ...] = ()
    boxes: tuple[tuple[float, ...], ...] = ()

    def __str__(self) -> str:
        return f"{self.file}: {self.kind}: {self.detail}"


def refuse_errors(
    problems: Sequence[Problem],
    source: str,
    *,
    most: int = 10,
    repair: str = "",
    rest: str = "; resdet check lists them all",
) -> None:
    """Raises if any of ``problems`` is an error; ``repair`` ends the message, and ``rest`` the line of how many more.

    Raises:
        ValueError: names up to ``most`` errors and says how many there are.
    """
    errors = [problem for problem in problems if problem.severity == "error"]
    if not errors:
        return
    lines = [f"  {error}" for error in errors[:most]]
    if len(errors) > most:
        lines.append(f"  ... and {len(errors) - most} more{rest}")
    raise ValueError(f"{source} has {len(errors)} error{'s' * (len(errors) > 1)}:\n" + "\n".join(lines) + repair)


def summarize(problems: Sequence[Problem]) -> str:
    """Returns one line with the count of every kind that is not an error; empty if there are none."""
    counts = Counter[str]()
    for problem in problems:
        if problem.severity != "error":
            counts[f"{problem.kind} ({problem.severity})"] += problem.count
    return ", ".join(f"{count} x {kind}" for kind, count in counts.items())


def listed(items: Collection[object], *, most: int = 10) -> str:
    """Returns the first ``most`` of ``items`` for a message, and how many more there are."""
    shown = ", ".join(str(item) for item in islice(items, most))
    return f"{shown} and {len(items) - most} more" if len(items) > most else shown or "none"

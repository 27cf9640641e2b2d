"""Problems that readers find in a data set; readers collect them, and one place decides what to do."""

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
    """One problem of a data set.

    Attributes:
        severity: "error" stops training, "dropped" leaves the object out, "note" only informs.
        kind: short name shared by problems of one kind, such as "box without area".
        file: the file to look at.
        detail: the object and the value.
        count: number of images, objects or files with the problem.
        images: images that show it, if ``file`` is not an image.
        boxes: place in the first image, pixels; the original box if it was cut or left out.
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
    """Raises if any of ``problems`` is an error.

    ``repair`` ends the message; ``rest`` ends its line with the number of further errors.

    Raises:
        ValueError: names up to ``most`` errors and their total number.
    """
    errors = [problem for problem in problems if problem.severity == "error"]
    if not errors:
        return
    lines = [f"  {error}" for error in errors[:most]]
    if len(errors) > most:
        lines.append(f"  ... and {len(errors) - most} more{rest}")
    raise ValueError(f"{source} has {len(errors)} error{'s' * (len(errors) > 1)}:\n" + "\n".join(lines) + repair)


def summarize(problems: Sequence[Problem]) -> str:
    """Returns one line with the count of every kind of problem that is not an error; empty if there are none."""
    counts = Counter[str]()
    for problem in problems:
        if problem.severity != "error":
            counts[f"{problem.kind} ({problem.severity})"] += problem.count
    return ", ".join(f"{count} x {kind}" for kind, count in counts.items())


def listed(items: Collection[object], *, most: int = 10) -> str:
    """Returns the first ``most`` of ``items`` and the number of further ones, for a message."""
    shown = ", ".join(str(item) for item in islice(items, most))
    return f"{shown} and {len(items) - most} more" if len(items) > most else shown or "none"

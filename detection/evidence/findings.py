"""Figures that do not follow from records, with file and line, both values and the repair."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["NUMBER", "Finding", "changed"]

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass(frozen=True, slots=True)
class Finding:
    """A figure, a line or a file that does not follow from records.

    Attributes:
        file: relative to the checkout.
        line: line number from 1; 0 for the whole file.
        text: what is wrong.
        repair: a command, or an edit.
    """

    file: str
    line: int
    text: str
    repair: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.text}; {self.repair}"


def changed(printed: str | None, expected: str | None) -> str:
    """Describes how a line differs from the ``expected`` one (None: no such line), by numbers if only they differ."""
    if printed is None:
        return f"lacks {expected!r}"
    if expected is None:
        return f"prints {printed!r}, the records give no such line"
    numbers = [(a, b) for a, b in zip(NUMBER.findall(printed), NUMBER.findall(expected), strict=False) if a != b]
    if numbers and NUMBER.sub("", printed) == NUMBER.sub("", expected):
        return "; ".join(f"prints {a}, the records give {b}" for a, b in numbers)
    return f"prints {printed!r}, the records give {expected!r}"

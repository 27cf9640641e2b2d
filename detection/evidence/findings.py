"""Findings: figures that don't follow from records, with their place, both values and the repair."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["NUMBER", "Finding", "changed"]

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass(frozen=True, slots=True)
class Finding:
    """A figure, a line or a file that doesn't follow.

    Attributes:
        file: relative to the checkout.
        line: from 1; 0: of the whole file.
        text: what is wrong.
        repair: a command, or what to write where.
    """

    file: str
    line: int
    text: str
    repair: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.text}; {self.repair}"


def changed(printed: str | None, expected: str | None) -> str:
    """Returns how a line differs from the one ``expected`` (None: no such line), by its numbers if they alone do."""
    if printed is None:
        return f"lacks {expected!r}"
    if expected is None:
        return f"prints {printed!r}, the records give no such line"
    numbers = [(a, b) for a, b in zip(NUMBER.findall(printed), NUMBER.findall(expected), strict=False) if a != b]
    if numbers and NUMBER.sub("", printed) == NUMBER.sub("", expected):
        return "; ".join(f"prints {a}, the records give {b}" for a, b in numbers)
    return f"prints {printed!r}, the records give {expected!r}"

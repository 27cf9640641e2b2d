"""Finds figures outside blocks, and compares them with docs/evidence/unbound.yaml, which names the source of each.

Checks tables with a cell that begins with a number or has one with decimals (without the first column and code), and
sentences with a figure of quality: AP, accuracy, percent, mean and deviation.  An entry names a table by its heading,
or quotes the figures of a sentence:

- {file: README.md, table: Results, number: 2, kind: paper, why: "He et al. 2015, table 7", digest: "0123456789ab"}
- {file: README.md, text: "AP50 89.5", kind: not kept, why: "make demo prints it again"}

Kinds: ``paper``, published by others; ``not kept``, measured here and no record was kept; ``tool``, written by a tool
that a test repeats; ``definition``, settings, sizes and counts that are not measured.  A table of the first three kinds
must match its digest, so that a figure altered by hand is found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detection.config.load import build_dataclass, parse_yaml
from detection.config.schema import checked
from detection.evidence.blocks import Block
from detection.files import digest

__all__ = ["KINDS", "Entry", "Loose", "loose_figures", "read_entries", "table_digest"]

KINDS = ("paper", "not kept", "tool", "definition")
DIGEST_DIGITS = 12
CODE = re.compile(r"`[^`]*`|\]\([^)]*\)")
FIGURE = re.compile(r"[^\w]*\d|.*\d\.\d")  # a cell that begins with a number, or has one with decimals
QUALITY = re.compile(
    r"\b(?:AP(?:50|75)?|mAP|AR100|top-1|F2)\b[^|.]{0,40}?\d+\.\d"
    r"|\d\.\d+ (?:AP|mAP|points)\b|\d\.\d+ ± \d|[+-]\d+\.\d+ \[|\d\.\d+ %"
)


@checked
class Entry:
    """An entry of unbound.yaml.

    Attributes:
        file: document, relative to the checkout.
        table: the heading above the table; empty: ``text``.
        number: which table under that heading, from 1.
        text: figures, quoted from a sentence; empty: ``table``.
        kind: see above.
        why: source, or why there is no record.
        digest: of a table, by ``table_digest``.
    """

    file: str
    kind: Literal["paper", "not kept", "tool", "definition"]
    why: str
    table: str = ""
    number: int = 1
    text: str = ""
    digest: str = ""

    def __post_init__(self) -> None:
        if bool(self.table) == bool(self.text):
            raise ValueError(f"an entry of {self.file} takes either table, a heading, or text; it has {self}")
        if bool(self.digest) != (bool(self.table) and self.kind != "definition"):
            raise ValueError(
                f"digest goes with a table of the kinds {', '.join(KINDS[:-1])}, and with no other; {self.file}, "
                f"{self.table or self.text!r} has {self.digest or 'none'!r}"
            )


@dataclass(frozen=True, slots=True)
class Loose:
    """Figures outside blocks: a table, or (``number`` 0) a paragraph.

    Attributes:
        line: its first, from 1.
        heading: above it.
        number: number of the table under the heading.
        lines: its lines in the document.
    """

    line: int
    heading: str
    number: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The lines as one."""
        return " ".join(line.strip() for line in self.lines)


def read_entries(path: Path) -> list[Entry]:
    """Returns the entries of unbound.yaml; empty without the file.

    Raises:
        ValueError: an unknown key or value.
    """
    if not path.is_file():
        return []
    try:
        values = parse_yaml(path.read_text(encoding="utf-8")) or []
        return [build_dataclass(Entry, dict(value)) for value in values]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def table_digest(loose: Loose) -> str:
    """Returns the digest of a table, independent of spaces."""
    return digest(" ".join(loose.text.split()))[:DIGEST_DIGITS]


def loose_figures(text: str, blocks: Sequence[Block]) -> list[Loose]:
    """Returns tables with figures in their rows, and paragraphs with a figure of quality, outside ``blocks``."""
    inside = {block.line + row for block in blocks for row in range(len(block.lines))}
    heading, tables, found = "", 0, list[Loose]()
    for start, lines, fenced in _paragraphs(text, inside):
        if not fenced and lines[0].startswith("#"):
            heading, tables = lines[0].lstrip("#").strip(), 0
        if not fenced and lines[0].startswith("|"):
            tables += 1
            if any(FIGURE.match(cell) for row in lines[2:] for cell in CODE.sub("", row).strip("| ").split("|")[1:]):
                found.append(Loose(start, heading, tables, lines))
        elif QUALITY.search(" ".join(line.strip() for line in lines)):
            found.append(Loose(start, heading, 0, lines))
    return found


def _paragraphs(text: str, inside: set[int]) -> Iterator[tuple[int, tuple[str, ...], bool]]:
    """Yields (first line, lines, whether it is code) of paragraphs, tables, headings and blocks of code."""
    start, part, fenced = 0, list[str](), False
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        fence = line.lstrip().startswith("```")
        cut = number in inside or fence or (not fenced and (not line.strip() or line.startswith("#")))
        if part and not fenced and (cut or line.startswith("|") != part[0].startswith("|") or part[0].startswith("#")):
            yield start, tuple(part), False
            part = []
        if fence and fenced and part:
            yield start, tuple(part), True
            part = []
        fenced ^= fence
        if not fence and number not in inside and (line.strip() or fenced):
            start = start if part else number
            part.append(line)

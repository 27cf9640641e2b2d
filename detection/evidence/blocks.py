"""Blocks of figures in Markdown: text between two marks, rendered from a template.

<!-- figures: NAME -->
text with figures
<!-- end of figures -->
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from detection.evidence.findings import changed

__all__ = ["Block", "compare_lines", "read_blocks", "replace_blocks"]

_BEGIN = re.compile(r"<!-- figures: ([\w-]+) -->")
_END = "<!-- end of figures -->"


@dataclass(frozen=True, slots=True)
class Block:
    """The lines between two marks.

    Attributes:
        name: unique in its document.
        line: number of the first line of ``lines``, from 1.
        lines: without the marks.
    """

    name: str
    line: int
    lines: tuple[str, ...]


def read_blocks(text: str) -> list[Block]:
    """Returns the blocks of a document.

    Raises:
        ValueError: an unpaired mark, or a repeated name; the message has the line.
    """
    blocks, name, begin = list[Block](), None, 0
    lines = text.splitlines()
    for number, line in enumerate(lines):
        found = _BEGIN.fullmatch(line.strip())
        if found and name is not None:
            raise ValueError(f"line {number + 1}: figures {name!r} have no {_END!r} before the next ones begin")
        if found:
            name, begin = found[1], number + 1
            if any(block.name == name for block in blocks):
                raise ValueError(f"line {number + 1}: figures {name!r} exist twice; give each a unique name")
        elif line.strip() == _END:
            if name is None:
                raise ValueError(f"line {number + 1}: {_END!r} ends nothing; '<!-- figures: NAME -->' begins a block")
            blocks.append(Block(name, begin + 1, tuple(lines[begin:number])))
            name = None
    if name is not None:
        raise ValueError(f"line {begin}: figures {name!r} have no {_END!r}")
    return blocks


def replace_blocks(text: str, contents: Mapping[str, Sequence[str]]) -> str:
    """Replaces the lines of the blocks in ``text`` by ``contents`` (name -> lines)."""
    lines = text.splitlines()
    for block in reversed(read_blocks(text)):
        if block.name in contents:
            lines[block.line - 1 : block.line - 1 + len(block.lines)] = contents[block.name]
    return "\n".join(lines) + "\n"


def compare_lines(block: Block, expected: Sequence[str]) -> list[tuple[int, str]]:
    """Returns (line number, difference) for the lines of ``block`` that differ from ``expected``."""
    pairs = zip_longest(block.lines, expected)
    return [(block.line + row, changed(a, b)) for row, (a, b) in enumerate(pairs) if a != b]

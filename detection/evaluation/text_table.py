"""Tables for the console, as plain text of 80 columns in a pipe and of the terminal's width elsewhere."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Collection, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from detection.evaluation.printable import printable

__all__ = ["text_table"]

PIPE_WIDTH = 80  # columns where no terminal says otherwise
NUMBER_WIDTH = 6  # columns of 100.0 and a space: numbers of tables below each other stand below each other


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Returns lines with ``header`` above ``rows``; too long names go on in the next line.

    Characters that would break a line or change the terminal appear as escapes, such as ``\\n``.

    Args:
        header: a name for each column.
        rows: as many cells each.
        left: numbers of the columns of words, which are left-aligned; the others are numbers.
    """
    table = Table(box=None, pad_edge=False, header_style="")
    for number, name in enumerate(header):
        if number in left:
            table.add_column(Text(printable(name)), overflow="fold")
        else:
            table.add_column(Text(printable(name)), justify="right", min_width=NUMBER_WIDTH, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    stream = io.StringIO()
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH
    Console(file=stream, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())

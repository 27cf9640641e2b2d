"""Plain-text tables for the console, 80 columns wide in a pipe and as wide as the terminal elsewhere."""

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

PIPE_WIDTH = 80  # columns without a terminal
NAME_WIDTH = 30  # columns up to which names of rows are kept whole; longer texts are wrapped
NUMBER_WIDTH = 6  # columns of "100.0" and a space, so that the numbers of consecutive tables are aligned


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Returns the lines of a table with ``header`` above ``rows``; long names are wrapped.

    Characters that would break a line or change the terminal appear as escapes, such as ``\\n``.

    Args:
        header: a name for each column.
        rows: one cell per column each.
        left: positions of the text columns, which are left-aligned; the others are numbers.
    """
    short = all(len(row[0]) <= NAME_WIDTH for row in rows)
    table = Table(box=None, pad_edge=False, header_style="")
    for number, name in enumerate(header):
        if number in left:
            table.add_column(Text(printable(name)), overflow="fold", no_wrap=number == 0 and short)
        else:
            table.add_column(Text(printable(name)), justify="right", min_width=NUMBER_WIDTH, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    stream = io.StringIO()
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH
    Console(file=stream, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())

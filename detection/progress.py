"""Shows progress: a live bar on a terminal, and a plain line at intervals elsewhere.

Bars may be nested, such as an evaluation's in a training's, since all are drawn on SCREEN.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn

__all__ = ["SCREEN", "Move", "Pace", "Screen", "bar", "tracked"]

Move = Callable[[int, int | None], None]  # done so far, in all where that is known
T = TypeVar("T")

SECONDS_PER_LINE = 60.0  # where lines can't be drawn over


class Screen(Console):
    """Draws only on terminals, whatever colour variables the environment has, and goes silent if nobody reads.

    If stdout is closed, as by ``| head`` or with its terminal, rich alone would end the program.
    """

    def __init__(self) -> None:
        super().__init__(soft_wrap=True, markup=False, emoji=False, highlight=False)

    @property
    def is_terminal(self) -> bool:
        try:
            return self.file.isatty()
        except ValueError:  # closed
            return False

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with suppress(OSError):  # no descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what else prints, and for the exit


SCREEN = Screen()


class Pace:
    """Estimates the time left from the progress since the first call."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def left(self, done: int, total: int | None) -> timedelta | None:
        """Returns the time until ``total``, in whole seconds; None while it is unknown."""
        now = time.monotonic()
        if self._first is None:
            self._first = (done, now)
        before, started = self._first
        if total is None or done <= before:
            return None
        return timedelta(seconds=round((now - started) / (done - before) * (total - done)))


@contextmanager
def bar(what: str, total: int | None = None, *, unit: str = "images") -> Iterator[Move]:
    """Shows the progress of ``what`` while the block runs; yields a function to call with the number done.

    Args:
        what: the activity, such as "testing".
        total: number to do; None: not known yet.
        unit: of both; "bytes" are shown as kB, MB and GB.
    """
    pace, said_at = Pace(), time.monotonic()
    columns = TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[said]}")
    with Progress(*columns, console=SCREEN, transient=True, expand=True, disable=not SCREEN.is_terminal) as live:
        task = live.add_task(what, total=total, said="")

        def move(done: int, in_all: int | None = None) -> None:
            nonlocal said_at
            in_all = total if in_all is None else in_all
            said = _said(done, in_all, pace.left(done, in_all), unit)
            live.update(task, completed=done, total=in_all, said=said)
            if live.disable and time.monotonic() >= said_at + SECONDS_PER_LINE:
                said_at = time.monotonic()
                SCREEN.print(f"{what}: {said}")

        yield move


@contextmanager
def tracked(
    items: Iterable[T], what: str, *, total: int, count: Callable[[T], int], shown: bool = True
) -> Iterator[Iterable[T]]:
    """Yields ``items`` with a bar, if ``shown``, while the block runs; each item counts ``count`` of ``total``."""
    if not shown:
        yield items
        return
    with bar(what, total) as move:
        yield _counted(items, count, move)


def _counted(items: Iterable[T], count: Callable[[T], int], move: Move) -> Iterator[T]:
    done = 0
    move(0, None)
    for item in items:
        yield item
        done += count(item)
        move(done, None)


def _said(done: int, total: int | None, left: timedelta | None, unit: str) -> str:
    amount = decimal if unit == "bytes" else str
    parts = [amount(done) if total is None else f"{amount(done)} of {amount(total)}"]
    if unit != "bytes":
        parts[0] += f" {unit}"
    return ", ".join(parts if left is None else [*parts, f"{left} left"])

"""Reads the lists of a JSON object in blocks, so that a file of gigabytes never lies in memory as objects.

A block ends at an apparent end of a record.  If that is not one, as within a list of objects inside a record, the block
is no valid JSON, since its brackets don't close.  Decoding then fails, and the caller reads the file as a whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

import msgspec

__all__ = ["UnsuitedError", "decoded", "list_blocks"]

BLOCK = 1 << 23  # bytes
TAIL = 1 << 16  # bytes at the end of a block in which the end of a record is searched
SPACE = b" \t\n\r"
BETWEEN = re.compile(rb"\}[ \t\n\r]*,(?=[ \t\n\r]*\{)")
END = re.compile(rb"\}[ \t\n\r]*\]")


class UnsuitedError(ValueError):
    """A file that can't be read in blocks, or is no JSON; ``json.load`` tells which."""


def list_blocks(stream: BinaryIO, keys: Collection[str], *, size: int = BLOCK) -> Iterator[tuple[str, bytes]]:
    """Yields the lists of objects under ``keys`` of a JSON object, in the file's order and in blocks.

    Args:
        stream: the open file.
        keys: keys of the lists; other values are skipped.
        size: bytes of a block, unless a record is longer.

    Yields:
        A key and some of its list's records, as the JSON text of a list; an empty list for an empty list.

    Raises:
        UnsuitedError: the file is no such object, or the end of a list is not found.
    """
    window, seen = _Window(stream, size), set[str]()
    window.take(b"{")
    while window.next() != b"}" or seen:
        key = window.value()
        if not isinstance(key, str) or key in seen:
            raise UnsuitedError
        seen.add(key)
        window.take(b":")
        if key in keys:
            yield from ((key, block) for block in window.list_blocks())
        else:
            window.value()
        if window.next() == b"}":
            break
        window.take(b",")
    window.take(b"}")
    if window.next():
        raise UnsuitedError


def decoded(block: bytes) -> list[Any]:
    """Returns the records of a block, equal to those of ``json.loads``.

    Raises:
        UnsuitedError: the block is no JSON, or has a number or a text that only Python's decoder accepts.
    """
    try:
        return msgspec.json.decode(block)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UnsuitedError from error


class _Window:
    """The part of a stream that is in memory."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._size, self._data, self._at = stream, size, b"", 0

    def next(self) -> bytes:
        """Returns the next byte that is no space; an empty result at the end of the file."""
        while True:
            while self._at < len(self._data):
                if self._data[self._at] not in SPACE:
                    return self._data[self._at : self._at + 1]
                self._at += 1
            if not self._fill(1):
                return b""

    def take(self, expected: bytes) -> None:
        if self.next() != expected:
            raise UnsuitedError
        self._at += 1

    def value(self) -> object:
        """Returns the next value."""
        self.next()
        size = TAIL
        while True:
            more = self._fill(size)
            text = self._data[self._at : self._at + size].decode(errors="surrogateescape")
            try:
                value, end = json.JSONDecoder().raw_decode(text)
            except ValueError as error:
                if not more:
                    raise UnsuitedError from error
            else:
                if end < len(text):  # otherwise a number may continue
                    self._at += len(text[:end].encode(errors="surrogateescape"))
                    return value
                if not more:
                    raise UnsuitedError
            size *= 2

    def list_blocks(self) -> Iterator[bytes]:
        """Yields the records of the next list."""
        self.take(b"[")
        if self.next() == b"]":
            self._at += 1
            yield b"[]"
            return
        ended = False
        while not ended:
            end, ended = self._block_end()
            yield b"[%b]" % self._data[self._at : end]
            self._at = end
            self.take(b"]" if ended else b",")

    def _block_end(self) -> tuple[int, bool]:
        """Returns where a record ends, and whether it is the last of the list."""
        size = self._size
        while True:
            more = self._fill(size)
            if (end := END.search(self._data, self._at)) is not None:
                return end.start() + 1, True
            for start in (max(self._at, len(self._data) - TAIL), self._at):
                cuts = [match.start() + 1 for match in BETWEEN.finditer(self._data, start)]
                if cuts:
                    return cuts[-1], False
            if not more:
                raise UnsuitedError
            size *= 2

    def _fill(self, size: int) -> bool:
        """Reads until ``size`` bytes are in memory; returns whether there are as many."""
        if len(self._data) - self._at < size:
            rest = self._data[self._at :]
            self._data, self._at = rest + self._stream.read(max(size, self._size) - len(rest)), 0
        return len(self._data) - self._at >= size

"""Strings packed in tensors, which worker processes share instead of copying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

import torch
from torch import Tensor

__all__ = ["PackedStrings", "span", "starts"]


@dataclass(frozen=True, slots=True)
class PackedStrings:
    """A sequence of strings, text or bytes, in two tensors."""

    characters: Tensor  # uint8, all strings one after the other
    ends: Tensor  # (N,) int64

    @classmethod
    def concatenate(cls, parts: Sequence[PackedStrings]) -> Self:
        offsets = starts([len(part.characters) for part in parts])
        return cls(
            torch.cat([part.characters for part in parts]),
            torch.cat([part.ends + offset for part, offset in zip(parts, offsets, strict=True)]),
        )

    @classmethod
    def pack(cls, strings: Sequence[str] | Sequence[bytes]) -> Self:
        encoded = [text.encode() if isinstance(text, str) else text for text in strings]
        lengths = torch.tensor([len(text) for text in encoded], dtype=torch.int64)
        joined = bytearray(b"".join(encoded))
        characters = torch.frombuffer(joined, dtype=torch.uint8) if joined else torch.zeros(0, dtype=torch.uint8)
        return cls(characters, lengths.cumsum(0))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> str:
        return self.bytes_of(row).decode()

    def bytes_of(self, row: int) -> bytes:
        start, end = span(self.ends, row)
        return self.characters[start:end].numpy().tobytes()

    def all(self) -> list[str]:
        """Returns all strings, in a tenth of the time of reading them one by one."""
        characters, ends = self.characters.numpy().tobytes(), self.ends.tolist()
        return [characters[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]

    def take(self, rows: Tensor) -> PackedStrings:
        """Returns the strings of ``rows`` (R,)."""
        return self.pack([self.bytes_of(row) for row in rows.tolist()])

    def first(self, count: int) -> PackedStrings:
        """Returns the first ``count`` strings."""
        return PackedStrings(self.characters, self.ends[:count])


def span(ends: Tensor, row: int) -> tuple[int, int]:
    """Returns the begin and end of ``row``."""
    if not 0 <= row < len(ends):
        raise IndexError(f"row {row} of {len(ends)}")  # ends an iteration
    start, end = ends[row - 1 : row + 1].tolist() if row else (0, int(ends[0]))
    return start, end


def starts(lengths: Sequence[int]) -> list[int]:
    """Returns the offset of each of several concatenated parts."""
    return [0, *accumulate(lengths)][:-1]

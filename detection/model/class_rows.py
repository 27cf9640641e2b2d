"""Rows of layers by class, so that a detector of other classes can keep the rows of shared ones."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ClassRows"]


@dataclass(frozen=True, slots=True)
class ClassRows:
    """Rows of weight and bias of a layer: K times ``per_class``, those of a class are adjacent."""

    per_class: int
    background: bool = False  # one more row, the last
    names: tuple[str, ...] | None = None  # of the K classes; None: those of objects

    def count(self, num_classes: int) -> int:
        """Returns how many rows a layer for ``num_classes`` has."""
        return num_classes * self.per_class + self.background

"""The table of latencies on several machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detection.evaluation.metrics import NONE
from detection.pages.page import Block, Table
from detection.report.words import number

__all__ = ["latency_blocks"]


def latency_blocks(places: Sequence[Mapping[str, Any]], variants: Sequence[str]) -> list[Block]:
    """Returns a table with a column for each of ``places``, the files in latency/; empty without files."""
    if not places:
        return []
    rows = [[name, *(_cell(place["variants"].get(name)) for place in places)] for name in variants]
    untrained = [name for name in variants if any(not _trained(place, name) for place in places)]
    caption = "Milliseconds per image where it was measured again: p50, and p95 in brackets." + (
        f" With random weights, so that the number of detections is not a trained detector's: {', '.join(untrained)}."
        if untrained
        else ""
    )
    return [Table(caption, ["variant", *map(_title, places)], rows)]


def _title(place: Mapping[str, Any]) -> str:
    images = f"{place['batch']} images at once" if place["batch"] > 1 else "one image at a time"
    what = place.get("exported") or place["precision"]
    return f"{place['host']}: {place['described']}, {what}, {images}"


def _cell(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return NONE
    return f"{number(measured['p50'], _digits(measured['p50']))} ({number(measured['p95'], _digits(measured['p95']))})"


def _digits(milliseconds: float) -> int:
    return 1 if milliseconds < 100 else 0


def _trained(place: Mapping[str, Any], name: str) -> bool:
    return name not in place["variants"] or place["variants"][name]["weights"] is not None

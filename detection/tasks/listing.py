"""Lists what is known by name: configs, cards, backbones, published detectors."""

from __future__ import annotations

from pathlib import Path

from backbones.registry import backbone_names
from detection.packaged import CARDS, CONFIGS, names_below
from detection.weights.zoo import ZOO

__all__ = ["list_names"]


def list_names(what: str) -> list[str]:
    """Returns a line for each of the ``what``: "configs", "cards", "backbones" or "zoo"."""
    match what:
        case "configs" | "cards":
            folder = CONFIGS if what == "configs" else CARDS
            rows = [(name, _headline(folder / f"{name}.yaml")) for name in names_below(folder)]
        case "backbones":
            rows = [(name, "") for name in backbone_names()]
        case "zoo":
            rows = [(entry.name, f"{entry.source}, {entry.figures}") for entry in ZOO]
        case _:
            raise ValueError(f"list takes configs, cards, backbones or zoo, got {what!r}")
    width = max(len(name) for name, _ in rows)
    return [f"{name:{width}}  {text}".rstrip() for name, text in rows]


def _headline(path: Path) -> str:
    """Returns the first line of a file's comment."""
    with path.open(encoding="utf-8") as lines:
        first = next(lines, "")
    return first.removeprefix("#").strip() if first.startswith("#") else ""

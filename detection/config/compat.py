"""Migrates configs of earlier versions to the current keys, by a table of changes.

A config in a run directory or a checkpoint has the key ``format``.  Format 1 had no such key, and one schema for all
programs, so its written configs have the sections of all programs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from detection.config.schema import leaves, section_classes

__all__ = ["CHANGES", "FORMAT", "Change", "format_of", "hint", "migrate"]

FORMAT = 3
_ALL_PROGRAMS = {"alternating", "localization", "classification"}  # sections that every written config of format 1 has

Tree = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """A key that was added, removed or renamed in a format.

    Attributes:
        format: the first format without ``old`` and with ``new``.
        old: removed dotted key; None if none.
        new: added dotted key; None if none.
        value: computes the value of ``new`` from the whole older config; None: the value of ``old``.
        programs: programs whose configs have ``new``.
        repair: what to write by hand in place of ``old``.
    """

    format: int
    old: str | None
    new: str | None
    value: Callable[[Tree], Any] | None = None
    programs: tuple[str, ...] = ("detection", "classification", "localization")
    repair: str = ""


def _architecture(old: Tree) -> str:
    cascade = "cascade_" if _get(old, "box.cascade") else ""
    return f"{cascade}mask_rcnn" if _get(old, "mask.enabled") else f"{cascade or 'faster_'}rcnn"


def _mask_geometry(old: Tree) -> str:
    """Returns the only mask geometry of earlier versions; a detector without masks needs none."""
    return "torchvision" if "mask" in (_get(old, "architecture") or _architecture(old)) else "exact"


CHANGES: tuple[Change, ...] = (
    Change(
        format=2,
        old="mask.enabled",
        new="architecture",
        value=_architecture,
        programs=("detection",),
        repair="architecture: mask_rcnn",
    ),
    Change(
        format=2,
        old="box.cascade",
        new="cascade.ious",
        value=lambda old: _get(old, "box.cascade") or [0.5, 0.6, 0.7],
        programs=("detection",),
        repair="architecture: cascade_rcnn, and cascade.ious if they are not 0.5, 0.6, 0.7",
    ),
    Change(format=2, old="mask.loss_weight", new=None, repair="nothing, the loss of masks has weight 1"),
    # The test set was watched in training, and chose the best weights.
    Change(
        format=2,
        old=None,
        new="data.val",
        value=lambda old: _get(old, "data.test") or [],
        programs=("detection", "classification"),
    ),
    # What the 4-step recipe passes from step to step are arguments now.
    Change(format=2, old="solver.fixed", new=None, repair="nothing; `resdet alternating` runs the 4-step recipe"),
    Change(format=2, old="data.proposals", new=None, repair="nothing; `resdet alternating` runs the 4-step recipe"),
    Change(format=3, old=None, new="mask.geometry", value=_mask_geometry, programs=("detection",)),
)


def format_of(tree: Mapping[str, Any]) -> int:
    """Returns the format of a config: its ``format``, else 1 for a written config, else the current format."""
    if "format" in tree:
        return tree["format"]
    return 1 if tree.keys() >= _ALL_PROGRAMS else FORMAT


def migrate(tree: Mapping[str, Any], schema: type, *, program: str) -> Tree:
    """Returns ``tree`` with the keys of the current format, without format 1's keys for other programs.

    Raises:
        ValueError: a later version wrote the config.
    """
    own = format_of(tree)
    if not isinstance(own, int) or isinstance(own, bool) or not 1 <= own <= FORMAT:
        raise ValueError(f"format is {own!r}, and this version reads 1 to {FORMAT}; a later version wrote it: update")
    old = {name: value for name, value in tree.items() if name != "format"}
    new = deepcopy(old)
    for change in CHANGES:
        if change.format <= own:
            continue
        if change.old is not None:
            _remove(new, change.old)
        if change.new is not None and program in change.programs:
            given = change.value(old) if change.value else _get(old, change.old or "")
            _set(new, change.new, given)
    return _known(new, schema) if own == 1 else new


def hint(key: str) -> str | None:
    """Returns what to write in place of the dotted ``key`` of an earlier version; None for any other key."""
    found = next((change for change in CHANGES if change.old == key), None)
    return found and f"format {found.format} has it no more; write {found.repair}"


def _known(tree: Tree, schema: type) -> Tree:
    """Returns ``tree`` without the sections and keys that format 1 had for other programs."""
    sections, kept = section_classes(schema), Tree()
    for name, value in tree.items():
        if isinstance(value, Mapping) and name in sections:
            kept[name] = _known(dict(value), sections[name])
        elif name in getattr(schema, "__dataclass_fields__", {}):
            kept[name] = value
    return kept


def _get(tree: Mapping[str, Any], key: str) -> Any:
    return dict(leaves(tree)).get(key)


def _remove(tree: Tree, key: str) -> None:
    section, _, name = key.rpartition(".")
    if isinstance(holder := tree.get(section), dict):
        holder.pop(name, None)


def _set(tree: Tree, key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    holder = tree.setdefault(section, {}) if section else tree
    holder[name] = value

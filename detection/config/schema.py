"""Dataclasses as schema of YAML files, with checks of types, ranges and choices.

``checked`` is pydantic's dataclass in strict mode: a boolean or a text is no number, and unknown keys are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, field, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, cast, dataclass_transform, get_args, get_type_hints

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

__all__ = [
    "BACKBONE",
    "MODEL",
    "Count",
    "Fraction",
    "NonNegative",
    "NonNegativeInt",
    "Positive",
    "checked",
    "different_meaning",
    "flatten",
    "leaves",
    "meaning_keys",
    "section_classes",
]

SchemaT = TypeVar("SchemaT")

Count = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]

# Metadata of a field that changes the meaning of weights but neither their names nor their shapes.
BACKBONE: Mapping[str, str] = {"binds": "backbone"}  # also for the weights of a backbone alone
MODEL: Mapping[str, str] = {"binds": "model"}


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field, Field))
def checked(cls: type[SchemaT]) -> type[SchemaT]:
    """Makes ``cls`` a frozen, keyword-only dataclass that checks its values."""
    options = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return cast(type[SchemaT], pydantic_dataclass(cls, frozen=True, kw_only=True, config=options))


def section_classes(schema: type) -> dict[str, type]:
    """Returns the sections of a config class: field name -> dataclass."""
    found = {}
    for name, hint in get_type_hints(schema).items():
        kinds = [kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)]
        if kinds:
            found[name] = kinds[0]
    return found


def meaning_keys(schema: type, binds: Literal["backbone", "model"] = "model") -> tuple[str, ...]:
    """Returns the dotted keys that change the meaning of weights, for a whole ``model`` or a ``backbone`` alone."""
    wanted = {BACKBONE["binds"]} | {binds}
    return tuple(key for key, metadata in _described(schema, "") if metadata.get("binds") in wanted)


def flatten(config: Any) -> dict[str, Any]:
    """Returns the values of the dataclass ``config`` by dotted key, in JSON types."""
    return dict(leaves(json.loads(json.dumps(asdict(config)))))


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) for all values in nested mappings; an empty mapping is a value."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def different_meaning(before: Any, after: Any, binds: Literal["backbone", "model"] = "model") -> list[str]:
    """Returns a line "key is X here, and was Y" for each differing key that changes the meaning of weights."""
    old, new = flatten(before), flatten(after)
    keys = [key for key in meaning_keys(type(after), binds) if key in old]
    return [f"{key} is {new[key]!r} here, and was {old[key]!r}" for key in keys if old[key] != new[key]]


def _described(schema: type, prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    sections = section_classes(schema)
    for item in fields(schema):  # pyright: ignore[reportArgumentType]  # ``type`` can't say "a dataclass"
        if item.name in sections:
            yield from _described(sections[item.name], f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", item.metadata

"""Messages about config errors: key path, value, expected value, nearest name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from pydantic import ValidationError

from detection.config.compat import hint
from detection.config.schema import section_classes

__all__ = ["describe"]

MAX_VALUE = 80  # characters of a value in a message

# Type of pydantic's error -> expected value; braces are filled from the error's context.
EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping, such as {{a: b}}",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "literal_error": "one of {expected}",
    "string_type": "a text",
    "too_long": "a list of at most {max_length}",
    "too_short": "a list of at least {min_length}",
    "tuple_type": "a list, such as [a, b]",
}
# Config sections of other programs.
COMMANDS = {
    "classification": "resdet pretrain",
    "edges": "resdet edges",
    "localization": "resdet localize",
    "rpn": "resdet train",
}


def describe(error: ValidationError, schema: type) -> str:
    """Returns all problems of ``error``, one per line."""
    lines = [_problem(item, schema) for item in error.errors(include_url=False)]
    return lines[0] if len(lines) == 1 else f"{len(lines)} problems:\n" + "\n".join(f"  {line}" for line in lines)


def _problem(item: Mapping[str, Any], schema: type) -> str:
    path, kind, value = _dotted(item["loc"]), item["type"], item["input"]
    if kind == "unexpected_keyword_argument":
        return f"no config key {path!r}; {_nearest(item['loc'], schema)}"
    if kind == "missing" or kind == "missing_keyword_only_argument":
        return f"config key {path!r} is missing"
    if kind == "value_error":  # raised by __post_init__; its message begins with a key
        message = str(item["ctx"]["error"])
        return f"{path}.{message}" if path else message
    shown = repr(value) if len(repr(value)) <= MAX_VALUE else repr(value)[:MAX_VALUE] + "..."
    if kind.startswith("dataclass"):
        return f"config key {path!r} takes a section of keys, got {shown}"
    expected = EXPECTED[kind].format(**item.get("ctx", {})) if kind in EXPECTED else item["msg"]
    choices = re.findall(r"'([^']*)'", expected) if kind == "literal_error" else []
    return f"config key {path!r} takes {expected}, got {shown}{_meant(str(value), choices)}"


def _dotted(places: Iterable[str | int]) -> str:
    """Returns the place of an error as a key, such as section.key[2]."""
    text = ""
    for place in places:
        text += f"[{place}]" if isinstance(place, int) else f".{place}" if text else str(place)
    return text


def _nearest(places: Sequence[str | int], schema: type) -> str:
    """Returns a suggestion for the unknown key at ``places``."""
    *sections, name = map(str, places)
    path = ".".join([*sections, name])
    if old := hint(path):
        return old
    if not sections and name in COMMANDS and "data" in section_classes(schema):
        return f"it belongs to a config of `{COMMANDS[name]}`: run that command instead"
    owner = schema
    for section in sections:
        owner = section_classes(owner).get(section, owner)
    known = [f.name for f in fields(owner)]  # pyright: ignore[reportArgumentType]  # ``type`` can't say "a dataclass"
    everywhere = list(_keys(schema, ""))
    near = [key for key in everywhere if key.rpartition(".")[2] == name]
    near = near or [_dotted([*places[:-1], key]) for key in difflib.get_close_matches(name, known, n=1)]
    if near := near or difflib.get_close_matches(path, everywhere, n=1):
        return f"did you mean {near[0]!r}?"
    return f"known keys: {', '.join(known)}"


def _keys(schema: type, prefix: str) -> Iterable[str]:
    sections = section_classes(schema)
    for item in fields(schema):  # pyright: ignore[reportArgumentType]  # ``type`` can't say "a dataclass"
        if item.name in sections:
            yield from _keys(sections[item.name], f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}"


def _meant(value: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(value, choices, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""

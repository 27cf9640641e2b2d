"""Converts values of JSON and XML files to numbers, flags, boxes and texts, with errors that name field and value.

Text that spells a value is converted, as tools write ``"iscrowd": "0"``.  Anything else is refused, since Python would
take the text "0" for true, true for 1 and "1234" for a box.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Any

from detection.data.images import MAX_PIXELS

__all__ = ["MISSING", "FieldError", "area", "box", "flag", "mapping", "number", "shown", "text", "whole_number"]

MISSING: Any = object()  # the value of a field that a record lacks

WHOLE = re.compile(r"\s*[+-]?\d{1,19}(\.0*)?\s*", re.ASCII)
NUMBER = re.compile(r"\s*[+-]?((\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|nan|inf|infinity)\s*", re.ASCII | re.IGNORECASE)
MAX_NUMBER = 100  # characters; no tool writes more
FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


class FieldError(ValueError):
    """A field without a valid value."""

    def __init__(self, key: str, value: Any, expected: str) -> None:
        found = "is missing" if value is MISSING else f"is {shown(value)}"
        super().__init__(f"{key} {found}, expected {expected}")


def whole_number(value: Any, key: str) -> int:
    """Returns ``value`` as a 64-bit integer: 3, 3.0 or "3"."""
    if type(value) is int:
        found = value
    elif type(value) is float and value.is_integer():
        found = int(value)
    elif type(value) is str and len(value) <= MAX_NUMBER and WHOLE.fullmatch(value):
        found = int(value.partition(".")[0])
    else:
        raise FieldError(key, value, "a whole number")
    if not -(2**63) <= found < 2**63:
        raise FieldError(key, value, "a whole number of 64 bits")
    return found


def number(value: Any, key: str, expected: str = "a number") -> float:
    """Returns ``value`` as a number, which may be infinite or NaN: 2.5, 2 or "2.5"."""
    kind = type(value)
    if kind is float:
        return value
    if kind is int or (kind is str and len(value) <= MAX_NUMBER and NUMBER.fullmatch(value)):
        try:
            return float(value)
        except OverflowError:
            pass
    raise FieldError(key, value, expected)


def flag(value: Any, key: str) -> bool:
    """Returns ``value`` as true or false: 0, 1, false, true, 0.0, 1.0 or the text of one."""
    if type(value) in (bool, int, float) and value in (0, 1):
        return bool(value)
    if type(value) is str and (found := FLAGS.get(value.strip().lower())) is not None:
        return found
    raise FieldError(key, value, "0 or 1")


def box(value: Any, key: str) -> tuple[float, float, float, float]:
    """Returns the four numbers of a list."""
    expected = "[x, y, width, height]"
    if type(value) is not list or len(value) != 4:
        raise FieldError(key, value, expected)
    try:
        x, y, width, height = (number(item, key) for item in value)
    except FieldError as error:
        raise FieldError(key, value, f"{expected}, four numbers") from error
    return x, y, width, height


def area(value: Any, key: str) -> float:
    """Returns ``value`` as an area in square pixels, at most ``MAX_PIXELS``."""
    found = number(value, key)
    if not 0 <= found <= MAX_PIXELS:
        raise FieldError(key, value, f"square pixels, 0 to {MAX_PIXELS}")
    return found


def text(value: Any, key: str) -> str:
    """Returns ``value`` as text that can be encoded, as JSON also allows lone surrogates."""
    if type(value) not in (str, int):  # a class may be called 7
        raise FieldError(key, value, "text")
    try:
        found = str(value)
        found.encode()
    except ValueError as error:  # also a number of thousands of digits
        raise FieldError(key, value, "text of whole characters") from error
    return found


def mapping(value: Any, key: str) -> Mapping[str, Any]:
    """Returns ``value``, which is a JSON object."""
    if type(value) is not dict:
        raise FieldError(key, value, "an object with keys")
    return value


def shown(value: Any) -> str:
    """Returns the start of ``value`` for a message."""
    if type(value) is str:
        return ascii(value) if len(value) <= 60 else f"{value[:60]!a}..."
    try:
        return reprlib.repr(value)
    except ValueError:  # a number of thousands of digits
        return "a number of thousands of digits"

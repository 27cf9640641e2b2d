"""Mirrors detection/data/readers/values.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from detection.data.readers.values import MISSING, FieldError, area, box, flag, number, text, whole_number


@pytest.mark.parametrize(
    ("value", "expected"), [(3, 3), (3.0, 3), ("3", 3), (" -3 ", -3), ("+3.00", 3), (2**63 - 1, 2**63 - 1)]
)
def test_whole_numbers(value: object, expected: int) -> None:
    found = whole_number(value, "id")
    assert (type(found), found) == (int, expected)


@pytest.mark.parametrize("value", [("2.5", 2.5), ("1e3", 1000.0), (".5", 0.5), ("-7", -7.0), (7, 7.0), (0.25, 0.25)])
def test_numbers(value: tuple[object, float]) -> None:
    assert number(value[0], "xmin") == value[1]


def test_numbers_may_be_infinite() -> None:
    assert number("-inf", "xmin") == -math.inf
    assert math.isnan(number("NaN", "xmin"))


@pytest.mark.parametrize("read", [whole_number, number, flag, box, area])
@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        "",
        "x",
        "1_0",
        "٣",
        "0x1",
        [],
        {},
        [1],
        {"a": 1},
        10**400,
        pytest.param("9" * 5000, id="long"),
        MISSING,
        "12 34",
    ],
)
def test_what_is_no_value_is_refused_with_its_key(read: Callable[[Any, str], object], value: object) -> None:
    if read is flag and value is True:
        assert flag(value, "field") is True
        return
    with pytest.raises(FieldError, match=r"^field is .*, expected ") as error:
        read(value, "field")
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("value", ["a\ud800", None, [], {}, 1.5, True, pytest.param(10**5000, id="huge")])
def test_texts_can_be_written(value: object) -> None:
    with pytest.raises(FieldError, match="file_name is "):
        text(value, "file_name")
    assert (text("käse", "name"), text(7, "name")) == ("käse", "7")

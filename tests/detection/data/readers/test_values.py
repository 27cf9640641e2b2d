"""Mirrors detection/data/readers/values.py."""

import math

import pytest

from detection.data.readers.values import MISSING, FieldError, area, box, flag, number, text, whole_number


def test_values_may_be_written_as_texts() -> None:
    for value, whole in ((3, 3), (3.0, 3), ("3", 3), (" -3 ", -3), ("+3.00", 3), (2**63 - 1, 2**63 - 1)):
        found = whole_number(value, "id")
        assert (type(found), found) == (int, whole)
    for value, expected in (("2.5", 2.5), ("1e3", 1000.0), (".5", 0.5), ("-7", -7.0), (7, 7.0), ("-inf", -math.inf)):
        assert number(value, "xmin") == expected
    assert math.isnan(number("NaN", "xmin"))
    assert [flag(value, "f") for value in (1, 1.0, "1", "1.0", " 1 ", "True", True)] == [True] * 7
    assert [flag(value, "f") for value in (0, "0", " 0.0 ", "false", "False", False)] == [False] * 6
    assert (text("käse", "name"), text(7, "name")) == ("käse", "7")


@pytest.mark.parametrize("read", [whole_number, number, flag, box, area])
def test_what_is_no_value_is_refused_with_its_key(read) -> None:
    others = [None, [], {}, [1], {"a": 1}, 10**400, MISSING] + [True] * (read is not flag)
    for value in [*others, "", "x", "1_0", "٣", "0x1", "12 34", "9" * 5000]:
        with pytest.raises(FieldError, match=r"^field is .*, expected ") as error:
            read(value, "field")
        assert len(str(error.value)) < 250


def test_texts_can_be_written() -> None:
    for value in ("a\ud800", None, [], {}, 1.5, True, 10**5000):
        with pytest.raises(FieldError, match="file_name is "):
            text(value, "file_name")

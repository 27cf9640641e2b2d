"""Mirrors detection/data/readers/values.py and json_lists.py."""

import io
import json
import math

import pytest

from detection.data.readers.json_lists import UnsuitedError, decoded, list_blocks
from detection.data.readers.values import MISSING, FieldError, area, box, flag, number, text, whole_number


def test_values_may_be_written_as_texts_and_texts_be_writable() -> None:
    for value, whole in ((3, 3), (3.0, 3), ("3", 3), (" -3 ", -3), ("+3.00", 3), (2**63 - 1, 2**63 - 1)):
        found = whole_number(value, "id")
        assert (type(found), found) == (int, whole)
    for value, expected in (("2.5", 2.5), ("1e3", 1000.0), (".5", 0.5), ("-7", -7.0), (7, 7.0), ("-inf", -math.inf)):
        assert number(value, "xmin") == expected
    assert math.isnan(number("NaN", "xmin"))
    assert [flag(value, "f") for value in (1, 1.0, "1", "1.0", " 1 ", "True", True)] == [True] * 7
    assert [flag(value, "f") for value in (0, "0", " 0.0 ", "false", "False", False)] == [False] * 6
    assert (text("käse", "name"), text(7, "name")) == ("käse", "7")
    for value in ("a\ud800", None, [], {}, 1.5, True, 10**5000):
        with pytest.raises(FieldError, match="file_name is "):
            text(value, "file_name")


@pytest.mark.parametrize("read", [whole_number, number, flag, box, area])
def test_what_is_no_value_is_refused_with_its_key(read) -> None:
    others = [None, [], {}, [1], {"a": 1}, 10**400, MISSING] + [True] * (read is not flag)
    for value in [*others, "", "x", "1_0", "٣", "0x1", "12 34", "9" * 5000]:
        with pytest.raises(FieldError, match=r"^field is .*, expected ") as error:
            read(value, "field")
        assert len(str(error.value)) < 250
    assert box([1, "2.5", 3, 4], "bbox") == (1, 2.5, 3, 4)
    for four in ([1, 2, 3, None], [1] * 5, "1234"):
        with pytest.raises(FieldError, match=r"^bbox is .*, expected "):
            box(four, "bbox")


RECORDS = [{"id": number, "note": "x}, " + "y" * 20_000, "rle": {"size": [1, 2]}} for number in range(9)]


def lists(content, size):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return [(key, decoded(block)) for key, block in list_blocks(io.BytesIO(text), ("one", "two"), size=size)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(("size", "several"), [(1, True), (100_000, True), (10**7, False)])
def test_blocks_hold_every_record_once_in_order(size, several, indent) -> None:
    text = json.dumps({"info": {"one": [5]}, "two": RECORDS, "n": 1.5, "one": []}, indent=indent).encode()
    found = lists(text, size)
    assert [record for key, block in found if key == "two" for record in block] == RECORDS
    assert (found[-1], len(found) > 2) == (("one", []), several)


def test_blocks_that_end_within_a_text_or_are_no_lists_of_objects_are_unsuited() -> None:
    records = [{"note": "}, {" * 30_000}]
    assert lists({"one": records}, 10**7) == [("one", records)]
    with pytest.raises(UnsuitedError):
        lists({"one": records}, 1)
    for broken in [b"", *BROKEN.encode().split(), b'{"one" []}', b"\xef\xbb\xbf{}", b'{"one": [{}, ]}']:
        with pytest.raises(UnsuitedError):
            lists(broken, 100)
    assert lists(b" {} ", 100) == lists(b'{"x": {"one": []}}', 100) == []


BROKEN = '[] { {"one":[ {"one":[{} {"one":[{}],} {"one":[{}]}5 {"one":5} {"one":[5]} {"one":[],"one":[]} {"n":1'

"""Mirrors detection/data/readers/json_lists.py."""

import io
import json

import pytest

from detection.data.readers.json_lists import UnsuitedError, decoded, list_blocks

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


def test_a_block_that_ends_within_a_text_is_no_json() -> None:
    records = [{"note": "}, {" * 30_000}]
    assert lists({"one": records}, 10**7) == [("one", records)]
    with pytest.raises(UnsuitedError):
        lists({"one": records}, 1)


BROKEN = '[] { {"one":[ {"one":[{} {"one":[{}],} {"one":[{}]}5 {"one":5} {"one":[5]} {"one":[],"one":[]} {"n":1'


def test_what_is_no_object_of_lists_of_objects_is_unsuited() -> None:
    for text in [b"", *BROKEN.encode().split(), b'{"one" []}', b"\xef\xbb\xbf{}", b'{"one": [{}, ]}']:
        with pytest.raises(UnsuitedError):
            lists(text, 100)
    assert lists(b" {} ", 100) == lists(b'{"x": {"one": []}}', 100) == []

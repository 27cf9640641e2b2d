"""Mirrors detection/evaluation/printable.py."""

from __future__ import annotations

import pytest

from detection.evaluation.printable import printable


@pytest.mark.parametrize(
    "text", ["", "dining table", "кошка", "猫\u3000犬", "👨\u200d👩\u200d👧", "می\u200cروم", "a\u00a0b", "$x$"]
)
def test_words_of_all_scripts_stay(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("a\0\x1b[31m\x85", r"a\x00\x1b[31m\x85"),
        ("a\u2028b\u202ec", r"a\u2028b\u202ec"),
        ("a\ud800\uffff", r"a\ud800\uffff"),
    ],
)
def test_what_breaks_lines_or_files_is_escaped(text: str, expected: str) -> None:
    assert printable(text) == expected

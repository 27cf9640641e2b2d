"""Mirrors detection/evaluation/text_table.py."""

from __future__ import annotations

import os
import sys

import pytest

from detection.evaluation.text_table import text_table


def test_by_hand() -> None:
    table = text_table(["run", "AP", "state"], [["a", "7.5", "done"], ["longer", "100.0", "to do"]], left=(0, 2))
    assert table.splitlines() == [
        "run         AP  state",
        "a          7.5  done",
        "longer   100.0  to do",
    ]


def test_no_rows() -> None:
    assert text_table(["class", "AP"], []) == "class      AP"


def test_long_names_go_on_below_and_numbers_stay_whole() -> None:
    lines = text_table(["class", "AP"], [["word " * 30, "12.3"], ["x" * 100, "45.6"]]).splitlines()
    assert max(map(len, lines)) == 80
    assert [line.split()[-1] for line in lines if "12.3" in line or "45.6" in line] == ["12.3", "45.6"]
    assert sum(line.count("x") for line in lines) == 100
    assert sum(line.count("word") for line in lines) == 30


def test_names_of_rows_stay_whole_before_other_words() -> None:
    header, row = ["", *["AP"] * 5, "paper"], ["+ multi-scale testing", *["12.3"] * 5, "59.0 / 37.4 (test-dev)"]
    lines = text_table(header, [row], left=(0, 6)).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["+", "(test-dev)"]
    assert lines[1].startswith("+ multi-scale testing ")


def test_markup_stays_text_and_control_characters_are_escaped() -> None:
    table = text_table(["class", "AP"], [["[red]a[/red] $x$ :smile:", "1"], ["b\nc\0d\x1b[31m", "2"]])
    assert [line.rpartition("  ")[0].rstrip() for line in table.splitlines()[1:]] == [
        "[red]a[/red] $x$ :smile:",
        r"b\nc\x00d\x1b[31m",
    ]


def test_a_terminal_gives_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_, **__: os.terminal_size((120, 20)))
    assert len(text_table(["class", "AP"], [["x" * 110, "1"]]).splitlines()) == 2

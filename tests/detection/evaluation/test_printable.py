"""Mirrors detection/evaluation/printable.py and text_table.py."""

import os
import sys

from detection.evaluation.printable import printable
from detection.evaluation.text_table import text_table


def test_words_of_all_scripts_stay_and_what_breaks_lines_or_files_is_escaped() -> None:
    for text in ("", "dining table", "кошка", "猫\u3000犬", "👨\u200d👩\u200d👧", "می\u200cروم", "a\u00a0b", "$x$"):
        assert printable(text) == text
    assert printable("a\nb\tc\r\0\x1b[31m\x85") == r"a\nb\tc\r\x00\x1b[31m\x85"
    assert printable("a\u2028b\u202ec\ud800\uffff") == r"a\u2028b\u202ec\ud800\uffff"


def test_table_by_hand() -> None:
    table = text_table(["run", "AP", "state"], [["a", "7.5", "done"], ["longer", "100.0", "to do"]], left=(0, 2))
    assert table.splitlines() == ["run         AP  state", "a          7.5  done", "longer   100.0  to do"]
    assert text_table(["class", "AP"], []) == "class      AP"


def test_long_names_go_on_below_and_numbers_stay_whole(monkeypatch) -> None:
    lines = text_table(["class", "AP"], [["word " * 30, "12.3"], ["x" * 100, "45.6"]]).splitlines()
    assert max(map(len, lines)) == 80
    assert [line.split()[-1] for line in lines if "12.3" in line or "45.6" in line] == ["12.3", "45.6"]
    assert (sum(line.count("x") for line in lines), sum(line.count("word") for line in lines)) == (100, 30)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_, **__: os.terminal_size((120, 20)))
    assert len(text_table(["class", "AP"], [["x" * 110, "1"]]).splitlines()) == 2  # a terminal gives the width


def test_names_of_rows_stay_whole_before_other_words() -> None:
    header, row = ["", *["AP"] * 5, "paper"], ["+ multi-scale testing", *["12.3"] * 5, "59.0 / 37.4 (test-dev)"]
    lines = text_table(header, [row], left=(0, 6)).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["+", "(test-dev)"]
    assert lines[1].startswith("+ multi-scale testing ")


def test_markup_stays_text_and_control_characters_are_escaped() -> None:
    names = ["[red]a[/red] $x$ :smile:", "b\nc\0d\x1b[31m"]
    table = text_table(["class", "AP"], [[names[0], "1"], [names[1], "2"]])
    assert [line.rpartition("  ")[0].rstrip() for line in table.splitlines()[1:]] == [names[0], r"b\nc\x00d\x1b[31m"]

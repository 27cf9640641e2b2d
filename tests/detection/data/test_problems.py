"""Mirrors detection/data/problems.py."""

from __future__ import annotations

import pytest

from detection.data.problems import Problem, Severity, listed, refuse_errors, summarize


def problem(severity: Severity, number: int = 1, kind: str = "box without area") -> Problem:
    return Problem(severity, kind, f"{number}.xml", f"object {number}")


def test_a_problem_reads_file_kind_and_object() -> None:
    assert str(problem("error", 3)) == "3.xml: box without area: object 3"


def test_no_errors_pass() -> None:
    refuse_errors([], "data set 'a'")
    refuse_errors([problem("note"), problem("dropped")], "data set 'a'")


def test_one_error_is_named_with_its_source() -> None:
    with pytest.raises(ValueError, match=r"^data set 'a' has 1 error:\n  2\.xml: box without area: object 2$"):
        refuse_errors([problem("note", 1), problem("error", 2)], "data set 'a'")


def test_many_errors_are_counted_and_cut() -> None:
    with pytest.raises(ValueError, match="has 12 errors") as error:
        refuse_errors([problem("error", number) for number in range(12)], "data set 'a'", most=5)
    lines = str(error.value).splitlines()
    assert len(lines) == 7
    assert lines[1:3] == ["  0.xml: box without area: object 0", "  1.xml: box without area: object 1"]
    assert "7 more" in lines[-1]
    assert "resdet check" in lines[-1]


def test_as_many_errors_as_are_shown_are_not_cut() -> None:
    with pytest.raises(ValueError, match="has 5 errors") as error:
        refuse_errors([problem("error", number) for number in range(5)], "x", most=5)
    assert "more" not in str(error.value)


def test_the_summary_counts_every_kind_but_errors() -> None:
    found = [problem("dropped", 1), problem("dropped", 2), problem("note", 3, "box cut"), problem("error", 4)]
    assert summarize(found) == "2 x box without area (dropped), 1 x box cut (note)"


def test_the_summary_of_nothing_is_empty() -> None:
    assert summarize([]) == summarize([problem("error")]) == ""


def test_a_problem_that_stands_for_many_counts_as_many() -> None:
    found = [
        Problem("note", "boxes scaled", "a.txt", "40 images", 40),
        Problem("note", "boxes scaled", "b.txt", "1", 1),
    ]
    assert summarize(found) == "41 x boxes scaled (note)"


def test_long_lists_are_cut_with_their_count() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(range(1000), most=3) == "0, 1, 2 and 997 more"
    assert listed([]) == "none"

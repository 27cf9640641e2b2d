"""Mirrors detection/data/problems.py."""

import pytest

from detection.data.problems import Problem, listed, refuse_errors, summarize


def problem(severity, number=1, kind="box without area"):
    return Problem(severity, kind, f"{number}.xml", f"object {number}")


def test_errors_are_named_with_their_source_counted_and_cut() -> None:
    refuse_errors([problem("note"), problem("dropped")], "data set 'a'")
    with pytest.raises(ValueError, match=r"^data set 'a' has 1 error:\n  2\.xml: box without area: object 2$"):
        refuse_errors([problem("note", 1), problem("error", 2)], "data set 'a'")
    for count, lines in ((12, 7), (5, 6)):
        with pytest.raises(ValueError, match=f"has {count} errors") as error:
            refuse_errors([problem("error", number) for number in range(count)], "data set 'a'", most=5)
        found = str(error.value).splitlines()
        assert (len(found), "7 more" in found[-1] and "resdet check" in found[-1]) == (lines, count == 12)


def test_the_summary_counts_every_kind_but_errors() -> None:
    found = [problem("dropped", 1), problem("dropped", 2), problem("note", 3, "box cut"), problem("error", 4)]
    many = Problem("note", "box cut", "a.txt", "40 images", 40)
    assert summarize([*found, many]) == "2 x box without area (dropped), 41 x box cut (note)"
    assert summarize([]) == summarize([problem("error")]) == ""
    assert (listed(["a", "b"]), listed([])) == ("a, b", "none")
    assert listed(range(1000), most=3) == "0, 1, 2 and 997 more"

"""Numbers as they are printed."""

from __future__ import annotations

from detection.report.words import differing, number, percent_interval, spread


def test_by_hand() -> None:
    assert spread({"mean": 0.5, "sd": 0.012}) == "50.0 ± 1.2"
    assert spread({"mean": 1.234, "sd": None}, scale=1, digits=2) == "1.23"
    assert percent_interval({"value": 0.5, "low": 0.45, "high": 0.55}) == "50.0 [45.0, 55.0]"
    assert differing({"value": 0.01, "low": -0.02, "high": 0.04}) == "+1.0 [\N{MINUS SIGN}2.0, +4.0]"
    assert differing({"value": -0.0001, "low": None, "high": None}) == "+0.0"
    assert number(1234.56) == "1,234.6"


def test_no_value_is_a_dash() -> None:
    unknown = {"value": None, "low": None, "high": None}
    shown = [
        spread({"mean": None, "sd": None}),
        percent_interval(unknown),
        differing(None),
        number(None),
    ]
    assert shown == ["-"] * 4

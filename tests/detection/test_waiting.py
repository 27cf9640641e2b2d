"""Mirrors detection/waiting.py."""

from datetime import timedelta

import pytest

from detection.waiting import longest_wait

KEY = "RESDET_STEP_MINUTES"


def test_the_environment_sets_a_limit(monkeypatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    assert longest_wait(KEY) == timedelta(minutes=10)
    monkeypatch.setenv(KEY, "0.5")
    assert longest_wait(KEY) == timedelta(seconds=30)
    for text in ("", "soon", "0", "-3", "nan", "inf"):
        monkeypatch.setenv(KEY, text)
        with pytest.raises(ValueError, match=f"{KEY} takes a number of minutes above 0, got"):
            longest_wait(KEY)

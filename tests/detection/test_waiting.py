"""Mirrors detection/waiting.py."""

from __future__ import annotations

from datetime import timedelta

import pytest

from detection.waiting import longest_wait


def test_the_environment_sets_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESDET_STEP_MINUTES", raising=False)
    assert longest_wait("RESDET_STEP_MINUTES") == timedelta(minutes=10)
    monkeypatch.setenv("RESDET_STEP_MINUTES", "0.5")
    assert longest_wait("RESDET_STEP_MINUTES") == timedelta(seconds=30)


@pytest.mark.parametrize("text", ["", "soon", "0", "-3", "nan", "inf"])
def test_what_is_no_limit_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("RESDET_BATCH_MINUTES", text)
    with pytest.raises(ValueError, match="RESDET_BATCH_MINUTES takes a number of minutes above 0, got"):
        longest_wait("RESDET_BATCH_MINUTES")

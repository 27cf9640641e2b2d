"""Mirrors detection/progress.py and waiting.py."""

import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from detection import progress
from detection.progress import SCREEN, Pace, bar, tracked
from detection.waiting import longest_wait

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, time
from detection.progress import SCREEN
for number in range(5):
    SCREEN.print(str(number))
    time.sleep(0.2)
print('also printed')
open(sys.argv[1], 'w').write('the end')
"""


def test_elsewhere_than_on_a_terminal_a_plain_line_comes_now_and_then(monkeypatch, capsys) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with tracked("abc", "testing", total=3, count=lambda _: 1) as items:
        assert list(items) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""  # it took no minute
    monkeypatch.setattr(progress, "SECONDS_PER_LINE", 0.0)
    with bar("a.zip", unit="bytes") as move:
        move(1_500_000, None)
        move(3_000_000, 6_000_000)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "a.zip: 1.5 MB"
    assert second.startswith("a.zip: 3.0 MB of 6.0 MB, 0:00:00 left")


def test_a_bar_inside_a_bar_is_drawn_below_it(terminal) -> None:
    with bar("trainings", 4, unit="steps") as move:
        move(1, None)
        with tracked(range(2), "testing", total=4, count=lambda _: 2) as items:
            for item in items:
                SCREEN.print("in between")
                while item and "2 of 4 images" not in terminal.getvalue():  # it is drawn ten times a second
                    time.sleep(0.02)
    shown = terminal.lines()
    place = next(place for place, line in enumerate(shown) if "2 of 4 images" in line)
    assert shown[place].startswith("testing ")
    assert shown[place - 1].startswith("trainings ")
    assert "1 of 4 steps" in shown[place - 1]
    assert shown.count("in between") == 2
    assert max(map(len, shown)) <= 80


def test_time_left_counts_from_the_first_look(monkeypatch) -> None:
    now = iter([100.0, 110.0, 120.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    pace: Any = Pace()
    assert pace.left(50, 100) is None
    assert pace.left(60, 100).total_seconds() == 40
    assert pace.left(60, None) is None


def test_stdout_that_is_closed_early_ends_no_training(tmp_path: Path) -> None:
    # The reader goes away after two lines, before the program writes the third.
    command = f'{sys.executable} -c "$PROGRAM" {tmp_path}/done | head -2; exit ${{PIPESTATUS[0]}}'
    env = {"PROGRAM": PROGRAM, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", command], check=False, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n1\n", "")
    assert (tmp_path / "done").read_text() == "the end"


def test_the_environment_sets_a_limit(monkeypatch) -> None:
    key = "RESDET_STEP_MINUTES"
    monkeypatch.delenv(key, raising=False)
    assert longest_wait(key) == timedelta(minutes=10)
    monkeypatch.setenv(key, "0.5")
    assert longest_wait(key) == timedelta(seconds=30)
    for text in ("", "soon", "0", "-3", "nan", "inf"):
        monkeypatch.setenv(key, text)
        with pytest.raises(ValueError, match=f"{key} takes a number of minutes above 0, got"):
            longest_wait(key)

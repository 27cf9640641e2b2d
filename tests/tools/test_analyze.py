"""tools/analyze.py as a program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def analyze(*args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "analyze.py"), *map(str, args)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_no_run_directory_is_an_error_of_one_line(tmp_path: Path) -> None:
    done = analyze(tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"error: no config file '{tmp_path / 'config.yaml'}'\n"

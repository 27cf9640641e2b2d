"""Mirrors tools/localize.py; the steps themselves are tested in tests/detection/test_localization.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "localize.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_missing_data_are_named_in_one_line(tmp_path: Path) -> None:
    config = "configs/imagenet/loc_resnet101.yaml"
    found = run("--config-file", config, "--output-dir", str(tmp_path / "out"), f"data.root={tmp_path}")
    assert found.returncode == 1
    assert found.stderr.startswith("error: data set 'imagenet_loc' is not at")
    assert len(found.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()

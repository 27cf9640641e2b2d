"""Mirrors tools/write_schemas.py."""

from __future__ import annotations

import runpy
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "write_schemas.py"


def test_the_schemas_in_configs_are_those_of_today() -> None:
    for path, text in runpy.run_path(str(TOOL))["schemas"]().items():
        assert path.read_text() == text, f"{path} is old: run python tools/write_schemas.py"

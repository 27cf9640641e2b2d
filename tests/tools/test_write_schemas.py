"""Mirrors tools/write_schemas.py."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "write_schemas.py"


def test_each_program_has_a_schema_of_its_keys(tmp_path: Path) -> None:
    runpy.run_path(str(TOOL))["main"](tmp_path / "schema")
    written = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "schema").iterdir()}
    assert set(written) == {"classification", "detection", "edges", "localization"}
    assert "architecture" in written["detection"]["properties"]
    assert all(schema["additionalProperties"] is False for schema in written.values())

"""Prints pip constraints that pin packages to the oldest versions that pyproject.toml allows.

Usage: python tools/oldest_requirements.py torch torchvision > constraints.txt
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def oldest(names: Sequence[str], requirements: Sequence[str]) -> list[str]:
    """Returns ``name==version.*`` of the lowest version of each of ``names`` among ``requirements``.

    Raises:
        ValueError: a name that has no ``>=`` there.
    """
    matches = (re.match(r"([\w.-]+)>=([\w.]+)", text) for text in requirements)
    lowest: dict[str, str] = {match[1]: match[2] for match in matches if match}
    missing = [name for name in names if name not in lowest]
    if missing:
        raise ValueError(f"pyproject.toml has no lowest version of {missing}; it has those of {sorted(lowest)}")
    return [f"{name}=={lowest[name]}.*" for name in names]


if __name__ == "__main__":
    dependencies = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    print("\n".join(oldest(sys.argv[1:], dependencies)))

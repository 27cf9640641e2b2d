"""Puts faults into a copy of the sources, one at a time, and reports which of them the tests detect.

Usage: make mutants   (python tools/mutants.py [WORDS OF A FAULT])

The faults stand in tests/mutants.yaml.  Exits with 1 if one survives.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
COPIED = (
    "backbones",
    "detection",
    "tests",
    "tools",
    "configs",
    "datasets",
    "docs",
    "resdet.py",
    "pyproject.toml",
    "README.md",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A fault: ``put`` instead of ``find`` in ``file``, which the ``tests`` must detect."""

    fault: str
    file: str
    find: str
    put: str
    tests: str


def read_mutants() -> list[Mutant]:
    """Returns the faults of tests/mutants.yaml."""
    return [Mutant(**entry) for entry in yaml.safe_load((ROOT / "tests/mutants.yaml").read_text(encoding="utf-8"))]


def survives(mutant: Mutant, copy: Path) -> bool:
    """Returns whether the tests pass with the fault in the sources of ``copy``.

    Raises:
        ValueError: the tests can't be run.
    """
    file = copy / mutant.file
    right = file.read_text(encoding="utf-8")
    file.write_text(right.replace(mutant.find, mutant.put), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *shlex.split(mutant.tests)]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    finally:
        file.write_text(right, encoding="utf-8")
    if run.returncode not in (0, 1):
        raise ValueError(f"{mutant.fault}: {' '.join(command)} ended with {run.returncode}\n{run.stdout[-2000:]}")
    return run.returncode == 0


def main() -> int:
    """Tries the faults whose words were given, or all; returns the exit status."""
    chosen = [mutant for mutant in read_mutants() if all(word in mutant.fault for word in sys.argv[1:])]
    alive = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, copy / name)
        for mutant in chosen:
            started = time.perf_counter()
            lives = survives(mutant, copy)
            alive += lives
            word = "SURVIVES" if lives else "noticed "
            print(f"{word} {time.perf_counter() - started:5.0f} s  {mutant.fault}", flush=True)
    print(f"{len(chosen) - alive} of {len(chosen)} faults noticed")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())

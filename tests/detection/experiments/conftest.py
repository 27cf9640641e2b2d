"""Small scripts in the place of trainings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], tuple[str, ...]]:
    """A command that runs a script; it has ``option`` and ``config`` of a training's command line, and ``run``."""

    def make(script: str) -> tuple[str, ...]:
        path = tmp_path / "trainer.py"
        start = "import json, os, pathlib, sys, yaml\nplace = sys.argv.index('--output-dir')\nrest = sys.argv[place:]\n"
        start += "option = dict(zip(rest[::2], rest[1::2]))\nrun = pathlib.Path(option['--output-dir'])\n"
        start += "config = yaml.load(open(sys.argv[1]), yaml.CSafeLoader) if place == 2 else {}\n"
        path.write_text(start + script)
        # Without the packages of the site it starts sooner.
        return sys.executable, "-S", "-c", f"import sys; sys.path = {sys.path!r}; exec(open({str(path)!r}).read())"

    return make

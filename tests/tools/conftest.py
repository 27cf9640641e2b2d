"""Runs the programs of tools/ and datasets/ in this process, which saves their imports."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def program(monkeypatch, capsys):
    """Runs a file with these options and arguments; gives its exit status, or message, and both streams of output."""

    def run(path, options: str = "", *arguments):
        monkeypatch.chdir(ROOT)
        monkeypatch.syspath_prepend((ROOT / path).parent)
        monkeypatch.setattr(sys, "argv", [path, *options.split(), *map(str, arguments)])
        status = None
        try:
            runpy.run_path(str(ROOT / path), run_name="__main__")
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture(scope="session")
def names_of():
    """Gives the names that a file of tools/ defines, as its functions see them."""
    return lambda name: runpy.run_path(str(ROOT / "tools" / name))["main"].__globals__

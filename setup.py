"""Puts the cards and configs into the wheel; all else stands in pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithFiles(build_py):
    """Copies datasets/*.yaml and configs/**/*.yaml below detection/package_data, where detection/packaged.py looks."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # they are read where they lie
            return
        target = Path(self.build_lib, "detection", "package_data")
        shutil.rmtree(target, ignore_errors=True)
        for path in (*ROOT.glob("datasets/*.yaml"), *ROOT.glob("configs/**/*.yaml")):
            copy = target / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


setup(cmdclass={"build_py": BuildWithFiles})

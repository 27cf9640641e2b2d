"""Mirrors resdet.py: the public names, what importing them costs, and other packages of the same names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import resdet
from detection.predictor import Predictor
from detection.tasks.train import run_training

ROOT = Path(__file__).parents[1]


def python(code: str, *, path: str = str(ROOT), cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_public_names_are_those_of_the_packages() -> None:
    assert resdet.Predictor is Predictor
    assert resdet.train is run_training
    assert all(getattr(resdet, name) is not None for name in resdet.__all__)
    assert set(resdet.__all__) <= set(dir(resdet))
    with pytest.raises(AttributeError, match="'resdet' has no attribute 'trian'"):
        _ = resdet.trian  # pyright: ignore[reportAttributeAccessIssue]


def test_the_version_is_the_commands() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", resdet.__version__)
    command = [sys.executable, "-m", "resdet", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"resdet {resdet.__version__}\n"


def test_importing_the_module_imports_no_pytorch() -> None:
    done = python("import sys, resdet; print(sorted({'torch', 'numpy', 'detection.cli'} & sys.modules.keys()))")
    assert (done.returncode, done.stdout) == (0, "[]\n")


@pytest.mark.slow
def test_the_predictor_imports_neither_plots_nor_evaluators() -> None:
    names = "('tensorboard', 'torch.utils.tensorboard', 'matplotlib', 'detection.evaluation', 'detection.report')"
    done = python(f"import sys, resdet; resdet.Predictor; print([m for m in sys.modules if m.startswith({names})])")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["backbones", "detection"])
def test_another_package_of_the_same_name_is_told_with_both_paths(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    done = python("import resdet", path=os.pathsep.join([str(tmp_path), str(ROOT)]), cwd=tmp_path)
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith(f"ImportError: import {name} finds {tmp_path / name / '__init__.py'}")
    assert str(ROOT / name / "__init__.py") in message


def test_a_folder_without_python_files_is_no_other_package(tmp_path: Path) -> None:
    (tmp_path / "detection").mkdir()
    assert python("import resdet", path=os.pathsep.join([str(tmp_path), str(ROOT)]), cwd=tmp_path).returncode == 0

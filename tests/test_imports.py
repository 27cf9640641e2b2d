"""Mirrors resdet.py: the public names, what importing costs and does, and other packages of the same names."""

import json
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

# Other packages have exit handlers of their own, so those are told apart by who registers them.
PROGRAM = """
import atexit, importlib, json, os, pkgutil, signal, sys, threading
import cv2  # sets LD_LIBRARY_PATH

handlers, register = [], atexit.register
def note(function, *args, **kwargs):
    handlers.append(f"{sys._getframe(1).f_globals['__name__']}: {function}")
    return register(function, *args, **kwargs)
atexit.register = note

def state():
    return dict(os.environ), {number: str(signal.getsignal(number)) for number in signal.valid_signals()}

before = state()
for package in ("backbones", "detection"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        importlib.import_module(module.name)
environment, signals = state()
print(json.dumps({
    "handlers": [h for h in handlers if h.startswith(("backbones", "detection"))],
    "environment": [k for k in {*before[0], *environment} if before[0].get(k) != environment.get(k)],
    "signals": [number for number in signals if signals[number] != before[1][number]],
    "threads": [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()],
}))
"""


def python(code, *paths, cwd: Path = ROOT):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT)))}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_public_names_are_those_of_the_packages_and_the_version_the_commands() -> None:
    assert (resdet.Predictor, resdet.train) == (Predictor, run_training)
    assert all(getattr(resdet, name) is not None for name in resdet.__all__)
    assert set(resdet.__all__) <= set(dir(resdet))
    with pytest.raises(AttributeError, match="'resdet' has no attribute 'trian'"):
        _ = resdet.trian  # pyright: ignore[reportAttributeAccessIssue]
    assert re.fullmatch(r"\d+\.\d+\.\d+", resdet.__version__)
    command = [sys.executable, "-m", "resdet", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"resdet {resdet.__version__}\n"


LATE = "tensorboard torch.utils.tensorboard matplotlib detection.evaluation detection.report"
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("imported", "names"),
    [
        ("resdet", ("torch", "numpy", "detection.cli")),
        pytest.param("resdet; resdet.Predictor", tuple(LATE.split()), marks=SLOW),
        pytest.param("detection.engine.trainer", ("tensorboard", "torch.utils.tensorboard"), marks=SLOW),
    ],
)
def test_what_an_import_leaves_for_later(imported, names) -> None:
    done = python(f"import sys, {imported}; print([name for name in sys.modules if name.startswith({names})])")
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.slow
def test_importing_everything_has_no_side_effect() -> None:
    assert json.loads(python(PROGRAM).stdout) == {"handlers": [], "environment": [], "signals": [], "threads": []}


@pytest.mark.parametrize("name", ["backbones", "detection"])
def test_another_package_of_the_same_name_is_told_with_both_paths(name, tmp_path) -> None:
    (tmp_path / name).mkdir()  # a folder without Python files is no package
    assert python("import resdet", tmp_path, cwd=tmp_path).returncode == 0
    (tmp_path / name / "__init__.py").touch()
    done = python("import resdet", tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith(f"ImportError: import {name} finds {tmp_path / name / '__init__.py'}")
    assert str(ROOT / name / "__init__.py") in message

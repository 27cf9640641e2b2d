"""Importing the packages does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.slow
def test_importing_everything_has_no_side_effect() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"handlers": [], "environment": [], "signals": [], "threads": []}


@pytest.mark.slow
def test_a_trainer_imports_no_tensorboard() -> None:
    program = "import sys, detection.engine.trainer; print([name for name in sys.modules if 'tensorboard' in name])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

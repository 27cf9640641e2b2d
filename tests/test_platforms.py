"""Systems without what only Unix has: simulated, since the tests run on Linux.

The names that Windows lacks are taken away, text files open in ASCII, folders can't be opened nor a file that is open
for reading be synced. Reading data, predicting and evaluating must work there.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [ROOT / "resdet.py", *(path for top in ("backbones", "detection") for path in (ROOT / top).rglob("*.py"))]

ELSEWHERE = """
import errno, fcntl, os, select, signal, stat, sys
import cv2, fvcore.nn, matplotlib.pyplot, numpy, PIL.Image, rich.console, safetensors.torch, torch, torchvision, yaml
import multiprocessing.synchronize, torch.distributed.elastic, torch.utils.data  # others' code has its own ways there

for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for module, names in {
    signal: ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGBUS", "SIGPIPE", "SIGALRM", "setitimer"),
    os: ("uname", "sched_getaffinity", "getuid", "mkfifo", "killpg", "getloadavg", "statvfs"),
    select: ("poll",),
}.items():
    for name in names:
        delattr(module, name)
open_there, sync_there = os.open, os.fsync

def open_as_elsewhere(path, flags, *args, **options):
    if os.path.isdir(path) and "detection" in sys._getframe(1).f_code.co_filename:  # shutil has its own ways there
        raise PermissionError(errno.EACCES, "no folder can be opened", str(path))
    return open_there(path, flags, *args, **options)

def sync_as_elsewhere(file):
    if flags_of(file) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "open for reading only")
    sync_there(file)

flags_of = lambda file: fcntl.fcntl(file, fcntl.F_GETFL)
os.open, os.fsync = open_as_elsewhere, sync_as_elsewhere
"""

WORK = """
from pathlib import Path
import numpy as np
from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.config.load import build_dataclass
from detection.data.cards import load_card
from detection.data.digits import write_digits
from detection.data.index import AnnotationIndex
from detection.engine.checkpoint import read_checkpoint, write_converted
from detection.engine.device import peak_memory_gib
from detection.engine.lock import locked
from detection.engine.signals import stop_request
from detection.predictor import Predictor
from detection.tasks.predict import predict_sources
from detection.tasks.test import run_test
import detection.cli, detection.engine.log, detection.experiments.runs, detection.tasks.check, resdet

folder = Path(sys.argv[1])
root = write_digits(folder / "root", num_train=1, num_test=2).parent
config = build_dataclass(DetectionConfig, {
    "backbone": {"name": "resnet18", "norm": "gn", "roi_size": 2}, "anchors": {"sizes": [16, 32]},
    "rpn": {"channels": 16, "min_size": 2, "post_nms_test": 16}, "test": {"score_threshold": 0.0}, "device": "cpu",
    "data": {"test": ["digits:test"], "shorter_side": 64, "longer_side": 96, "workers": 1, "root": str(root)},
})
names = load_card("digits").classes
detector = build_detector(config, len(names), pretrained=False)
weights = write_converted(folder / "run", config, ("na\\u00efve", *names[1:]), detector.state_dict())
predictor = Predictor.load(weights)
assert predictor.class_names[0] == "na\\u00efve"
assert len(predictor(np.zeros((64, 80, 3), np.uint8), min_score=0)) > 0
weights = write_converted(folder / "other", config, names, detector.state_dict())
result = run_test(config, read_checkpoint(weights), folder / "tested")
assert (folder / "tested" / "result.json").is_file()
with stop_request(), locked(folder / "locked"):
    assert peak_memory_gib(torch.device("cpu")) == 0
print("done")
"""


@pytest.mark.slow
def test_reading_predicting_and_evaluating_work_elsewhere(tmp_path) -> None:
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **plain, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ELSEWHERE + WORK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, check=False)
    assert done.stdout.endswith("done\n"), done.stderr


def test_text_files_are_utf_8() -> None:
    """Else they are what the system takes for text."""
    trees = {path.name: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
    calls = [(name, node) for name, tree in trees.items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found = [(name, ast.unparse(call)) for name, call in calls if is_text(call)]
    assert len(found) > 20
    assert [entry for entry in found if "encoding=" not in entry[1]] == []


def is_text(call):
    """Whether it opens, reads or writes text, or a process; write_text(path, text) is ours."""
    owner, _, name = ast.unparse(call.func).rpartition(".")
    texts = [ast.unparse(value) for value in (*call.args, *(word.value for word in call.keywords))]
    if name == "open":
        mode = any(text.strip("'") in ("r", "a", "w", "x", "a+", "r+", "w+") for text in texts)
        return owner not in ("os", "Image", "tarfile") and (mode or not texts)
    return name == "read_text" or (name == "write_text" and owner != "") or "text=True" in ast.unparse(call)

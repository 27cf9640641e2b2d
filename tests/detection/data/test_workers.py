"""Mirrors detection/data/workers.py: what becomes of workers that are killed, hang, or find no room for a batch."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from detection.data import workers
from detection.data.loader import make_loader

ROOT = Path(__file__).parents[3]


class Awkward(Dataset[Any]):
    """Tensors; ``trouble`` happens in the worker that reads number 3."""

    def __init__(self, trouble) -> None:
        self.trouble = trouble

    def __len__(self) -> int:
        return 8

    def __getitem__(self, key):
        if key[1] == 3:
            self.trouble()
        return torch.full((2,), key[1])


def load(trouble):
    sampler: Any = [[(number, number)] for number in range(8)]
    return make_loader(Awkward(trouble), sampler, workers=1, pin=False, collate=lambda samples: samples[0])


def test_a_killed_worker_is_told_and_raises_only_where_batches_are_read() -> None:
    batches = iter(load(lambda: os.kill(os.getpid(), signal.SIGKILL)))
    next(batches)
    time.sleep(0.5)  # it dies here, as in the middle of a step
    with pytest.raises(ChildProcessError, match=r"loader worker \d+ was killed, .*lower data\.workers \(now 1\)"):
        list(batches)


@pytest.mark.slow
def test_a_worker_that_hangs_is_given_up_and_ended(monkeypatch) -> None:
    monkeypatch.setattr(workers, "LONGEST_WAIT", 2.0)
    batches = iter(load(lambda: time.sleep(600)))
    with pytest.raises(
        ChildProcessError, match=r"returned a batch for 2 s; it was to read \(3, 3\)\. .*data\.workers=0"
    ):
        list(batches)
    batches = None
    assert multiprocessing.active_children() == []


def test_ctrl_c_and_other_signals_to_the_group_leave_workers_alone() -> None:
    batches = load(lambda: [os.kill(os.getpid(), number) for number in (signal.SIGINT, signal.SIGHUP)])
    assert [int(batch[0]) for batch in batches] == list(range(8))


NO_ROOM = """
import torch
from detection.data.loader import make_loader
from detection.data import workers
workers.SMALL = {small}
data = [torch.full((4 << 20,), number, dtype=torch.uint8) for number in range(4)]
loader = make_loader(data, [[0], [1]], workers=1, pin=False, collate=lambda samples: samples[0])
for _ in range(2):
    print([int(batch.float().mean()) for batch in loader])
"""


def run_with_small_shm(small):
    """Loads batches of 4 MiB where /dev/shm has 1, which counts as small below ``small`` bytes."""
    mount = 'mount -t tmpfs -o size=1m none /dev/shm && exec "$0" -c "$1"'
    command = ["unshare", "--mount", "sh", "-c", mount, sys.executable, NO_ROOM.format(small=small)]
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root may unshare mounts")
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_batches_go_around_a_small_dev_shm() -> None:
    done = run_with_small_shm(workers.SMALL)
    assert done.stdout.splitlines() == ["[0, 1]", "[0, 1]"], done.stderr


@pytest.mark.slow
def test_a_full_dev_shm_is_named_soon() -> None:
    last = run_with_small_shm(0).stderr.strip().splitlines()[-1]
    for said in ("had no room for a batch in /dev/shm", "MiB free of 1: ", "data.workers (now 1)"):
        assert said in last

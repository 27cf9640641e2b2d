"""Mirrors tools/soak.py: what it takes for memory, for a leak, and a training of a few steps."""

import mmap
import os
import re
import sys
from pathlib import Path

import pytest

from detection.data.digits import write_digits

CONFIG = Path(__file__).parents[2] / "configs" / "digits" / "resnet18_c4.yaml"


@pytest.fixture(scope="module")
def tool(names_of):
    return names_of("soak.py")


def test_memory_of_a_process(tool) -> None:
    content = b"1" * (64 << 20)  # made before, since an allocator may keep it
    before = tool["memory_mib"](os.getpid())
    # From the system: an allocator may have as much left over from what went before.
    with mmap.mmap(-1, len(content), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.write(content)
        assert tool["memory_mib"](os.getpid()) - before == pytest.approx(64, abs=1)


def test_slope_is_that_of_the_second_half(tool) -> None:
    trainer = [7.0, 90.0, 95.0, 96.0, 99.0, 100.0, 101.0, 120.0, 103.0, 104.0]  # with a peak at 800
    memory = tool["Memory"](steps=list(range(100, 1001, 100)), trainer=trainer, workers=[3.0] * 10)
    assert memory.slope(memory.trainer) == pytest.approx(10)
    assert memory.slope(memory.workers) == pytest.approx(0)


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "status"), [("1e9", 0), ("-1e9", 1)])
def test_a_short_soak(tool, tmp_path, monkeypatch, capsys, limit, status) -> None:
    root = write_digits(tmp_path, num_train=4, num_test=1).parent
    changes = ["data.shorter_side=64", "data.longer_side=96", "solver.images_per_step=1", "device=cpu"]
    options = ["--config-file", str(CONFIG), "--steps", "4", f"--limit={limit}", f"data.root={root}", *changes]
    monkeypatch.setattr(sys, "argv", ["soak.py", *options])
    monkeypatch.setitem(tool, "SAMPLES", 4)
    assert tool["main"]() == status
    lines = capsys.readouterr().out.splitlines()
    measured = [line for line in lines if re.match(r"step \d", line)]
    assert [line.split(":")[0] for line in measured] == ["step 1", "step 2", "step 3", "step 4"]
    assert all(float(line.split()[i]) > 20 for line in measured for i in (3, 6))
    assert [line.split(":")[0] for line in lines[-2:]] == ["trainer", "workers"]

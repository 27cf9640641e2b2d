"""Trainings that are killed, disks that are full and files that rot: the same command again ends with equal weights."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detection.config.load import dump_config
from detection.engine.checkpoint import read_checkpoint
from detection.engine.signals import EXIT_STOPPED
from detection.tasks.train import run_training

ROOT = Path(__file__).parents[2]
STEPS, KILLS = 8, 50


def start(config, run):
    """A process that goes on with ``run``, as the program does; it has imported everything already."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=run_training, args=(config, run), kwargs={"resume": True})
    process.start()
    return process


def saved(run):
    return sorted(path.name for path in run.glob("checkpoints/*.safetensors"))


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_killed_at_random_moments(tiny_config, assert_same, tmp_path, capsys) -> None:
    config, whole = tiny_config(iterations=STEPS, checkpoint_every=1), tmp_path / "whole"
    begun = time.perf_counter()
    process = start(config, whole)
    process.join()
    assert process.exitcode == 0
    seconds = time.perf_counter() - begun
    moments = random.Random(0)
    kills = in_save = at_start = finished = 0
    while kills < KILLS:
        run = tmp_path / f"run{finished}"
        before, begun = saved(run), time.perf_counter()
        process = start(config, run)
        process.join(timeout=moments.uniform(0, seconds))
        if process.is_alive():
            process.kill()
            process.join()
            kills += process.exitcode == -signal.SIGKILL  # else it came to its end just before
            in_save += bool(list(run.glob("checkpoints/*.tmp")))
            at_start += saved(run) == before
        else:
            assert process.exitcode == 0
            assert_same(run, whole, STEPS)
            finished += 1
            if not before:  # a whole run: the machine may have become faster, and most would then come to their end
                seconds = min(seconds, time.perf_counter() - begun)
    process = start(config, tmp_path / f"run{finished}")
    process.join()
    assert_same(tmp_path / f"run{finished}", whole, STEPS)
    with capsys.disabled():
        parts = f"{in_save} in the middle of a file, {at_start} before the first step was saved"
        print(f"\n{kills} kills over {finished + 1} runs, {parts}")  # noqa: T201


KILLED_IN_SAVE = """
import os, signal, sys
from pathlib import Path
import torch
from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.engine import checkpoint
from detection.tasks.train import run_training

config, run, name = load_config(DetectionConfig, sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
owner = torch if name == "save" else checkpoint
write, calls = getattr(owner, name), []

def half(content, path, **options):
    write(content, path, **options)
    calls.append(path)
    if len(calls) == 2:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

setattr(owner, name, half)
run_training(config, run)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["save", "save_file"], ids=["state", "weights"])
def test_killed_in_the_middle_of_a_save(tiny_config, assert_same, tmp_path, name) -> None:
    config, run = tiny_config(iterations=3, checkpoint_every=1), tmp_path / "run"
    (tmp_path / "config.yaml").write_text(dump_config(config))
    command = [sys.executable, "-c", KILLED_IN_SAVE, str(tmp_path / "config.yaml"), str(run), name]
    assert subprocess.run(command, cwd=ROOT, check=False, capture_output=True).returncode == -signal.SIGKILL
    files = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert "0000001.safetensors" in files
    assert "0000002.safetensors" not in files
    assert len([file for file in files if file.endswith(".tmp")]) == 1
    run_training(config, run, resume=True)
    run_training(config, tmp_path / "whole")
    assert_same(run, tmp_path / "whole", 3)
    assert not list(run.glob("checkpoints/*.tmp"))


@pytest.mark.slow
def test_sigterm_to_the_program_and_its_workers(tiny_config, assert_same, tmp_path) -> None:
    config, run = tiny_config(iterations=8, checkpoint_every=0), tmp_path / "run"
    (tmp_path / "config.yaml").write_text(dump_config(config))
    tool = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--config-file", str(tmp_path / "config.yaml")]
    command, pipe = [*tool, "--output-dir", str(run), "--resume"], subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    assert process.stdout is not None
    while not process.stdout.readline().lstrip().startswith("2/8"):
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == EXIT_STOPPED == 75
    assert said.startswith("stopped: SIGTERM ended the run after iteration ")
    (saved,) = (int(path.stem) for path in run.glob("checkpoints/*.safetensors"))
    assert 2 <= saved < 8
    run_training(config, run, resume=True)
    run_training(config, tmp_path / "whole")
    assert_same(run, tmp_path / "whole", 8)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 250 MiB: room for some checkpoints of 90 MiB each."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=250m", "none", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.faults
def test_full_disk_leaves_the_last_good_checkpoint(tiny_config, assert_same, small_disk, tmp_path) -> None:
    run, config = small_disk / "run", tiny_config(iterations=6, checkpoint_every=1, keep_checkpoints=6)
    with pytest.raises(OSError, match=r"can't be written: .*; \d+ MiB are free there"):
        run_training(config, run)
    assert 1 <= read_checkpoint(run).iteration < 6
    assert not list(run.glob("checkpoints/*.tmp"))
    shutil.copytree(run, tmp_path / "run")  # to a disk with room
    run_training(config, tmp_path / "run", resume=True)
    run_training(config, tmp_path / "whole")
    assert_same(tmp_path / "run", tmp_path / "whole", 6)


@pytest.fixture(scope="module")
def finished(tiny_config, tmp_path_factory):
    """A run with the checkpoints of its iterations 1 and 2."""
    run = tmp_path_factory.mktemp("runs") / "run"
    run_training(tiny_config(iterations=2, checkpoint_every=1), run)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["0000002.safetensors", "0000002.state.pt"])
@pytest.mark.parametrize("damage", ["bit", "half", "empty"])
def test_damaged_newest_checkpoint_is_passed_over(
    tiny_config, assert_same, finished, tmp_path, capsys, name, damage
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    path = run / "checkpoints" / name
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 1 << random.Random(name).randrange(8)
    path.write_bytes({"bit": content, "half": content[:middle], "empty": b""}[damage])
    run_training(tiny_config(iterations=2, checkpoint_every=1), run, resume=True)
    said = capsys.readouterr().out
    assert f"warning: checkpoint {path} can't be read: " in said
    assert "looking for the checkpoint before" in said
    assert_same(run, finished, 2)
    assert (run / "checkpoints" / f"{name}.damaged").is_file()


@pytest.mark.slow
def test_all_checkpoints_damaged(tiny_config, finished, tmp_path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="no other checkpoint is left; remove these to start anew"):
        run_training(tiny_config(iterations=2, checkpoint_every=1), run, resume=True)
    assert len(list((run / "checkpoints").iterdir())) == 4  # nothing was removed or renamed

"""Disks that are full and files that rot."""

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from detection.engine.checkpoint import read_checkpoint
from detection.tasks.train import run_training


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

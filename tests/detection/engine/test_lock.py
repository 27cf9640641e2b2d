import subprocess
import sys
from pathlib import Path

import pytest

from detection.engine.lock import locked

ROOT = Path(__file__).parents[3]
HOLDER = """
import os, sys, time
from pathlib import Path
from detection.engine.lock import locked
with locked(Path(sys.argv[1])):
    if not os.fork():  # a loader's worker outlives a kill for some seconds
        time.sleep(30)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_has_ended_and_none_is_stale(tmp_path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"{tmp_path} is in use by process {holder.pid} on .* since 20"):  # noqa: SIM117
            with locked(tmp_path):
                pass
        holder.kill()
        holder.wait()
        holder.stdout.close()
        assert (tmp_path / "lock").is_file()
        with locked(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_nothing_was_written_to_goes_again(tmp_path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "run"):
        raise KeyError
    assert not (tmp_path / "run").exists()
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "config.yaml").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]

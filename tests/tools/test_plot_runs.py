"""Curves of runs as one picture."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def plot(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "plot_runs.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def write_run(folder: Path, losses: list[float]) -> Path:
    folder.mkdir()
    rows = [{"iteration": 10 * (i + 1), "loss/total": loss} for i, loss in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def test_every_run_is_a_curve_of_its_name(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, [2.0, 1.0]) for name in ("shallow", "deep")]
    done = plot(*runs, "--key", "loss/total", "--output", tmp_path / "a.svg")
    assert done.stdout == f"2 runs: {tmp_path / 'a.svg'}\n"
    picture = (tmp_path / "a.svg").read_text()
    assert picture.startswith("<svg")
    assert all(text in picture for text in (">shallow<", ">deep<", ">iterations<", ">loss/total<"))


def test_missing_figure_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [2.0])
    done = plot(run, "--key", "bbox.AP", "--output", tmp_path / "a.svg")
    assert done.returncode == 1
    assert done.stderr == (f"error: no figure 'bbox.AP' in {run / 'metrics.jsonl'}, which has iteration, loss/total\n")
    assert not (tmp_path / "a.svg").exists()

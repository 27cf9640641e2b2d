import json
import shutil
from functools import partial

import pytest

from detection.tasks.train import run_training

TABLE = """
rows:
  - {name: plain, paper: 1.0 / 2.0}
  - {name: + context, needs: context}
  - {name: + flip, test: {flip: true}}
  - {name: + ensemble, needs: ensemble}
"""


@pytest.fixture
def methods(tiny_file, finished, resdet, tmp_path):
    """Runs the command on the finished run with ``TABLE``; results go to tmp_path/out."""
    table = tmp_path / "table.yaml"
    table.write_text(TABLE)
    options = ("--weights", finished.path, "--table", table, "--output-dir", tmp_path / "out")
    return partial(resdet, "methods", tiny_file, *options)


def table_of(out: str) -> list[str]:
    """The lines of the printed table."""
    lines = out.splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.split()[:2] == ["AP50", "AP"]]
    return lines[start:]


def test_without_context_and_ensemble(methods, tmp_path) -> None:
    outcome = methods()
    assert outcome.status == 0
    header, plain, context, flip, ensemble = table_of(outcome.out)
    assert header.endswith("paper AP50 / AP")
    assert plain.split()[0] == "plain"
    assert plain.endswith("1.0 / 2.0")
    assert context.split() == ["+", "context", "not", "run"]
    assert ensemble.split() == ["+", "ensemble", "not", "run"]
    ap50, ap, gain50, gain, seconds = map(float, flip.split()[2:])
    first, second = (json.loads((tmp_path / "out" / n / "result.json").read_text())["bbox"] for n in "02")
    assert [ap50, ap] == pytest.approx([100 * second["AP50"], 100 * second["AP"]], abs=0.051)
    gains = [100 * (second[key] - first[key]) for key in ("AP50", "AP")]
    assert [gain50, gain] == pytest.approx(gains, abs=0.051)
    assert seconds > 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0", "2"]


def test_with_context_and_ensemble(methods, tiny, lab, finished, tmp_path) -> None:
    outcome = methods("--context-weights", finished.path)  # which have none
    assert outcome.err.startswith("error: ")
    assert "context" in outcome.err
    run_training(lab.changed(tiny, box__context=True, solver__iterations=1, data__test=()), tmp_path / "context")
    outcome = methods("--context-weights", tmp_path / "context", "--ensemble", finished.path, "--limit", "1")
    assert outcome.status == 0
    assert "not run" not in outcome.out
    images = [json.loads((tmp_path / "out" / n / "result.json").read_text())["images"] for n in "0123"]
    assert images == [1, 1, 1, 1]


def test_missing_checkpoints_and_a_bad_table_are_named(methods, tmp_path) -> None:
    absent, bad = tmp_path / "absent.safetensors", tmp_path / "bad.yaml"
    for option in ("--context-weights", "--ensemble", "--weights"):
        assert methods(option, absent).err.startswith(f"error: no checkpoint at {absent}")
    bad.write_text("row: []")
    assert methods("--table", bad).err.startswith(f"error: table {bad}: ")
    assert not (tmp_path / "out").exists()


def test_default_table_and_folder(tiny_file, finished, succeeds, tmp_path) -> None:
    run = shutil.copytree(finished.path, tmp_path / "run")
    outcome = succeeds("methods", tiny_file, "--weights", run, "--limit", "1")
    lines = table_of(outcome)
    names = ["baseline", "+ box refinement", "+ context", "+ multi-scale testing", "+ horizontal flip", "+ ensemble"]
    assert [line.split("  ")[0] for line in lines[1:] if not line.startswith(" ")] == names
    assert lines[1].endswith("48.4 / 27.2")
    assert (run / "methods" / "0" / "result.json").is_file()

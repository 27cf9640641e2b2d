"""The notebook runs from top to bottom, its commands in this process, and comes without outputs."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "from_folder_to_export.ipynb"
OPTIONS = """architecture=faster_rcnn solver.best_metric=bbox.AP solver.iterations=2 solver.images_per_step=2
 solver.evaluate_every=0 data.shorter_side=64 data.longer_side=96 data.workers=0 rpn.post_nms_test=20
 test.max_detections=10"""
QUICK = {"IMAGES": 16, "TEST_IMAGES": 4, "OPTIONS": " ".join(OPTIONS.split())}
QUICK |= {"PROOF": "--limit 2 --timed 0 --max-unmatched 1"}


@pytest.mark.faults
def test_the_notebook_runs(resdet, tmp_path, monkeypatch) -> None:
    def shell(line) -> None:
        command, *arguments = shlex.split(line)
        assert command == "resdet"
        done = resdet(*arguments)
        assert done.status == 0, f"{line}: {done.err}"

    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    values: dict[str, Any] = {"_shell": shell}
    for number, cell in enumerate(cells):
        exec(re.sub(r"^!(.*)$", r'_shell(f"\1")', "".join(cell["source"]), flags=re.MULTILINE), values)
        if number == 0:
            assert QUICK.keys() < values.keys()  # they are the notebook's own names
            values |= QUICK
    run = tmp_path / values["RUN"]
    assert all((run / name).is_file() for name in ("result.json", "export/onnx/model.onnx", "README.md"))
    assert "## Exports" in (run / "README.md").read_text()

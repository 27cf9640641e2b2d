import json
from typing import Any

from detection.data.corruptions import CORRUPTIONS
from detection.engine.checkpoint import read_checkpoint
from detection.report.robustness import write_robustness
from detection.tasks.robustness import corrupted_files, run_corrupted
from detection.tasks.test import run_test


def test_detections_under_each_corruption_lie_beside_the_result(tiny, finished, tmp_path) -> None:
    checkpoint, said = read_checkpoint(finished.path), list[str]()
    assert corrupted_files(tmp_path) is None
    run_test(tiny, checkpoint, tmp_path)
    run_corrupted(tiny, checkpoint, tmp_path, say=said.append)
    files: Any = corrupted_files(tmp_path)
    assert len(files) == len(said) == 12 == len(CORRUPTIONS)
    clean = json.loads((tmp_path / "detections.json").read_text())
    found = {name: json.loads(path.read_text()) for name, path in files.items()}
    assert all(found[name] != clean for name in ("blur_3", "noise_3", "jpeg_3", "brightness_3"))
    assert {entry["image_id"] for entry in found["blur_3"]} <= {7, 8}
    table = write_robustness(tmp_path)
    numbers = json.loads((tmp_path / "robustness.json").read_text())
    assert list(numbers["corruptions"]) == [*files]
    assert numbers["clean"]["low"] <= numbers["clean"]["value"] <= numbers["clean"]["high"]
    assert "brightness_3" in table
    said.clear()
    files["noise_2"].unlink()
    run_corrupted(tiny, checkpoint, tmp_path, say=said.append)
    assert [line.partition(":")[0] for line in said] == ["noise_2"]  # the others are kept
    assert json.loads(files["noise_2"].read_text()) == found["noise_2"]

import json
import re
from pathlib import Path

import numpy as np
import pytest

from detection.data.cards import load_dataset
from detection.report.analysis import write_analysis


def test_one_run(make_run, tmp_path) -> None:
    run = make_run(tmp_path / "runs" / "first", skill=0.7)
    page = write_analysis([run], tmp_path / "out")
    html, numbers = page.read_text(), json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert list(numbers["variants"]) == ["first"]
    found = re.findall(r"<h2[^>]*>([^<]+)</h2>", html)
    titles = ["Results", "Types of errors", "Curves", "Per class", "Confusions", "Scores", "Likely label errors"]
    assert found == [*titles, "Worst and best images of first"]
    counts = np.array(numbers["variants"]["first"]["confusion"])
    assert counts[:-1].sum() == 48  # every object once
    f1 = [entry["f1"] for entry in numbers["variants"]["first"]["ranking"]]
    assert f1 == sorted(f1, reverse=True)
    assert "worst 1" in html
    assert "best 1" in html
    coco = json.loads((tmp_path / "out" / "label_errors.json").read_text())
    tasks = json.loads((tmp_path / "out" / "label_studio.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [image["file_name"] for image in coco["images"]]
    results = [result for task in tasks for result in task["predictions"][0]["result"]]
    assert len(results) == len(coco["annotations"]) > 0
    for result, label in zip(results, coco["annotations"], strict=True):
        value, (x, y, width, height) = result["value"], label["bbox"]  # in percent
        percent = [100 * x / 80, 100 * y / 60, 100 * width / 80, 100 * height / 60]
        assert [value[name] for name in ("x", "y", "width", "height")] == pytest.approx(percent)


def test_runs_are_compared_pair_by_pair_under_names_that_tell_them_apart(make_run, tmp_path) -> None:
    skills = {"plain": 0.4, "res": 1.0, "other": 0.8}
    runs = [make_run(tmp_path / name / "0", skill=skill) for name, skill in skills.items()]
    html = write_analysis(runs, tmp_path / "out").read_text()
    numbers = json.loads((tmp_path / "out" / "analysis.json").read_text())
    pairs = [("plain/0", "res/0"), ("plain/0", "other/0"), ("res/0", "other/0")]
    assert [(pair["a"], pair["b"]) for pair in numbers["pairs"]] == pairs
    assert numbers["pairs"][0]["verdict"].startswith("res/0 is better than plain/0")
    assert "res/0 (first) finds" in html
    assert (tmp_path / "out" / "analysis.md").read_text().startswith("# Analysis: plain/0 and res/0")
    with pytest.raises(ValueError, match="run directories, each once, got"):
        write_analysis([runs[0], runs[0] / "." / ".." / "0"], tmp_path / "out")


def test_injected_label_errors_are_first_by_file_and_their_suggestions_undo_them(make_run, data, tmp_path) -> None:
    # Of seeds with confident detections there.
    runs = [make_run(tmp_path / "runs" / str(seed), skill=1.0, seed=seed) for seed in (2, 3)]
    file = tmp_path / "coco" / "train.json"
    clean = json.loads(file.read_text())
    by_image = {i: [one for one in clean["annotations"] if one["image_id"] == i] for i in range(1, 13)}
    dropped, swapped = by_image[3][0], by_image[5][1]
    renamed = swapped | {"category_id": {3: 18, 18: 20, 20: 3}[swapped["category_id"]]}
    spoiled = [renamed if one is swapped else one for one in clean["annotations"] if one is not dropped]
    invented = {"id": 999, "image_id": 7, "category_id": 3, "bbox": [0, 40, 15, 15], "area": 225, "iscrowd": 0}
    file.write_text(json.dumps(clean | {"annotations": [*spoiled, invented]}))
    write_analysis(runs, tmp_path / "out")
    numbers = json.loads((tmp_path / "out" / "analysis.json").read_text())
    top = {(one["kind"], Path(one["image"]).name) for one in numbers["label_errors"][:3]}
    assert top == {("missing", "003.jpg"), ("class", "005.jpg"), ("extra", "007.jpg")}
    suggested = json.loads((tmp_path / "out" / "label_errors.json").read_text())
    for image in (3, 5, 7):
        labels = [one for one in suggested["annotations"] if one["image_id"] == image]
        kept = sorted((one["category_id"], *map(round, one["bbox"])) for one in labels if one["suggestion"] != "remove")
        assert set(kept) >= {(one["category_id"], *one["bbox"]) for one in by_image[image]}
    spec, root = data
    (root / "coco" / "train.json").write_text((tmp_path / "out" / "label_errors.json").read_text())
    index, problems = load_dataset([spec], root)  # it reads as a data set
    assert (problems, len(index)) == ([], len(suggested["images"]))

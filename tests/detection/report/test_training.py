import json

import pytest

from detection.pages.page import Figure
from detection.report.reading import RunFolder, read_metrics
from detection.report.training import training_figures, training_numbers

FIGURE = {"key": "bbox.AP", "name": "AP"}


def test_ap_stands_by_epoch_and_by_minute_where_these_are_known(make_run, tmp_path) -> None:
    """Of a run that looked at its validation set at steps 100 and 200, of 2 images each."""
    folder = make_run(tmp_path / "run")
    run = RunFolder(variant="net", seed=3, folder=folder, state="done")
    known = {"epochs": [4, 8], "minutes": pytest.approx([1, 3]), "train_images": 50}
    figures = ["training_loss", "training_AP_by_epochs", "training_AP_by_minutes"]
    for expected, names in ((dict.fromkeys(known), figures[:1]), (known, figures)):
        found = training_numbers(run, FIGURE)
        assert (found["seed"], found["AP"]["iterations"]) == (3, [100, 200])
        assert {key: found[key] for key in known} == expected
        shown = training_figures({"net": {"training": [found]}}, "AP")
        assert [block.name for block in shown if isinstance(block, Figure)] == names
        lines = [{"iteration": 100, "seconds_per_step": 0.6}, {"iteration": 200, "seconds_per_step": 1.2}]
        with (folder / "metrics.jsonl").open("a") as stream:
            stream.writelines(json.dumps(line) + "\n" for line in lines)
        (folder / "manifest.json").write_text(json.dumps([{"data": {"train": {"images": 50}}}]))
    assert training_figures({"yolo": {"training": []}}, "AP") == []  # of an arm that was not trained


def test_a_repeated_iteration_counts_once_and_a_cut_line_or_a_missing_file_not_at_all(tmp_path) -> None:
    assert read_metrics(tmp_path, "l") == ([], [])
    lines = '{"iteration": 20, "l": 2.0}\n{"iteration": 10, "l": 9}\n{"iteration": 20, "l": 1.5}\n{"iteration": 3'
    (tmp_path / "metrics.jsonl").write_text(lines)
    assert read_metrics(tmp_path, "l") == ([10, 20], [9.0, 1.5])
    assert read_metrics(tmp_path, "other") == ([], [])

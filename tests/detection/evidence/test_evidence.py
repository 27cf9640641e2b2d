import json
import signal

import pytest

from detection.evidence.plan import format_plan, load_evidence, plan_evidence
from detection.evidence.run import run_evidence
from detection.evidence.verify import verify

LIST = "{budget_hours: 0.5, run_minutes: 10, experiments: [{file: depth.yaml, minutes: 6}]}"
DEPTH = """
base: base.yaml
allowed: [backbone.name]
variants: {plain20: {}, resnet20: {backbone: {name: cifar_resnet20}}}
seeds: [0, 1]
"""
BASE = """
backbone: {name: cifar_plain20, norm: bn}
data: {train: [card.yaml:train], test: [card.yaml:test], shorter_side: 32, longer_side: 32, augment: [], workers: 0}
solver: {iterations: 4, images_per_step: 4, log_every: 2, layout: contiguous}
classification: {crop: 32, shorter_side: 32}
device: cpu
"""


@pytest.fixture
def checkout(write_colors, tmp_path, monkeypatch):
    """The current folder: a list of one experiment of four runs over red and blue images."""
    for name, text in (("list.yaml", LIST), ("depth.yaml", DEPTH), ("base.yaml", BASE), ("README.md", "# Results\n")):
        (tmp_path / name).write_text(text)
    write_colors(tmp_path, train=6, test=6)
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)  # which the command takes, here in the process of the tests
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


def test_committed_records_count_as_done_and_say_what_the_rest_takes(checkout) -> None:
    runs = checkout / "docs" / "experiments" / "depth" / "runs"
    for run, state, hours in (("plain20/0", "done", 0.2), ("resnet20/0", "failed", 0.1)):
        (runs / run).mkdir(parents=True)
        (runs / run / "status.json").write_text(json.dumps({"state": state, "hours": hours}))
    evidence = load_evidence("list.yaml")
    (planned,) = plan_evidence(evidence, checkout)
    assert planned.hours == {"runs/plain20/0": 0.2}
    assert planned.left == ("runs/plain20/1", "runs/resnet20/0", "runs/resnet20/1")
    assert planned.expected == pytest.approx(0.2 + 0.1 + 0.1)  # its own arm, and what the list says
    assert "warning: depth runs/plain20/0 took 12.0 minutes" in format_plan(evidence, [planned])
    with pytest.raises(ValueError, match=r"budget_hours is 0\.5"):
        run_evidence("list.yaml")
    for old, new in (("minutes: 6", "hours: 6"), ("depth.yaml", "deep.yaml")):
        (checkout / "list.yaml").write_text(LIST.replace(old, new))
        with pytest.raises(ValueError, match=r"list\.yaml|deep\.yaml"):
            plan_evidence(load_evidence("list.yaml"), checkout)


@pytest.mark.slow
def test_runs_leave_records_alone_which_count_in_a_clone(checkout, succeeds) -> None:
    (checkout / "depth.yaml").write_text(DEPTH.replace("[0, 1]", "[0]"))
    succeeds("evidence", "--list", "list.yaml")
    folder = checkout / "docs" / "experiments" / "depth"
    kept = {"config.yaml", "manifest.json", "metrics.jsonl", "per_image.json", "result.json", "status.json"}
    for run in folder.glob("runs/*/*"):
        assert {path.name for path in run.iterdir()} == kept
        assert str(checkout) not in (run / "manifest.json").read_text()
    for split in ("train", "test"):
        (checkout / split).rename(checkout / f"no_{split}")  # a clone has no data
    again = succeeds("evidence", "--list", "list.yaml")
    assert "depth: done before" in again
    result = folder / "runs" / "plain20" / "0" / "result.json"
    found = json.loads(result.read_text())
    found["classification"]["top1"] += 0.1
    result.write_text(json.dumps(found))
    (wrong,) = verify(checkout).findings
    assert "plain20" in wrong.file

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from detection.config.detection import DetectionConfig
from detection.config.load import dump_config, parse_config
from detection.engine.checkpoint import Checkpoint
from detection.experiments.methods import MethodRow, Outcome, format_outcomes, load_rows, read_outcomes, run_methods

Calls = list[SimpleNamespace]
TABLE9 = Path(__file__).parents[3] / "configs" / "methods" / "table9.yaml"
PLAIN = """
test: {nms_iou: 0.4, score_threshold: 0.01}
data: {test: [a:test], root: here, shorter_side: 300}
device: cpu
"""
OTHER = """
box: {context: true, pool: roi_align}
test: {nms_iou: 0.9, flip: true}
data: {test: [b:test], root: there}
device: cuda
"""
CONFIG, CONTEXT = parse_config(DetectionConfig, PLAIN), parse_config(DetectionConfig, OTHER)
ROWS = (
    MethodRow(name="plain"),
    MethodRow(name="refined", test={"refine": True, "vote_iou": 0.5}),
    MethodRow(name="context", needs="context"),
    MethodRow(name="scales", test={"scales": [200, 400], "vote_iou": None}),
    MethodRow(name="ensemble", needs="ensemble", test={"flip": True}),
    MethodRow(name="last", test={"nms_iou": 0.5}),
)


def checkpoint(name: str, config: DetectionConfig) -> Checkpoint:
    return Checkpoint(Path(name), {}, config, ("cat",), 0)


BASE = checkpoint("base", replace(CONFIG, seed=3))  # its own config says other things than the one given
WITH_CONTEXT = checkpoint("context", CONTEXT)
MEMBERS = [checkpoint("one", CONFIG), checkpoint("two", CONTEXT)]


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What the tests that ran were asked for; the result of each is its number, and it leaves its files."""
    calls = Calls()

    def run_test(config: DetectionConfig, checkpoint: Checkpoint, output: Path, **options: Any) -> dict[str, Any]:
        names = {"checkpoint": str(checkpoint.path), "ensemble": [str(member.path) for member in options["ensemble"]]}
        calls.append(SimpleNamespace(config=config, output=output, limit=options["limit"], **names))
        output.mkdir(parents=True, exist_ok=True)
        (output / "result.json").write_text(json.dumps({"number": len(calls)}))
        (output / "config.yaml").write_text(dump_config(config))
        return {"number": len(calls)}

    monkeypatch.setattr("detection.experiments.methods.run_test", run_test)
    monkeypatch.chdir(tmp_path)
    return calls


def run(rows: Any = ROWS, *, config: Any = CONFIG, base: Checkpoint = BASE, **options: Any) -> list[Outcome]:
    return run_methods(config, rows, base, Path("out"), **options)


def test_settings_add_up_and_context_and_ensemble_hold_for_all_rows_below(calls) -> None:
    outcomes = run(context=WITH_CONTEXT, ensemble=MEMBERS)
    assert [outcome.row for outcome in outcomes] == list(ROWS)
    plain = CONFIG.test
    refined = replace(plain, refine=True, vote_iou=0.5)
    scales = replace(refined, scales=(200, 400), vote_iou=None)
    flipped = replace(scales, flip=True)
    last = replace(flipped, nms_iou=0.5)
    assert [call.config.test for call in calls] == [plain, refined, refined, scales, flipped, last]
    assert [call.checkpoint for call in calls] == ["base"] * 2 + ["context"] * 4
    assert [call.ensemble for call in calls] == [[]] * 4 + [["one", "two"]] * 2
    # Context brings its architecture; but its data, device and test settings are not those of this test.
    for call in calls[2:]:
        assert replace(call.config, test=CONTEXT.test) == replace(CONTEXT, data=CONFIG.data, device="cpu")
    assert all(replace(call.config, test=CONFIG.test) == CONFIG for call in calls[:2])


def test_rows_that_lack_their_checkpoints_do_not_run_but_their_settings_hold_below(calls) -> None:
    results = [outcome.result for outcome in run(limit=7)]
    assert results == [{"number": 1}, {"number": 2}, None, {"number": 3}, None, {"number": 4}]
    assert [call.output for call in calls] == [Path("out") / str(number) for number in (0, 1, 3, 5)]
    assert [(call.checkpoint, call.ensemble, call.limit) for call in calls] == [("base", [], 7)] * 4
    assert calls[-1].config.test.flip
    outcomes = run(ensemble=MEMBERS)  # without context
    assert [outcome.row.name for outcome in outcomes if outcome.result is None] == ["context"]
    assert [call.checkpoint for call in calls[4:]] == ["base"] * 5
    assert calls[-1].ensemble == ["one", "two"]


@pytest.mark.parametrize("setting", [{"refin": True}, {"vote_iou": 1.5}, {"scales": [400]}, {"flip": "yes"}])
def test_a_bad_setting_of_the_last_row_costs_no_test(calls, setting) -> None:
    with pytest.raises(ValueError, match=rf"test\.{next(iter(setting))}"):
        run((*ROWS, MethodRow(name="bad", test=setting)))
    assert calls == []


def test_a_resumed_table_tests_what_is_missing_older_than_its_weights_or_of_other_settings(calls) -> None:
    Path("weights").touch()
    os.utime("weights", (1, 1))
    base, other = replace(BASE, path=Path("weights")), replace(CONFIG, test=replace(CONFIG.test, nms_iou=0.5))
    first = run(ROWS[:2], base=base, resume=True)
    Path("out/1/config.yaml").unlink()  # as after a kill
    again = run(ROWS[:2], base=base, resume=True)
    assert [outcome.result for outcome in (*first, *again)] == [{"number": n} for n in (1, 2, 1, 3)]
    assert read_outcomes(ROWS[:3], Path("out")) == [*again, Outcome(ROWS[2], None)]
    run(ROWS[:2], config=other, base=base, resume=True)
    for row in "01":
        os.utime(Path("out") / row / "result.json", (0, 0))
    run(ROWS[:2], config=other, base=base, resume=True)
    assert [call.output.name for call in calls] == ["0", "1", "1", "0", "1", "0", "1"]


def outcome(name: str, ap50: float | None = 0, ap: float | None = 0, *, paper: str = "", ran: bool = True) -> Outcome:
    result = {"bbox": {"AP50": ap50, "AP": ap}, "seconds_per_image": 0.1234}
    return Outcome(MethodRow(name=name, paper=paper), result if ran else None)


def test_golden_table() -> None:
    outcomes = [
        outcome("missing", ran=False),
        outcome("baseline", 0.484, 0.272, paper="48.4 / 27.2"),
        outcome("+ refinement", 0.4901, 0.3, paper="49.9 / 29.9"),
        outcome("+ context", paper="51.1 / 30.0", ran=False),
        outcome("+ scales", 0.478, 0.3256, paper="53.8 / 32.5"),
        outcome("+ nothing", None, None),
        outcome("+ flip", 0.5, 0.4),
        outcome("+ more", 1.0, 0.4),
    ]
    assert format_outcomes(outcomes).splitlines() == [
        "                 AP50      AP   +AP50     +AP  s/image  paper AP50 / AP",
        "missing       not run",
        "baseline         48.4    27.2                    0.123  48.4 / 27.2",
        "+ refinement     49.0    30.0    +0.6    +2.8    0.123  49.9 / 29.9",
        "+ context     not run                                   51.1 / 30.0",
        "+ scales         47.8    32.6    -1.2    +2.6    0.123  53.8 / 32.5",
        "+ nothing           -       -       -       -    0.123",
        "+ flip           50.0    40.0       -       -    0.123",
        "+ more          100.0    40.0   +50.0    +0.0    0.123",
    ]
    assert " ".join(format_outcomes([]).split()) == "AP50 AP +AP50 +AP s/image paper AP50 / AP"


def test_table_9_has_the_figures_of_the_paper_and_turns_on_one_method_after_the_other(calls) -> None:
    in_paper = [(row.name, row.paper[:11]) for row in load_rows(TABLE9) if row.paper[:1].isdigit()]
    assert in_paper == [
        ("baseline", "48.4 / 27.2"),
        ("+ box refinement", "49.9 / 29.9"),
        ("+ context", "51.1 / 30.0"),
        ("+ multi-scale testing", "53.8 / 32.5"),
        ("+ ensemble", "59.0 / 37.4"),
    ]
    run(load_rows(TABLE9), context=WITH_CONTEXT, ensemble=MEMBERS)
    scales = (200, 400, 600, 800, 1000)  # appendix B
    tests = [(call.config.test, call) for call in calls]
    assert [(t.refine, c.config.box.context, t.scales, t.flip, len(c.ensemble)) for t, c in tests] == [
        (False, False, (), False, 0),
        (True, False, (), False, 0),
        (True, True, (), False, 0),
        (True, True, scales, False, 0),
        (True, True, scales, True, 0),
        (True, True, scales, True, 2),
    ]
    assert [test.vote_iou is None for test, _ in tests] == [True] + [False] * 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "can't be read"),
        (b"\xff\xfe\x00", "can't be read"),
        (b"", "must hold the key 'rows'"),
        (b"rows: []", "rows"),
        (b"row: [{name: a}]", "no config key 'row'; did you mean 'rows'"),
        (b"rows: {name: a}", "'rows' takes a list"),
        (b"rows: [{name: a}, {paper: b}]", r"rows\[1\].*name"),
        (b"rows: [{name: a, tests: {}}]", r"no config key 'rows\[0\]\.tests'; did you mean 'rows\[0\]\.test'"),
        (b"rows: [{name: a, needs: luck}]", r"rows\[0\]\.needs.*'context' or 'ensemble'.*'luck'"),
    ],
)
def test_malformed_files_are_refused_by_name(tmp_path, text, message) -> None:
    path = tmp_path / "table.yaml"
    path.write_text("rows: [{name: a}, {name: b, test: {scales: [1, 2]}, needs: context, paper: 1 / 2}]")
    second = MethodRow(name="b", test={"scales": [1, 2]}, needs="context", paper="1 / 2")
    assert load_rows(path) == (MethodRow(name="a"), second)
    path.unlink()
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(ValueError, match=message) as error:
        load_rows(path)
    assert str(path) in str(error.value)

"""Mirrors detection/experiments/methods.py: the table's logic over a test that only takes notes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from detection.config.detection import BoxConfig, DetectionConfig, DetectorDataConfig, PostprocessConfig
from detection.config.load import dump_config
from detection.engine.checkpoint import Checkpoint
from detection.experiments.methods import MethodRow, Outcome, format_outcomes, load_rows, read_outcomes, run_methods

ROOT = Path(__file__).parents[3]
TABLE9 = ROOT / "configs" / "methods" / "table9.yaml"
CONFIG = DetectionConfig(
    test=PostprocessConfig(nms_iou=0.4, score_threshold=0.01),
    data=DetectorDataConfig(test=("a:test",), root="here", shorter_side=300),
    device="cpu",
)
CONTEXT = DetectionConfig(
    box=BoxConfig(context=True, pool="roi_align"),
    test=PostprocessConfig(nms_iou=0.9, flip=True),
    data=DetectorDataConfig(test=("b:test",), root="there"),
    device="cuda",
)
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


@dataclass(frozen=True, slots=True)
class Call:
    """What a test was asked for."""

    config: DetectionConfig
    checkpoint: str
    output: Path
    ensemble: list[str]
    limit: int | None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The tests that ran; the result of each is its number."""
    calls: list[Call] = []

    def run_test(config: DetectionConfig, checkpoint: Checkpoint, output: Path, **options: Any) -> dict[str, Any]:
        ensemble = [str(member.path) for member in options["ensemble"]]
        calls.append(Call(config, str(checkpoint.path), output, ensemble, options["limit"]))
        return {"number": len(calls)}

    monkeypatch.setattr("detection.experiments.methods.run_test", run_test)
    return calls


def run(*rows: MethodRow, **options: Any) -> list[Outcome]:
    return run_methods(CONFIG, rows or ROWS, BASE, Path("out"), **options)


def with_all() -> list[Outcome]:
    return run(context=WITH_CONTEXT, ensemble=MEMBERS)


class TestRows:
    """What each row of the table tests."""

    def test_settings_add_up(self, calls: list[Call]) -> None:
        with_all()
        plain = CONFIG.test
        refined = replace(plain, refine=True, vote_iou=0.5)
        scales = replace(refined, scales=(200, 400), vote_iou=None)
        flipped = replace(scales, flip=True)
        last = replace(flipped, nms_iou=0.5)
        assert [call.config.test for call in calls] == [plain, refined, refined, scales, flipped, last]

    def test_context_and_ensemble_hold_for_all_rows_below(self, calls: list[Call]) -> None:
        with_all()
        assert [call.checkpoint for call in calls] == ["base"] * 2 + ["context"] * 4
        assert [call.ensemble for call in calls] == [[]] * 4 + [["one", "two"]] * 2

    def test_context_brings_its_architecture(self, calls: list[Call]) -> None:
        # But its data, device and test settings are not those of this test.
        with_all()
        for call in calls[2:]:
            assert replace(call.config, test=CONTEXT.test) == replace(CONTEXT, data=CONFIG.data, device="cpu")
        for call in calls[:2]:
            assert replace(call.config, test=CONFIG.test) == CONFIG

    def test_rows_that_lack_their_checkpoints_do_not_run(self, calls: list[Call]) -> None:
        results = [outcome.result for outcome in run()]
        assert results == [{"number": 1}, {"number": 2}, None, {"number": 3}, None, {"number": 4}]
        assert {call.checkpoint for call in calls} == {"base"}
        assert all(call.ensemble == [] for call in calls)

    def test_ensemble_without_context(self, calls: list[Call]) -> None:
        outcomes = run(ensemble=MEMBERS)
        assert [outcome.row.name for outcome in outcomes if outcome.result is None] == ["context"]
        assert [call.checkpoint for call in calls] == ["base"] * 5
        assert calls[-1].ensemble == ["one", "two"]

    def test_settings_of_a_row_that_did_not_run_hold_below(self, calls: list[Call]) -> None:
        run()
        assert calls[-1].config.test.flip

    def test_outcomes_are_in_the_order_of_the_rows(self, calls: list[Call]) -> None:
        assert [outcome.row for outcome in with_all()] == list(ROWS)
        assert len(calls) == len(ROWS)

    def test_files_of_a_row_lie_under_its_number(self, calls: list[Call]) -> None:
        run(limit=7)
        assert [call.output for call in calls] == [Path("out") / str(number) for number in (0, 1, 3, 5)]
        assert [call.limit for call in calls] == [7] * 4

    @pytest.mark.parametrize("setting", [{"refin": True}, {"vote_iou": 1.5}, {"scales": [400]}, {"flip": "yes"}])
    def test_a_bad_setting_of_the_last_row_costs_no_test(self, calls: list[Call], setting: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=rf"test\.{next(iter(setting))}"):
            run(*ROWS, MethodRow(name="bad", test=setting))
        assert calls == []


class TestResume:
    """Rows that are there already."""

    @pytest.fixture
    def tested(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The rows that are tested, by their folders; a test leaves its files."""
        tested: list[str] = []

        def run_test(config: DetectionConfig, checkpoint: Checkpoint, output: Path, **_: Any) -> dict[str, Any]:
            tested.append(output.name)
            output.mkdir(parents=True, exist_ok=True)
            (output / "result.json").write_text(json.dumps({"weights": str(checkpoint.path)}))
            (output / "config.yaml").write_text(dump_config(config))
            return {"weights": str(checkpoint.path)}

        monkeypatch.setattr("detection.experiments.methods.run_test", run_test)
        return tested

    def run(self, folder: Path, config: DetectionConfig = CONFIG) -> list[Outcome]:
        weights = folder / "weights"
        weights.touch()
        os.utime(weights, (1, 1))
        base = replace(BASE, path=weights)
        return run_methods(config, ROWS[:2], base, folder / "out", resume=True)

    def test_nothing_is_tested_twice(self, tested: list[str], tmp_path: Path) -> None:
        first = self.run(tmp_path)
        (tmp_path / "out" / "1" / "config.yaml").unlink()  # as after a kill
        assert self.run(tmp_path) == first
        assert tested == ["0", "1", "1"]
        assert read_outcomes(ROWS[:3], tmp_path / "out") == [*first, Outcome(ROWS[2], None)]

    def test_newer_weights_and_other_settings_are_tested_anew(self, tested: list[str], tmp_path: Path) -> None:
        self.run(tmp_path)
        self.run(tmp_path, replace(CONFIG, test=replace(CONFIG.test, nms_iou=0.5)))
        assert tested == ["0", "1", "0", "1"]
        for row in "01":
            os.utime(tmp_path / "out" / row / "result.json", (0, 0))
        self.run(tmp_path, replace(CONFIG, test=replace(CONFIG.test, nms_iou=0.5)))
        assert tested == ["0", "1"] * 3


def outcome(name: str, ap50: float | None = 0, ap: float | None = 0, *, paper: str = "", ran: bool = True) -> Outcome:
    result = {"bbox": {"AP50": ap50, "AP": ap}, "seconds_per_image": 0.1234}
    return Outcome(MethodRow(name=name, paper=paper), result if ran else None)


class TestFormat:
    """The printed table."""

    def test_golden(self) -> None:
        outcomes = [
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
            "baseline         48.4    27.2                    0.123  48.4 / 27.2",
            "+ refinement     49.0    30.0    +0.6    +2.8    0.123  49.9 / 29.9",
            "+ context     not run                                   51.1 / 30.0",
            "+ scales         47.8    32.6    -1.2    +2.6    0.123  53.8 / 32.5",
            "+ nothing           -       -       -       -    0.123",
            "+ flip           50.0    40.0       -       -    0.123",
            "+ more          100.0    40.0   +50.0    +0.0    0.123",
        ]

    def test_first_row_that_ran_has_no_gain(self) -> None:
        lines = format_outcomes([outcome("a", ran=False), outcome("b", 0.5, 0.25), outcome("c", 0.75, 0.5)])
        assert [line.split() for line in lines.splitlines()[1:]] == [
            ["a", "not", "run"],
            ["b", "50.0", "25.0", "0.123"],
            ["c", "75.0", "50.0", "+25.0", "+25.0", "0.123"],
        ]

    def test_no_rows(self) -> None:
        assert " ".join(format_outcomes([]).split()) == "AP50 AP +AP50 +AP s/image paper AP50 / AP"


class TestTableFiles:
    """YAML files of rows."""

    def test_table_9_has_the_figures_of_the_paper(self) -> None:
        rows = load_rows(TABLE9)
        figures = ["48.4 / 27.2", "49.9 / 29.9", "51.1 / 30.0", "53.8 / 32.5", "59.0 / 37.4"]
        in_paper = [row for row in rows if row.paper[:1].isdigit()]
        assert [row.paper[:11] for row in in_paper] == figures
        names = ["baseline", "+ box refinement", "+ context", "+ multi-scale testing", "+ ensemble"]
        assert [row.name for row in in_paper] == names

    def test_table_9_turns_on_one_method_after_the_other(self, calls: list[Call]) -> None:
        run_methods(CONFIG, load_rows(TABLE9), BASE, Path("out"), context=WITH_CONTEXT, ensemble=MEMBERS)
        scales = (200, 400, 600, 800, 1000)  # appendix B
        seen = [
            (c.config.test.refine, c.config.box.context, c.config.test.scales, c.config.test.flip, len(c.ensemble))
            for c in calls
        ]
        assert seen == [
            (False, False, (), False, 0),
            (True, False, (), False, 0),
            (True, True, (), False, 0),
            (True, True, scales, False, 0),
            (True, True, scales, True, 0),
            (True, True, scales, True, 2),
        ]
        assert [call.config.test.vote_iou is None for call in calls] == [True] + [False] * 5

    def test_round_trip(self, tmp_path: Path) -> None:
        path = tmp_path / "table.yaml"
        path.write_text("rows: [{name: a}, {name: b, test: {scales: [1, 2]}, needs: context, paper: 1 / 2}]")
        assert load_rows(path) == (
            MethodRow(name="a"),
            MethodRow(name="b", test={"scales": [1, 2]}, needs="context", paper="1 / 2"),
        )

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("rows: [", "can't be read"),
            ("", "must hold the key 'rows'"),
            ("- {name: a}", "must hold the key 'rows'"),
            ("{}", "rows"),
            ("rows: []", "rows"),
            ("row: [{name: a}]", "no config key 'row'; did you mean 'rows'"),
            ("rows: {name: a}", "'rows' takes a list"),
            ("rows: [a]", r"rows\[0\]"),
            ("rows: [{name: a}, {paper: b}]", r"rows\[1\].*name"),
            ("rows: [{name: a, tests: {}}]", r"no config key 'rows\[0\]\.tests'; did you mean 'rows\[0\]\.test'"),
            ("rows: [{name: a, needs: luck}]", r"rows\[0\]\.needs.*'context' or 'ensemble'.*'luck'"),
            ("rows: [{name: 5}]", r"rows\[0\]\.name"),
            ("rows: [{name: a, test: [flip]}]", r"rows\[0\]\.test"),
        ],
    )
    def test_malformed_files_are_refused_by_name(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "table.yaml"
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as error:
            load_rows(path)
        assert str(path) in str(error.value)

    def test_missing_and_binary_files_are_refused_by_name(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"absent\.yaml can't be read"):
            load_rows(tmp_path / "absent.yaml")
        (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ValueError, match=r"binary\.yaml can't be read"):
            load_rows(tmp_path / "binary.yaml")

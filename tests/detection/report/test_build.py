"""A whole report, from a made-up experiment folder to its files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from detection.report.build import write_report

Make = Callable[..., Path]

SEEDS = (0, 1, 2)


def read(output: Path) -> tuple[dict[str, Any], str]:
    """report.json and report.html of a new report."""
    page = write_report(output)
    assert page == output / "report" / "report.html"
    return json.loads((page.parent / "report.json").read_text()), page.read_text()


def titles(html: str) -> list[str]:
    return re.findall(r"<h2[^>]*>([^<]+)</h2>", html)


def test_a_report_before_the_second_seeds_pools_none_and_says_what_the_plan_asked_for(make_experiment: Make) -> None:
    output = make_experiment({"resnet18": 0.5, "resnet34": 0.95}, seeds=(0,))
    path = output / "experiment.json"
    plan = json.loads(path.read_text())
    plan |= {"pool_seeds": True, "base": plan["base"] | {"test.max_detections": 300}}
    plan["protocol"] |= {"name": "equal_time", "minutes": 100.0}
    path.write_text(json.dumps(plan))
    numbers, html = read(output)
    assert numbers["planning"]["pooling"] is None
    assert "resnet18 30.0; resnet34 90.0" in html  # minutes
    assert "best 100 detections" in html


class TestWholeExperiment:
    @pytest.fixture
    def report(self, make_experiment: Make) -> tuple[dict[str, Any], str]:
        return read(make_experiment({"resnet18": 0.5, "resnet34": 0.95}, seeds=SEEDS))

    def test_the_conclusion_comes_first_in_the_words_of_the_intervals(self, report: tuple[dict[str, Any], str]) -> None:
        numbers, html = report
        assert titles(html)[:3] == ["Conclusion", "Results", "Is it fair?"]
        (pair,) = numbers["pairs"]
        assert (pair["a"], pair["b"]) == ("resnet18", "resnet34")
        assert pair["verdict"].startswith("resnet34 is better than resnet18")
        first, second, third = re.findall(r"<p>(.*?)</p>", html[: html.index("<nav")])
        assert first.startswith("Take resnet34")
        assert "70.0 ms" in second
        assert "resnet18 (40.0)" in second
        assert third.startswith("To see a gap of 1 AP")
        assert "Recipe: " in html
        assert '<a href="../runs/resnet34/2/config.yaml">resnet34, seed 2</a>' in html

    def test_every_figure_answers_both_questions(self, report: tuple[dict[str, Any], str]) -> None:
        numbers, html = report
        (pair,) = numbers["pairs"]
        shown = {"AP", "AP50", "AP75", "APs", "AR100", "VOC mAP"}
        assert shown <= pair["methods"].keys() == pair["detectors"].keys()
        assert pair["methods"]["AP50"]["proven"]
        assert pair["class_ap"].keys() == {"cat", "dog", "sheep <&> goat"}
        assert pair["class_ap"]["cat"] != numbers["variants"]["resnet34"]["class_ap"]["cat"]
        assert pair["visible"]["methods"] > 0
        assert (
            numbers["variants"]["resnet34"]["methods"]["AP"]["low"]
            < numbers["variants"]["resnet34"]["intervals"]["AP"]["low"]
        )
        for text in ("These methods, trained anew", "These very detectors on other test images", "8 times in 10"):
            assert text in html

    def test_planning_says_what_one_point_takes(self, report: tuple[dict[str, Any], str]) -> None:
        plan = report[0]["planning"]
        assert plan["design"] == {"variants": 2, "seeds": 3, "images": 12, "confidence": 0.95, "pool": False}
        assert plan["visible"] > plan["gap"] == 0.01
        assert plan["pooling"] is None

    def test_numbers_are_those_of_the_runs(self, report: tuple[dict[str, Any], str], tmp_path: Path) -> None:
        numbers, html = report
        folder = tmp_path / "experiment" / "runs" / "resnet34"
        values = [json.loads((folder / seed / "result.json").read_text())["bbox"]["AP"] for seed in map(str, SEEDS)]
        ap = numbers["variants"]["resnet34"]["metrics"]["AP"]
        assert ap["values"] == values
        mean, sd = fmean(values), stdev(values)
        assert (ap["mean"], ap["sd"]) == (pytest.approx(mean), pytest.approx(sd))
        assert f"{100 * mean:.1f} ± {100 * sd:.1f}" in html
        assert numbers["variants"]["resnet34"]["intervals"]["AP"]["value"] == pytest.approx(mean)

    def test_cost_and_front(self, report: tuple[dict[str, Any], str]) -> None:
        numbers, _ = report
        first, second = numbers["variants"].values()
        assert first["ap_per_gflop"] == pytest.approx(first["metrics"]["AP"]["mean"] / 12.5)
        assert second["ap_per_ms"] == pytest.approx(second["metrics"]["AP"]["mean"] / 70)
        assert first["pareto"] == second["pareto"] == {"gflops": True, "latency": True}

    def test_it_says_what_differs_and_what_it_was_made_of(self, report: tuple[dict[str, Any], str]) -> None:
        numbers, html = report
        for text in ("backbone.name, backbone.norm", "head parameters", "2,000,000", "c" * 16, "from scratch"):
            assert text in html
        assert numbers["fairness"]["hashes"]["code"] == "c" * 64

    def test_text_from_the_data_stays_text(self, report: tuple[dict[str, Any], str]) -> None:
        assert "sheep &lt;&amp;&gt; goat" in report[1]
        assert "<&>" not in report[1]

    def test_pictures_show_what_one_alone_finds(self, report: tuple[dict[str, Any], str]) -> None:
        numbers, html = report
        assert numbers["pairs"][0]["objects"]["only_b"] > numbers["pairs"][0]["objects"]["only_a"]
        assert "resnet34 (first) finds" in html
        assert html.count("data:image/jpeg;base64,") >= 4

    def test_it_asks_no_network(self, report: tuple[dict[str, Any], str]) -> None:
        html = report[1]
        assert not re.findall(
            r"(?:src|href)\s*=\s*[\"']?\s*(?:https?:)?//|url\(\s*[\"']?(?!#)|@import|<script[^>]", html
        )

    def test_identifiers_that_figures_refer_to_occur_once(self, report: tuple[dict[str, Any], str]) -> None:
        found = re.findall(r' id="([^"]+)"', report[1])
        assert len(found) == len(set(found))
        referred = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', report[1])
        assert {name for pair in referred for name in pair if name} <= set(found)

    def test_no_paper_column_for_other_data(self, report: tuple[dict[str, Any], str]) -> None:
        assert "He et al." not in report[1]


class TestRunsWithoutAResult:
    def test_a_failed_seed_is_named_and_the_others_count(self, make_experiment: Make) -> None:
        numbers, html = read(make_experiment({"a": 0.6, "b": 0.8}, broken=[("b", 1)]))
        assert numbers["variants"]["b"]["seeds"] == [0]
        (pair,) = numbers["pairs"]
        assert (pair["methods"], pair["missing"], pair["question"]) == (None, "a second seed of b", "detectors")
        assert numbers["planning"]["noise"] is None
        assert "takes a second seed of b" in html
        assert "b seed 1 (failed)" in html
        assert "the loss is nan at iteration 7" in html
        assert "Runs without a result" in titles(html)

    def test_a_variant_without_any_is_listed(self, make_experiment: Make) -> None:
        numbers, html = read(make_experiment({"a": 0.6, "b": 0.8}, broken=[("b", 0), ("b", 1)]))
        assert list(numbers["variants"]) == ["a"]
        assert numbers["pairs"] == []
        assert "b seed 0 (failed), b seed 1 (failed)" in html

    def test_without_any_run_there_is_still_a_page(self, make_experiment: Make) -> None:
        numbers, html = read(make_experiment({"a": 0.6, "b": 0.8}, seeds=[0], broken=[("a", 0), ("b", 0)]))
        assert numbers["variants"] == {}
        assert "No run has finished" in html
        assert titles(html)[-2:] == ["Runs without a result", "Environment and method"]

    def test_done_without_detections_is_no_result(self, make_experiment: Make) -> None:
        output = make_experiment({"a": 0.6, "b": 0.8}, seeds=[0])
        (output / "runs" / "a" / "0" / "detections.json").unlink()
        numbers, _ = read(output)
        (run,) = numbers["unfinished"]
        assert (run["variant"], run["state"]) == ("a", "failed")
        assert "holds no detections.json" in run["error"]

    def test_not_started(self, make_experiment: Make) -> None:
        output = make_experiment({"a": 0.6, "b": 0.8}, seeds=[0])
        (output / "runs" / "b" / "0" / "status.json").unlink()
        assert read(output)[0]["unfinished"][0]["state"] == "not started"


def test_costs_may_be_missing(make_experiment: Make) -> None:
    output = make_experiment({"a": 0.6, "b": 0.8}, seeds=[0])
    (output / "costs" / "a.json").unlink()
    numbers, _ = read(output)
    assert numbers["variants"]["a"]["ap_per_ms"] is None
    assert numbers["variants"]["a"]["pareto"] == {"gflops": False, "latency": False}


def test_the_search_of_the_learning_rates_is_shown(make_experiment: Make) -> None:
    output = make_experiment({"a": 0.6, "b": 0.8}, seeds=[0])
    found = {
        "a": {"scores": {"0.5": 0.123, "1": None}, "chosen": 0.5, "base_lr": 0.005},
        "b": {"scores": {"0.5": None, "1": None}, "chosen": None, "base_lr": None},
    }
    (output / "grid.json").write_text(json.dumps({"metric": "bbox.AP", "variants": found, "validation": ["c:val"]}))
    read(output)
    text = (output / "report" / "report.md").read_text()
    assert "bbox.AP on c:val" in text
    assert "| a | 12.3 | - | 0.005 |\n| b | - | - | - |" in text


def test_no_experiment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"experiment\.json can't be read.*resdet compare"):
        write_report(tmp_path)


def test_arms_of_other_programs_stand_beside_trained_ones(make_experiment: Make) -> None:
    output = make_experiment({"resnet18": 0.5}, seeds=SEEDS)
    plan = json.loads((output / "experiment.json").read_text())
    files = [str(output / "runs" / "resnet18" / str(seed) / "detections.json") for seed in SEEDS]
    plan["detections"] = {"yolo": files}
    (output / "experiment.json").write_text(json.dumps(plan))
    numbers, html = read(output)
    (pair,) = numbers["pairs"]
    assert (pair["a"], pair["b"], pair["methods"]["AP"]["value"]) == ("resnet18", "yolo", 0)
    yolo, trained = numbers["variants"]["yolo"], numbers["variants"]["resnet18"]
    assert yolo["metrics"] == trained["metrics"]
    assert (yolo["files"], yolo["seeds"], yolo["costs"], yolo["training"]) == (files, [1, 2, 3], {}, [])
    assert "resnet18, yolo" in html  # among the facts
    assert not yolo["pareto"]["gflops"]


def test_latency_that_was_measured_elsewhere_is_merged(make_experiment: Make) -> None:
    output = make_experiment({"resnet18": 0.5, "resnet34": 0.6})
    (output / "latency").mkdir()
    rows = {name: {"p50": 12.34, "p95": 15.0, "weights": "run"} for name in ("resnet18", "resnet34")}
    place = {"host": "laptop", "described": "CPU, 4 threads", "precision": "bf16", "batch": 1, "variants": rows}
    (output / "latency" / "laptop.json").write_text(json.dumps(place))
    numbers, html = read(output)
    assert numbers["latency"] == [place]
    assert "laptop: CPU, 4 threads, bf16, one image at a time" in html
    assert "12.3 (15.0)" in html


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_whole_report_is_readable_in_a_browser(
    make_experiment: Make, inspect_page: Callable[..., dict[str, Any]], width: int
) -> None:
    skills = {"resnet18_with_a_long_name": 0.5, "resnet34": 0.9, "plain18": 0.45}
    seen = inspect_page(write_report(make_experiment(skills, seeds=SEEDS)), width)
    assert seen == {"width": width, "over": 0, "outside": [], "overlap": [], "pale": []}

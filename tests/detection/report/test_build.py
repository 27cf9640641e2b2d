import json
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from detection.report.build import write_report
from detection.report.reading import read_experiment

SEEDS = (0, 1, 2)


def read(output: Path) -> tuple[dict[str, Any], str]:
    """report.json and report.html of a new report."""
    page = write_report(output)
    assert page == output / "report" / "report.html"
    return json.loads((page.parent / "report.json").read_text()), page.read_text()


def titles(html: str) -> list[str]:
    return re.findall(r"<h2[^>]*>([^<]+)</h2>", html)


def change_plan(output: Path, **changes: Any) -> dict[str, Any]:
    plan = json.loads((output / "experiment.json").read_text()) | changes
    (output / "experiment.json").write_text(json.dumps(plan))
    return plan


@pytest.fixture(scope="module")
def report(whole_experiment, whole_report):
    return whole_experiment, json.loads((whole_report.parent / "report.json").read_text()), whole_report.read_text()


class TestWholeExperiment:
    def test_the_conclusion_comes_first_in_the_words_of_the_intervals(self, report) -> None:
        _, numbers, html = report
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

    def test_numbers_are_those_of_the_runs_and_answer_both_questions(self, report) -> None:
        output, numbers, html = report
        (pair,), (first, second) = numbers["pairs"], numbers["variants"].values()
        assert {"AP", "AP50", "AP75", "APs", "AR100", "VOC mAP"} <= pair["methods"].keys() == pair["detectors"].keys()
        assert pair["methods"]["AP50"]["proven"]
        assert pair["class_ap"].keys() == {"cat", "dog", "sheep <&> goat"}
        assert pair["class_ap"]["cat"] != second["class_ap"]["cat"]
        assert pair["visible"]["methods"] > 0
        assert second["methods"]["AP"]["low"] < second["intervals"]["AP"]["low"]
        for text in ("These methods, trained anew", "These very detectors on other test images", "8 times in 10"):
            assert text in html
        folder, ap = output / "runs" / "resnet34", second["metrics"]["AP"]
        values = [json.loads((folder / str(seed) / "result.json").read_text())["bbox"]["AP"] for seed in SEEDS]
        mean, sd = fmean(values), stdev(values)
        assert (ap["values"], ap["mean"], ap["sd"]) == (values, pytest.approx(mean), pytest.approx(sd))
        assert f"{100 * mean:.1f} ± {100 * sd:.1f}" in html
        assert second["intervals"]["AP"]["value"] == pytest.approx(mean)
        assert first["ap_per_gflop"] == pytest.approx(first["metrics"]["AP"]["mean"] / 12.5)
        assert second["ap_per_ms"] == pytest.approx(mean / 70)
        assert first["pareto"] == second["pareto"] == {"gflops": True, "latency": True}
        plan = numbers["planning"]
        assert plan["design"] == {"variants": 2, "seeds": 3, "images": 12, "confidence": 0.95, "pool": False}
        assert plan["visible"] > plan["gap"] == 0.01
        assert plan["pooling"] is None

    def test_the_page_says_what_it_was_made_of_shows_pictures_and_asks_no_network(self, report) -> None:
        _, numbers, html = report
        for text in ("backbone.name, backbone.norm", "head parameters", "2,000,000", "c" * 16, "from scratch"):
            assert text in html
        assert numbers["fairness"]["hashes"]["code"] == "c" * 64
        assert "sheep &lt;&amp;&gt; goat" in html
        assert "<&>" not in html  # text from the data stays text
        assert numbers["pairs"][0]["objects"]["only_b"] > numbers["pairs"][0]["objects"]["only_a"]
        assert "resnet34 (first) finds" in html
        assert html.count("data:image/jpeg;base64,") >= 4
        asks = r"(?:src|href)\s*=\s*[\"']?\s*(?:https?:)?//|url\(\s*[\"']?(?!#)|@import|<script[^>]"
        assert not re.findall(asks, html)
        found = re.findall(r' id="([^"]+)"', html)
        assert len(found) == len(set(found))
        referred = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html)
        assert {name for pair in referred for name in pair if name} <= set(found)
        assert "He et al." not in html  # no paper column for other data


def test_a_report_before_the_second_seeds_pools_none_and_says_what_the_plan_asked_for(make_experiment) -> None:
    output = make_experiment({"resnet18": 0.5, "resnet34": 0.95}, seeds=(0,))
    plan = change_plan(output, pool_seeds=True)
    protocol = plan["protocol"] | {"name": "equal_time", "minutes": 100.0}
    change_plan(output, base=plan["base"] | {"test.max_detections": 300}, protocol=protocol)
    (output / "costs" / "resnet18.json").unlink()
    chosen = {"scores": {"0.5": 0.123, "1": None}, "chosen": 0.5, "base_lr": 0.005}
    none = {"scores": {"0.5": None, "1": None}, "chosen": None, "base_lr": None}
    grid = {"metric": "bbox.AP", "variants": {"resnet18": chosen, "resnet34": none}, "validation": ["c:val"]}
    (output / "grid.json").write_text(json.dumps(grid))
    numbers, html = read(output)
    assert numbers["planning"]["pooling"] is None
    assert "resnet18 30.0; resnet34 90.0" in html  # minutes
    assert "best 100 detections" in html
    own = numbers["variants"]["resnet18"]
    assert (own["ap_per_ms"], own["pareto"]) == (None, {"gflops": False, "latency": False})  # costs may be missing
    text = (output / "report" / "report.md").read_text()
    assert "bbox.AP on c:val" in text  # the search of the learning rates
    assert "| resnet18 | 12.3 | - | 0.005 |\n| resnet34 | - | - | - |" in text


class TestRunsWithoutAResult:
    def test_a_failed_seed_is_named_and_the_others_count(self, make_experiment) -> None:
        numbers, html = read(make_experiment({"a": 0.6, "b": 0.8}, broken=[("b", 1)]))
        assert numbers["variants"]["b"]["seeds"] == [0]
        (pair,) = numbers["pairs"]
        assert (pair["methods"], pair["missing"], pair["question"]) == (None, "a second seed of b", "detectors")
        assert numbers["planning"]["noise"] is None
        for text in ("takes a second seed of b", "b seed 1 (failed)", "the loss is nan at iteration 7"):
            assert text in html
        assert "Runs without a result" in titles(html)

    def test_variants_without_any_are_listed_and_without_one_there_is_still_a_page(self, make_experiment) -> None:
        output = make_experiment({"a": 0.6, "b": 0.8}, seeds=[0], broken=[("b", 0)])
        numbers, html = read(output)
        assert (list(numbers["variants"]), numbers["pairs"]) == (["a"], [])
        assert "b seed 0 (failed)" in html
        (output / "runs" / "b" / "0" / "status.json").unlink()
        assert [run.state for run in read_experiment(output).unfinished] == ["not started"]
        (output / "runs" / "a" / "0" / "detections.json").unlink()
        numbers, html = read(output)
        (run, _) = numbers["unfinished"]
        assert (numbers["variants"], run["variant"], run["state"]) == ({}, "a", "failed")
        assert "holds no detections.json" in run["error"]
        assert "No run has finished" in html
        assert titles(html)[-2:] == ["Runs without a result", "Environment and method"]
        (output / "experiment.json").unlink()
        with pytest.raises(ValueError, match=r"experiment\.json can't be read.*resdet compare"):
            write_report(output)


def test_arms_of_other_programs_and_latency_measured_elsewhere_stand_beside_trained_ones(make_experiment) -> None:
    output = make_experiment({"resnet18": 0.5}, seeds=SEEDS)
    files = [str(output / "runs" / "resnet18" / str(seed) / "detections.json") for seed in SEEDS]
    change_plan(output, detections={"yolo": files})
    (output / "latency").mkdir()
    rows = {"resnet18": {"p50": 12.34, "p95": 15.0, "weights": "run"}}
    place = {"host": "laptop", "described": "CPU, 4 threads", "precision": "bf16", "batch": 1, "variants": rows}
    (output / "latency" / "laptop.json").write_text(json.dumps(place))
    numbers, html = read(output)
    (pair,) = numbers["pairs"]
    assert (pair["a"], pair["b"], pair["methods"]["AP"]["value"]) == ("resnet18", "yolo", 0)
    yolo, trained = numbers["variants"]["yolo"], numbers["variants"]["resnet18"]
    assert yolo["metrics"] == trained["metrics"]
    assert (yolo["files"], yolo["seeds"], yolo["costs"], yolo["training"]) == (files, [1, 2, 3], {}, [])
    assert "resnet18, yolo" in html  # among the facts
    assert not yolo["pareto"]["gflops"]
    assert numbers["latency"] == [place]
    assert "laptop: CPU, 4 threads, bf16, one image at a time" in html
    assert "12.3 (15.0)" in html


@pytest.mark.slow
def test_a_whole_report_is_readable_in_a_browser(make_experiment, assert_readable) -> None:
    skills = {"resnet18_with_a_long_name": 0.5, "resnet34": 0.9, "plain18": 0.45}
    assert_readable(write_report(make_experiment(skills, seeds=SEEDS)))

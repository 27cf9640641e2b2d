import json
from pathlib import Path
from typing import Any

import pytest

from detection.config.load import dump_config
from detection.reproduction.figures import changed_keys, format_table, table_figures
from detection.reproduction.jobs import Job, make_jobs
from detection.reproduction.tables import PaperTable, load_table, table_names


def jobs_of(name: str, output: Path, *overrides: str) -> tuple[PaperTable, list[Job]]:
    table, file = load_table(name)
    return table, make_jobs(table, file, output, overrides)


def finish(job: Job, metric: dict[str, dict[str, float]] | None) -> None:
    """Leaves the files of a finished job."""
    for training in job.trainings:
        (training.folder / "checkpoints").mkdir(parents=True)
        (training.folder / "checkpoints" / f"{training.config.solver.iterations:07d}.safetensors").touch()
        (training.folder / "config.yaml").write_text(dump_config(training.config))
    if metric is not None:
        (job.run_directory / "result.json").write_text(json.dumps(metric))


def test_every_table_has_the_figures_of_the_paper_and_shares_runs_by_their_names(tmp_path) -> None:
    found, seen = dict[str, Any](), dict[Path, Job]()
    for name in table_names():
        table, jobs = jobs_of(name, tmp_path)
        found[name] = [(figure.metric, round(100 * figure.paper, 2)) for figure in table_figures(table, jobs)]
        assert name == f"table{table.table}"
        assert all(seen.setdefault(job.folder, job).config == job.config for job in jobs)
    assert len(seen) == 5 + 4 + 2 + 2 + 2 + 1 + 1
    assert found == {
        "table6": [("top1", 91.25), ("top1", 92.49), ("top1", 92.83), ("top1", 93.03), ("top1", 93.57)],
        "table7": [("VOC mAP", 73.2), ("VOC mAP", 76.4), ("VOC mAP", 70.4), ("VOC mAP", 73.8)],
        "table8": [("AP50", 41.5), ("AP", 21.2), ("AP50", 48.4), ("AP", 27.2)],
        "table9": [],  # its rows are those of configs/methods/table9.yaml
        "table10": [("VOC mAP", 85.6)],
        "table11": [("VOC mAP", 83.8)],
        "table12": [("VOC mAP", 60.5)],
    }


def test_bands_decide_where_there_are_some_and_else_the_difference_is_shown(tmp_path) -> None:
    table, jobs = jobs_of("table7", tmp_path)
    for job, metric in zip(jobs, ({"voc": {"mAP": 0.7152}}, {"voc": {"mAP": 0.7471}}, None), strict=False):
        finish(job, metric)
    figures = table_figures(table, jobs)
    assert figures[0].accept_from == pytest.approx(0.7152, abs=5e-5)  # tests/detection/report/test_paper.py
    verdicts = ["in the band", "below the band", "trained; VOC's server measures it", "not run"]
    assert [figure.verdict for figure in figures] == verdicts
    (cells,) = [line.split() for line in format_table(table, jobs).splitlines() if line.startswith("VGG-16, VOC 2007")]
    assert " ".join(cells) == "VGG-16, VOC 2007 test VOC mAP 71.5 73.2 71.5 in the band"
    table, jobs = jobs_of("table8", tmp_path)
    finish(jobs[0], {"bbox": {"AP50": 0.425, "AP": 0.208}})
    shown = ["+1.00, no band", "-0.40, no band", "not run", "not run"]
    assert [figure.verdict for figure in table_figures(table, jobs)] == shown


def test_a_changed_recipe_has_no_verdict_and_runs_of_another_config_are_refused(tmp_path) -> None:
    table, jobs = jobs_of("table7", tmp_path / "a", "solver.base_lr=0.002", "data.root=elsewhere")
    finish(jobs[0], {"voc": {"mAP": 0.9}})
    assert table_figures(table, jobs)[0].verdict == ""
    assert changed_keys(jobs) == ["solver.base_lr=0.002"]
    assert "solver.base_lr=0.002" in format_table(table, jobs)
    finish(jobs_of("table7", tmp_path / "b", "alternating.rpn_iterations=7")[1][0], {"voc": {"mAP": 0.1}})
    with pytest.raises(ValueError, match=r"solver\.iterations 7, and vgg16_voc07 now takes 80000"):
        jobs_of("table7", tmp_path / "b")[1][0].check()


def test_malformed_files_are_refused_by_name(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    for programs, message in (
        ("{name: a, run: train, config: x.yaml, init: b}, {name: b, run: train, config: x.yaml}", "'a' must"),
        ("{name: a, run: train, config: x.yaml}, {name: a, run: train, config: x.yaml}", "'a' must"),
        ("{name: a, run: methods, config: x.yaml}", "weights and rows"),
        ("{name: ../a, run: train, config: x.yaml}", "names a folder"),
        ("{name: a, run: trains, config: x.yaml}", r"programs\[0\]\.run"),
    ):
        path.write_text(f'{{table: "1", title: t, programs: [{programs}]}}')
        with pytest.raises(ValueError, match=message) as error:
            load_table(str(path))
        assert str(path) in str(error.value)
    with pytest.raises(ValueError, match="no table 'table77'; known: table6, table7"):
        load_table("table77")

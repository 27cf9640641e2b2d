"""What documents print follows from records, and a figure altered by hand is found."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from detection.data.index import index_digest
from detection.data.label_maps import LabelMaps
from detection.data.packed_strings import PackedStrings
from detection.evidence.labels import read_labels, write_labels
from detection.evidence.reports import check_report
from detection.evidence.verify import verify
from detection.pages.page import write_html
from detection.pages.plots import undrawn
from detection.report.build import report_page

ROOT = Path(__file__).parents[3]
BCCD = Path("docs/experiments/bccd")
TEMPLATE = """{% block quality %}
{% set short = run("short") %}
AP {{ short.figure("bbox.AP")|percent }} after {{ short.steps|fixed }} steps in {{ short.minutes()|fixed(1) }} minutes.
{% endblock %}
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A run of 1,000 steps, and a README with a block of its figures."""
    run, evidence = tmp_path / "docs" / "runs" / "short", tmp_path / "docs" / "evidence"
    run.mkdir(parents=True)
    evidence.mkdir()
    (run / "result.json").write_text(json.dumps({"bbox": {"AP": 0.5774}}))
    (run / "config.yaml").write_text("solver: {iterations: 1000}\n")
    lines = [{"iteration": step, "seconds_per_step": seconds} for step, seconds in ((400, 0.3), (1000, 0.1))]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (evidence / "README.jinja").write_text(TEMPLATE)
    (tmp_path / "README.md").write_text("# Results\n\n<!-- figures: quality -->\n<!-- end of figures -->\n")
    assert verify(tmp_path, write=True).findings == []
    return tmp_path


def altered(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_the_figures_of_this_repository_follow_from_its_records() -> None:
    verdict = verify(ROOT)
    assert [*map(str, verdict.findings)] == []
    assert verdict.figures > 100


@pytest.mark.slow
def test_the_reports_of_this_repository_follow_from_detections(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RESDET_DATA_ROOT", str(tmp_path))  # no data set is needed
    verdict = verify(ROOT, full=True)
    assert [*map(str, verdict.findings)] == []
    for name in ("bccd", "bccd_heads"):
        assert "follows from the detections" in verdict.reports[name]


def test_labels_are_those_that_a_run_was_tested_on(tmp_path) -> None:
    index, path = read_labels(ROOT / BCCD / "labels.json"), tmp_path / "labels.json"
    tested = json.loads((ROOT / BCCD / "runs/plain18/0/manifest.json").read_text())[-1]["data"]["test"]
    assert (len(index), index_digest(index)) == (tested["images"], tested["sha256"])
    write_labels(index, path)
    assert path.read_bytes() == (ROOT / BCCD / "labels.json").read_bytes()
    files = PackedStrings.pack([""] * len(index))
    maps = LabelMaps(class_names=("ground",), files=files, values={0: 0, 255: 255})
    with pytest.raises(ValueError, match="label maps"):  # without which no figure follows
        write_labels(replace(index, label_maps=maps), path)


def test_figures_altered_by_hand_are_named(resdet, tmp_path) -> None:
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / "datasets", tmp_path / "datasets", ignore=lambda folder, names: {*names} - {"README.md"})
    left_out = shutil.ignore_patterns("experiment.json", "runs.*", "detections.json", "figures", "*.html", "*.svg")
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=left_out)
    changes = [
        ("README.md", "| 57.7 | 90.2 |", "| 58.7 | 90.2 |", "prints 58.7, the records give 57.7"),
        ("docs/results.md", "37.4 ± 3.1", "37.4 ± 2.1", "prints 2.1, the records give 3.1"),
        ("docs/cost.md", "| 0.59 | 0.86 |", "| 0.49 | 0.86 |", "table 1 under 'Beside torchvision'"),  # no record
        ("docs/results.md", "AP 38.0 ± 1.3", "AP 39.0 ± 1.3", "AP 39.0"),  # a sentence without a record
    ]
    for document, old, new, _ in changes:
        altered(tmp_path / document, old, new)
    outcome = resdet("verify", "--root", tmp_path)
    assert outcome.status == 1
    for document, _, _, named in changes:
        assert any(line.startswith(f"{document}:") and named in line for line in outcome.out.splitlines())


def test_a_changed_figure_names_both_values_and_is_written_again(checkout) -> None:
    readme = checkout / "README.md"
    assert "AP 57.7 after 1,000 steps in 3.0 minutes." in readme.read_text()
    altered(readme, "57.7", "59.7")
    (found,) = verify(checkout).findings
    assert (found.file, found.line) == ("README.md", 4)
    assert "59.7" in found.text
    assert "57.7" in found.text
    assert verify(checkout, write=True).findings == []
    assert "AP 57.7" in readme.read_text()
    altered(readme, "figures: quality", "figures: speed")  # a block without a template, a template without a block
    assert [found.file for found in verify(checkout).findings] == ["README.md"] * 2


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        ("docs/evidence/README.jinja", "bbox.AP", "bbox.AP75", "bbox.AP75"),
        ("docs/evidence/README.jinja", '"short"', '"long"', "docs/runs/long"),
        ("README.md", "<!-- end of figures -->", "", "quality"),
    ],
)
def test_what_a_template_asks_for_in_vain_is_named(file, old, new, named, checkout) -> None:
    altered(checkout / file, old, new)
    with pytest.raises(ValueError, match=named):
        verify(checkout)


def test_figures_outside_blocks_take_an_entry(checkout) -> None:
    readme, entries = checkout / "README.md", checkout / "docs" / "evidence" / "unbound.yaml"
    with readme.open("a") as stream:
        stream.write("\n## Speed\n\nmAP of 71.5 in 3 runs.\n\n| | seconds |\n|---|---|\n| step | 0.59 |\n\n")
        stream.write("| key | meaning |\n|---|---|\n| `a` | sets 3 |\n")  # no figures
    sentence, table = verify(checkout).findings
    assert (sentence.line, table.line) == (9, 11)
    digest = table.repair.split("'")[1]
    entries.write_text(
        f'- {{file: README.md, table: Speed, kind: not kept, why: a tool, digest: "{digest}"}}\n'
        '- {file: README.md, text: "mAP of 71.5", kind: paper, why: a paper}\n'
    )
    verdict = verify(checkout)
    assert (verdict.findings, verdict.unbound) == ([], {"not kept": 1, "paper": 1})
    altered(readme, "0.59", "0.49")
    altered(readme, "71.5", "72.5")
    files = [found.file for found in verify(checkout).findings]
    assert (len(files), {*files}) == (3, {"README.md", "docs/evidence/unbound.yaml"})


def test_a_report_is_held_to_the_results_of_its_runs(tmp_path) -> None:
    folder = tmp_path / BCCD
    shutil.copytree(ROOT / BCCD, folder, ignore=shutil.ignore_patterns("detections.json", "figures"))
    for run in folder.glob("runs/*/*"):
        (run / "detections.json").touch()
    with undrawn():
        page = report_page(json.loads((folder / "report" / "report.json").read_text()), [])
    write_html(page, folder / "report" / "report.html")
    assert check_report(folder, tmp_path) == []
    path = folder / "runs" / "plain18" / "0" / "result.json"
    result = json.loads(path.read_text())
    result["bbox"]["AP"] = 0.5
    path.write_text(json.dumps(result))
    altered(folder / "report" / "report.md", "| plain18 | **37.4 ± 3.1** |", "| plain18 | **39.4 ± 3.1** |")
    altered(folder / "report" / "report.html", ">37.4 ± 3.1<", ">40.4 ± 3.1<")
    found = check_report(folder, tmp_path)
    places, (page,), (cell,) = (
        [item for item in found if item.file.endswith(f"report.{kind}")] for kind in ("json", "md", "html")
    )
    assert any("variants.plain18.metrics.AP.values[0]" in item.text and "0.5" in item.text for item in places)
    assert "prints 39.4, the records give 37.4" in page.text
    assert page.line > 0
    assert "40.4" in cell.text

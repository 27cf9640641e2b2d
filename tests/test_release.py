"""Pages and files that say the same as the code: version, changelog, CI, public API, mutants; and the notebook."""

import inspect
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import resdet

ROOT = Path(__file__).resolve().parents[1]


def text_of(path):
    return (ROOT / path).read_text(encoding="utf-8")


def test_changelog_and_citation_have_the_version() -> None:
    versions = re.findall(r"^## (\d+\.\d+\.\d+), \d{4}-\d\d-\d\d$", text_of("CHANGELOG.md"), flags=re.MULTILINE)
    assert versions[0] == resdet.__version__ == yaml.safe_load(text_of("CITATION.cff"))["version"]


def test_public_tests_begin_with_the_oldest_python_and_make_what_there_is() -> None:
    jobs = yaml.safe_load(text_of(".github/workflows/tests.yml"))["jobs"]
    oldest = jobs["default"]["strategy"]["matrix"]["python"][0]
    assert tomllib.loads(text_of("pyproject.toml"))["project"]["requires-python"].startswith(f">={oldest}")
    commands = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    targets = {target for command in commands for target in re.findall(r"make (test[\w.-]*)", command)}
    assert targets <= set(re.findall(r"^([\w.-]+):", text_of("Makefile"), flags=re.MULTILINE))


def test_every_mutant_finds_its_place() -> None:
    mutants = yaml.safe_load(text_of("tests/mutants.yaml"))
    assert len(mutants) >= 40
    for mutant in mutants:
        assert text_of(mutant["file"]).count(mutant["find"]) == 1, mutant["fault"]
        assert all((ROOT / path).exists() for path in mutant["tests"].split()), mutant["fault"]


def shown(function):
    """Returns the arguments of ``function`` as docs/public_api.md has them: names alone."""
    names = list[str]()
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in names:
            names.append("*")
        names.append(f"**{parameter.name}" if parameter.kind is parameter.VAR_KEYWORD else parameter.name)
    return ", ".join(name for name in names if name != "self")


def test_the_page_of_the_public_api_has_all_names_and_arguments() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text_of("docs/public_api.md"), flags=re.MULTILINE))
    assert sorted(table) == sorted(name for name in resdet.__all__ if name != "__version__")
    functions = {name for name in table if inspect.isfunction(getattr(resdet, name))}
    assert len(functions) == 10
    assert {name: table[name] for name in functions} == {n: f"`{shown(getattr(resdet, n))}`" for n in functions}
    own = resdet.Predictor
    for call in (f"load({shown(own.load)})", f"({shown(own.__call__)})", f"stream({shown(own.stream)})"):
        assert f"`{call}`" in table["Predictor"]


NOTEBOOK = Path(__file__).parents[1] / "docs" / "from_folder_to_export.ipynb"
OPTIONS = """architecture=faster_rcnn solver.best_metric=bbox.AP solver.iterations=2 solver.images_per_step=2
 solver.evaluate_every=0 data.shorter_side=64 data.longer_side=96 data.workers=0 rpn.post_nms_test=20
 test.max_detections=10"""
QUICK = {"IMAGES": 16, "TEST_IMAGES": 4, "OPTIONS": " ".join(OPTIONS.split())}
QUICK |= {"PROOF": "--limit 2 --timed 0 --max-unmatched 1"}


@pytest.mark.faults
def test_the_notebook_runs(resdet, tmp_path, monkeypatch) -> None:
    def shell(line) -> None:
        command, *arguments = shlex.split(line)
        assert command == "resdet"
        done = resdet(*arguments)
        assert done.status == 0, f"{line}: {done.err}"

    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    values: dict[str, Any] = {"_shell": shell}
    for number, cell in enumerate(cells):
        exec(re.sub(r"^!(.*)$", r'_shell(f"\1")', "".join(cell["source"]), flags=re.MULTILINE), values)
        if number == 0:
            assert QUICK.keys() < values.keys()  # they are the notebook's own names
            values |= QUICK
    run = tmp_path / values["RUN"]
    assert all((run / name).is_file() for name in ("result.json", "export/onnx/model.onnx", "README.md"))
    assert "## Exports" in (run / "README.md").read_text()


def test_source_files_that_pages_name_exist() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "datasets/README.md"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    named = {*re.findall(r"\b(?:tests|detection|backbones)/[\w/]+\.py\b", text)}
    assert len(named) > 50
    assert {path for path in named if not (ROOT / path).is_file()} == set()

"""Version, changelog and citation say the same; public CI tests the Pythons that the package allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

import resdet

ROOT = Path(__file__).resolve().parents[1]


def test_changelog_and_citation_have_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (\d+\.\d+\.\d+), \d{4}-\d\d-\d\d$", changelog, flags=re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert versions[0] == resdet.__version__ == citation["version"]


def test_public_tests_begin_with_the_oldest_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    pythons = workflow["jobs"]["default"]["strategy"]["matrix"]["python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"].startswith(f">={pythons[0]}")
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            target = re.search(r"make ([\w.-]+)", step.get("run", ""))
            if target and target[1].startswith("test"):
                assert re.search(rf"^{target[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_every_mutant_finds_its_place() -> None:
    mutants = yaml.safe_load((ROOT / "tests/mutants.yaml").read_text(encoding="utf-8"))
    assert len(mutants) >= 40
    for mutant in mutants:
        assert (ROOT / mutant["file"]).read_text(encoding="utf-8").count(mutant["find"]) == 1, mutant["fault"]
        assert all((ROOT / path).exists() for path in mutant["tests"].split()), mutant["fault"]

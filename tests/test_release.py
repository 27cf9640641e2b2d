"""Pages and files that say the same as the code: version, changelog, citation, public CI, public API, mutants."""

import inspect
import re
import tomllib
from pathlib import Path

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

"""Mirrors tools/list_backbones.py: docs/backbones.md has the rows that the code gives."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from backbones.registry import backbone_names
from backbones.summary import describe

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "list_backbones.py"
RUNS = ROOT / "docs" / "runs"
DEEPEST = (
    "cifar_resnet1202",
    "cifar_preact_resnet1001",
    "cifar_attention452",
)  # the slowest; only their names are compared


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(TOOL))


@pytest.fixture(scope="module")
def rows(tool: dict[str, Any]) -> dict[str, list[str]]:
    """The cells of the document by the name of the backbone, in its order."""
    text = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    written = text.partition(tool["BEGIN"])[2].partition(tool["END"])[0]
    lines = [line for line in written.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0].strip("`"): row for row in cells}


def test_every_backbone_has_a_row_and_a_paper(tool: dict[str, Any], rows: dict[str, list[str]]) -> None:
    assert set(rows) == {*backbone_names(), *tool["library_names"]()}
    assert len(tool["library_names"]()) == 11
    assert all(row[1] for row in rows.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in backbone_names() if name not in DEEPEST])
def test_rows_of_the_document_are_those_of_the_code(
    name: str, tool: dict[str, Any], rows: dict[str, list[str]]
) -> None:
    written = tool["render"]([describe(name)], RUNS).splitlines()[-1]
    assert [cell.strip() for cell in written.strip("|").split(" | ")] == rows[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm:densenet121", "timm:tf_efficientnet_lite0", "torchvision:googlenet"])
def test_sizes_of_other_libraries_networks(name: str, tool: dict[str, Any], rows: dict[str, list[str]]) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    # not the weights, which are other people's to change
    assert tool["imagenet_row"](describe(name))[:6] == rows[name][:6]


@pytest.mark.parametrize("folder", ["cifar10_resnet20", "cifar10_cifar_resnet20"])
def test_error_of_a_run_is_read_from_its_result(folder: str, tool: dict[str, Any], tmp_path: Path) -> None:
    entry = describe("cifar_resnet20")
    assert tool["render"]([entry], tmp_path).endswith("| 8.75 | not run |")
    (tmp_path / folder).mkdir()
    result = {"classification": {"top1": 0.875, "top5": 0.99, "images": 10_000}}
    (tmp_path / folder / "result.json").write_text(json.dumps(result))
    (tmp_path / folder / "config.yaml").write_text("solver: {iterations: 6250, images_per_step: 80}\n")
    assert tool["render"]([entry], tmp_path).endswith("| 8.75 | 12.50 (10 passes) |")


def test_document_is_written_between_its_marks(tool: dict[str, Any], tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text(f"before\n{tool['BEGIN']}\nold\n{tool['END']}\nafter\n")
    for content in ("first", "second"):
        tool["write_between_marks"](document, content)
        assert document.read_text() == f"before\n{tool['BEGIN']}\n\n{content}\n\n{tool['END']}\nafter\n"


def test_tables_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    entry = describe("torchvision:googlenet")
    monkeypatch.setattr("backbones.summary.describe", lambda name: entry)
    monkeypatch.setattr("backbones.registry.backbone_names", lambda: ())
    monkeypatch.setattr(sys, "argv", [str(TOOL)])
    runpy.run_path(str(TOOL), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.startswith("## Networks of timm and torchvision, 1000 classes\n\n| name | paper |")
    assert printed.count("| `torchvision:googlenet` |") == 11


def test_document_without_marks_is_left_alone(tool: dict[str, Any], tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text("text\n")
    with pytest.raises(ValueError, match=r"doc\.md must have a line '<!-- what follows"):
        tool["write_between_marks"](document, "table")
    assert document.read_text() == "text\n"

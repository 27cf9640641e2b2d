"""Mirrors tools/list_backbones.py: docs/backbones.md has the rows that the code gives."""

import json
from pathlib import Path

import pytest

from backbones.registry import backbone_names
from backbones.summary import describe

ROOT = Path(__file__).parents[2]
# The slowest; only their names are compared.
DEEPEST = "cifar_resnet1202", "cifar_preact_resnet1001", "cifar_attention452"


@pytest.fixture(scope="module")
def tool(names_of):
    return names_of("list_backbones.py")


def split(line):
    return [cell.strip() for cell in line.strip("|").split(" | ")]


@pytest.fixture(scope="module")
def rows(tool):
    """The cells of the document by the name of the backbone, in its order."""
    text = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    written = text.partition(tool["BEGIN"])[2].partition(tool["END"])[0]
    cells = [split(line) for line in written.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row for row in cells}


def test_every_backbone_has_a_row_and_a_paper(tool, rows) -> None:
    assert set(rows) == {*backbone_names(), *tool["library_names"]()}
    assert len(tool["library_names"]()) == 11
    assert all(row[1] for row in rows.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in backbone_names() if name not in DEEPEST])
def test_rows_of_the_document_are_those_of_the_code(name, tool, rows) -> None:
    assert split(tool["render"]([describe(name)], ROOT / "docs" / "runs").splitlines()[-1]) == rows[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm:densenet121", "timm:tf_efficientnet_lite0", "torchvision:googlenet"])
def test_sizes_of_other_libraries_networks(name, tool, rows) -> None:
    pytest.importorskip(name.partition(":")[0])
    # not the weights, which are other people's to change
    assert tool["imagenet_row"](describe(name))[:6] == rows[name][:6]


@pytest.mark.parametrize("folder", ["cifar10_resnet20", "cifar10_cifar_resnet20"])
def test_error_of_a_run_is_read_from_its_result(folder, tool, tmp_path) -> None:
    entry = describe("cifar_resnet20")
    assert tool["render"]([entry], tmp_path).endswith("| 8.75 | not run |")
    (tmp_path / folder).mkdir()
    result = {"classification": {"top1": 0.875, "top5": 0.99, "images": 10_000}}
    (tmp_path / folder / "result.json").write_text(json.dumps(result))
    (tmp_path / folder / "config.yaml").write_text("solver: {iterations: 6250, images_per_step: 80}\n")
    assert tool["render"]([entry], tmp_path).endswith("| 8.75 | 12.50 (10 passes) |")


def test_tables_are_printed_or_written_between_the_marks_of_a_document(monkeypatch, program, tool, tmp_path) -> None:
    entry, document = describe("torchvision:googlenet"), tmp_path / "doc.md"
    monkeypatch.setattr("backbones.summary.describe", lambda name: entry)
    monkeypatch.setattr("backbones.registry.backbone_names", lambda: ())
    tables = program("tools/list_backbones.py")[1]
    assert tables.startswith("## Networks of timm and torchvision, 1000 classes\n\n| name | paper |")
    assert tables.count("| `torchvision:googlenet` |") == 11
    document.write_text("text\n")
    assert "doc.md must have a line" in program("tools/list_backbones.py", "--document", document)[0]
    assert document.read_text() == "text\n"
    document.write_text(f"before\n{tool['BEGIN']}\nold\n{tool['END']}\nafter\n")
    for _ in range(2):
        program("tools/list_backbones.py", "--document", document)
        assert document.read_text() == f"before\n{tool['BEGIN']}\n\n{tables.rstrip()}\n\n{tool['END']}\nafter\n"

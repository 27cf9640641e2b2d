"""Imports point one way: a module may import lower layers and its own layer, never a higher one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path for top in ("backbones", "detection") for path in (ROOT / top).rglob("*.py"))
SCRIPTS = [ROOT / "resdet.py", *sorted(path for top in ("tools", "datasets") for path in (ROOT / top).glob("*.py"))]

# Lowest first.  A module belongs to the longest prefix that matches it.
LAYERS = (
    ("backbones",),
    (
        "detection.structures",
        "detection.files",
        "detection.boxes",
        "detection.masks",
        "detection.config.detection",
        "detection.config.load",
        "detection.packaged",
    ),
    ("detection.model",),
    ("detection.data", "detection.inference", "detection.evaluation", "detection.engine", "detection.visualize"),
    ("detection.build",),
    ("detection.tasks.test", "detection.engine.trainer", "detection.tasks.train", "detection.weights"),
    (
        "detection.tasks.alternating",
        "detection.classification.task",
        "detection.experiments.comparison",
        "detection.experiments.costs",
        "detection.experiments.experiment",
        "detection.experiments.proof",
        "detection.experiments.protocols",
        "detection.experiments.runs",
        "detection.localization.task",
        "detection.experiments.methods",
        "detection.predictor",
        "detection.tasks.precise_bn",
    ),
    ("detection.tasks.check", "detection.tasks.convert", "detection.tasks.download", "detection.tasks.predict"),
    ("detection.report",),
    ("detection.commands",),
    ("detection.cli",),
    ("resdet", "tools", "datasets"),
)


def starts_with(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def layer_of(module: str) -> int | None:
    matches = [
        (len(prefix), level)
        for level, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if starts_with(module, prefix)
    ]
    return max(matches)[1] if matches else None


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports out in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def upward_imports(module: str, imports: Iterator[str]) -> list[str]:
    own = layer_of(module)
    levels = [(name, layer_of(name)) for name in imports]
    return [name for name, level in levels if own is not None and level is not None and level > own]


@pytest.mark.parametrize("path", [*PACKAGES, *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    assert upward_imports(module_of(path), imports_of(path)) == []


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_has_a_layer(path: Path) -> None:
    assert layer_of(module_of(path)) is not None or module_of(path) == "detection"


def test_an_upward_import_is_found(tmp_path: Path) -> None:
    source = tmp_path / "boxes.py"
    source.write_text("import torch\nfrom detection.model import rpn\nimport backbones.resnet\n")
    assert upward_imports("detection.boxes", imports_of(source)) == ["detection.model.rpn"]
    assert upward_imports("detection.build", imports_of(source)) == []


def test_a_module_does_not_take_the_layer_of_a_name_that_begins_alike() -> None:
    assert layer_of("detection.configuration") is None
    assert layer_of("detection.config.load") == layer_of("detection.config.detection") == 1

"""Imports point one way: a module may import lower layers and its own room, never a higher one or a room beside it."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path for top in ("backbones", "detection") for path in (ROOT / top).rglob("*.py"))
SCRIPTS = [ROOT / "resdet.py", *sorted(path for top in ("tools", "datasets") for path in (ROOT / top).glob("*.py"))]

# Lowest first; the rooms of a line do not import each other. A module belongs to the longest prefix that matches it.
BASICS = tuple(
    f"detection.{name}"
    for name in (
        "structures",
        "padded",
        "boxes",
        "keypoints",
        "masks",
        "mask_geometry",
        "mask_pasting",
        "segments",
        "label_colors",
        "windows",
        "fields",
        "files",
        "hub",
        "waiting",
        "progress",
        "config",
        "packaged",
    )
)
LAYERS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("backbones",),),
    (BASICS,),
    (("detection.evaluation",), ("detection.data",)),
    (
        ("detection.model",),
        ("detection.visualize", "detection.label_overlay", "detection.lettering"),
        ("detection.pages",),
    ),
    (("detection.engine",),),
    (
        (
            "detection.build",
            "detection.build_panoptic",
            "detection.build_semantic",
            "detection.build_stages",
            "detection.build_tester",
            "detection.build_trunk",
        ),
    ),
    (("detection.weights",),),
    (("detection.export",),),
    (("detection.predictor", "detection.prediction"),),
    (("detection.tasks",),),
    (("detection.classification",), ("detection.edges",), ("detection.experiments",)),
    (("detection.localization",), ("detection.report",)),
    (("detection.reproduction",), ("detection.evidence",)),
    (("detection.commands", "detection.cli", "resdet", "tools", "datasets"),),
)
PLACES = {
    prefix: (level, number)
    for level, rooms in enumerate(LAYERS)
    for number, room in enumerate(rooms)
    for prefix in room
}


def place_of(module: str) -> tuple[int, int] | None:
    """(layer, room in it) of a module; None for one of other packages."""
    found = [prefix for prefix in PLACES if module == prefix or module.startswith(prefix + ".")]
    return PLACES[max(found, key=len)] if found else None


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports out in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def wrong_imports(module: str, imports: Iterable[str]) -> list[str]:
    own = place_of(module)
    places = [(name, place_of(name)) for name in imports]
    return [
        name
        for name, place in places
        if own is not None and place is not None and (place[0] > own[0] or (place[0] == own[0] and place != own))
    ]


def test_imports_point_down() -> None:
    wrong = {str(path): wrong_imports(module_of(path), imports_of(path)) for path in [*PACKAGES, *SCRIPTS]}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_every_module_has_a_layer() -> None:
    assert [
        str(path) for path in PACKAGES if place_of(module_of(path)) is None and module_of(path) != "detection"
    ] == []


def test_nothing_below_the_side_rooms_names_one() -> None:
    side = (
        "detection.classification",
        "detection.edges",
        "detection.localization",
        "detection.experiments",
        "detection.report",
    )
    first = PLACES["detection.classification"][0]
    named = {
        str(path): [room for room in side if room in path.read_text()]
        for path in PACKAGES
        if (place := place_of(module_of(path))) and place[0] < first
    }
    assert {path: rooms for path, rooms in named.items() if rooms} == {}


def test_upward_and_sideways_imports_are_found(tmp_path: Path) -> None:
    source = tmp_path / "boxes.py"
    source.write_text("import torch\nfrom detection.model import rpn\nimport detection.data.index\n")
    assert wrong_imports("detection.boxes", imports_of(source)) == ["detection.model.rpn", "detection.data.index"]
    assert wrong_imports("detection.evaluation.voc", imports_of(source)) == [
        "detection.model.rpn",
        "detection.data.index",
    ]
    assert wrong_imports("detection.build", imports_of(source)) == []


def test_a_module_does_not_take_the_layer_of_a_name_that_begins_alike() -> None:
    assert place_of("detection.configuration") is None
    assert place_of("detection.config.load") == place_of("detection.config")

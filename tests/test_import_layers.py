"""Imports point one way, into lower layers and the own room; from the command to a loss are seven functions of ours."""

import ast
import inspect
from pathlib import Path

from detection.config.load import dump_config
from detection.model import losses

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path for top in ("backbones", "detection") for path in (ROOT / top).rglob("*.py"))
SCRIPTS = [ROOT / "resdet.py", *sorted(path for top in ("tools", "datasets") for path in (ROOT / top).glob("*.py"))]

# Lowest first; the rooms of a line do not import each other. A module belongs to the longest prefix that matches it.
LAYERS = """\
/backbones
structures padded boxes keypoints masks mask_geometry mask_pasting segments label_colors windows fields files hub \
waiting progress config packaged
evaluation | data
model | visualize label_overlay lettering | pages
engine
build build_panoptic build_semantic build_stages build_tester build_trunk
weights
export
predictor prediction
tasks
classification | edges | experiments
localization | report
reproduction | evidence
commands cli /resdet /tools /datasets"""
PLACES = {
    name[1:] if name.startswith("/") else f"detection.{name}": (level, room)
    for level, line in enumerate(LAYERS.splitlines())
    for room, names in enumerate(line.split("|"))
    for name in names.split()
}


def place_of(module):
    """(layer, room in it) of a module; None for one of other packages."""
    found = [prefix for prefix in PLACES if module == prefix or module.startswith(prefix + ".")]
    return PLACES[max(found, key=len)] if found else None


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports out in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def wrong_imports(module, imports):
    own, places = place_of(module), {name: place_of(name) for name in imports}
    return [name for name, place in places.items() if own and place and (place[0], place != own) > (own[0], False)]


def test_imports_point_down_from_every_module_and_nothing_below_the_side_rooms_names_one() -> None:
    assert [path for path in PACKAGES if not place_of(module_of(path)) and module_of(path) != "detection"] == []
    wrong = {str(path): wrong_imports(module_of(path), imports_of(path)) for path in [*PACKAGES, *SCRIPTS]}
    assert {path: names for path, names in wrong.items() if names} == {}
    rooms = [f"detection.{name}" for name in ("classification", "edges", "localization", "experiments", "report")]
    places, first = {path: place_of(module_of(path)) for path in PACKAGES}, PLACES[rooms[0]]
    below = [path for path, place in places.items() if place and place[0] < first[0]]
    named = {str(path): [room for room in rooms if room in path.read_text()] for path in below}
    assert {path: found for path, found in named.items() if found} == {}


def test_upward_and_sideways_imports_are_found(tmp_path) -> None:
    source = tmp_path / "boxes.py"
    source.write_text("import torch\nfrom detection.model import rpn\nimport detection.data.index\n")
    both = ["detection.model.rpn", "detection.data.index"]
    for module, wrong in (("detection.boxes", both), ("detection.evaluation.voc", both), ("detection.build", [])):
        assert wrong_imports(module, imports_of(source)) == wrong
    assert place_of("detection.configuration") is None
    assert place_of("detection.config.load") == place_of("detection.config")


def own_functions():
    """The functions of the packages on the stack, the command first."""
    frames = [frame for frame in inspect.stack() if Path(frame.filename).is_relative_to(ROOT / "detection")]
    names = [f"{Path(frame.filename).stem}.{frame.function}" for frame in frames]
    # A context manager of torch is none of them, and a comprehension is no function.
    return tuple(name for name in reversed(names) if not name.endswith((".<listcomp>", ".<genexpr>", ".<dictcomp>")))


def test_seven_functions(tmp_path, resdet, tiny_config, monkeypatch) -> None:
    chains = set[tuple[str, ...]]()

    def noted(*args, **options):
        chains.add(own_functions())
        return losses.smooth_l1(*args, **options)

    for stage in ("rpn", "box_stage"):
        monkeypatch.setattr(f"detection.model.{stage}.smooth_l1", noted)
    (tmp_path / "tiny.yaml").write_text(dump_config(tiny_config(iterations=1, images_per_step=2)))
    ended = resdet("train", tmp_path / "tiny.yaml", "--output-dir", tmp_path / "run")
    assert ended.status == 0, ended.err
    way = ("cli.main", "train.run_training", "trainer.run", "loop.step", "faster_rcnn.forward")
    assert chains == {(*way, "rpn.losses"), (*way, "box_stage.losses")}

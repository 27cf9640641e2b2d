import re
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import pytest

from detection.config.load import build_dataclass, dump_config, json_schema, load_config, parse_config
from detection.config.schema import checked


@checked
class Net:
    name: str = "resnet50"
    norm: Literal["bn", "frozen_bn", "gn"] | None = None
    stages: tuple[str, ...] = ("c2", "c3")
    weights: str | None = None


@checked
class Solver:
    base_lr: float = 0.02
    iterations: int = 10
    clip_norm: float | None = None
    steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.base_lr <= 0:
            raise ValueError(f"base_lr must be positive, got {self.base_lr}")


@checked
class Run:
    net: Net = field(default_factory=Net)
    solver: Solver = field(default_factory=Solver)
    augment: tuple[dict[str, Any], ...] = ()
    flip: bool = True
    extra: dict[str, float] = field(default_factory=dict)


@checked
class Required:
    path: str
    count: int = 1


def write(folder: Path, text: str, name: str = "config") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def child(tmp_path) -> Path:
    write(tmp_path, "net: {norm: gn, name: vgg16}\nsolver: {base_lr: 1, iterations: 5}\n", "base")
    text = "_BASE_: base.yaml\nnet: {name: resnet18, stages: [c5]}\nsolver: {base_lr: 1e-4}\n"
    return write(tmp_path, text, "child")


def test_child_wins_over_base_and_base_over_defaults(child, tmp_path) -> None:
    config = load_config(Run, child)
    assert config.net == Net(name="resnet18", norm="gn", stages=("c5",))
    assert config.solver == Solver(base_lr=1e-4, iterations=5)
    config = load_config(Run, write(tmp_path, "_BASE_: child.yaml\nsolver: {iterations: 7}\n"))  # a base of a base
    assert (config.net.name, config.net.norm, config.solver.iterations) == ("resnet18", "gn", 7)
    assert parse_config(Run, "") == Run()


def test_overrides_win_over_files_and_the_last_over_the_first(child) -> None:
    overrides = ["solver.iterations=3", "net.norm=null", "solver.clip_norm=35", "solver.iterations=4", "flip=no"]
    values = ["solver.steps=[1, 2]", "augment=[{Blur: {p: 0.5}}]", "net.weights=a=b", "extra.x=2"]
    config = load_config(Run, child, overrides + values)
    assert (config.solver.iterations, config.solver.clip_norm, config.solver.steps) == (4, 35.0, (1, 2))
    assert (config.net.weights, config.net.norm, config.net.name) == ("a=b", None, "resnet18")
    assert (config.flip, config.augment, config.extra) == (False, ({"Blur": {"p": 0.5}},), {"x": 2.0})


def test_numbers_in_scientific_notation_are_floats_and_integers_serve_as_floats(child) -> None:
    for text in ("1e-4", "1E-4", "0.0001", "+1.e-4", "1_0e-5"):
        assert load_config(Run, child, [f"solver.base_lr={text}"]).solver.base_lr == 1e-4
    solver = load_config(Run, child, ["solver.base_lr=2", "solver.iterations=3"]).solver
    assert (type(solver.base_lr), type(solver.iterations)) == (float, int)


def test_dump_and_load_give_an_equal_config(tmp_path) -> None:
    config = Run(
        net=Net(name="1e-4", norm="bn", stages=("c4", "null"), weights="yes"),
        solver=Solver(base_lr=1 / 9, iterations=70000, clip_norm=1e-12, steps=(1, 2)),
        augment=({"Rotate": {"limit": [-5, 5], "p": 1.0, "fill": None}}, {"HorizontalFlip": {}}),
        flip=False,
        extra={"ä": 0.1},
    )
    assert load_config(Run, write(tmp_path, dump_config(config))) == parse_config(Run, dump_config(config)) == config
    tuples = dump_config(Run(augment=({"Rotate": {"limit": (-5, 5)}},)))  # inside free values they are plain YAML
    assert parse_config(Run, tuples).augment == ({"Rotate": {"limit": [-5, 5]}},)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("solver.base_rl=1", "'solver.base_rl'; did you mean 'solver.base_lr'?"),
        ("slover.base_lr=1", "'slover'; did you mean 'solver'?"),
        ("solver.zzzzzzzzzzz=1", "known keys: base_lr, iterations, clip_norm, steps"),
        ("net.clip_norm=3", "'net.clip_norm'; did you mean 'solver.clip_norm'"),  # a key of another section
        ("net.norm=xx", "'net.norm' takes one of 'bn', 'frozen_bn' or 'gn', got 'xx'"),
        ("net.stages=c5", "'net.stages' takes a list, such as [a, b], got 'c5'"),
        ("net.stages=[c4, 1]", "'net.stages[1]' takes a text, got 1"),
        ("net.name=null", "'net.name' takes a text, got None"),
        ("net=5", "'net' takes a section of keys, got 5"),
        ("solver.base_lr=fast", "'solver.base_lr' takes a number, got 'fast'"),
        ("solver.base_lr='1e-4'", "'solver.base_lr' takes a number, got '1e-4'"),
        ("solver.base_lr=true", "'solver.base_lr' takes a number, got True"),
        ("solver.base_lr=[1]", "'solver.base_lr' takes a number, got [1]"),
        ("solver.iterations=1.5", "'solver.iterations' takes a whole number, got 1.5"),
        ("solver.iterations=yes", "'solver.iterations' takes a whole number, got True"),
        ("solver.base_lr=-1", "solver.base_lr must be positive, got -1.0"),
        ("flip=1", "'flip' takes true or false, got 1"),
        ("augment=[Blur]", "'augment[0]' takes a mapping, such as {a: b}, got 'Blur'"),
        ("extra.x=much", "'extra.x' takes a number, got 'much'"),
        ("solver", "section.key=value, got 'solver'"),
        ("solver.base_lr.x=1", "'base_lr' is not a section"),
        ("=1", "no config key ''"),
        ("solver.steps=[1", "solver.steps"),
    ],
)
def test_mistakes_are_named(child, override, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(Run, child, [override])


NO_MAPPINGS = ("", "# nothing but a comment\n", "net: [\n", "[]\n", "[net]\n", "net\n", "5\n", "net: {name: a\n")


@pytest.mark.parametrize("text", [*NO_MAPPINGS, "_BASE_: nothing.yaml\n", "_BASE_: config.yaml\n"])
def test_a_file_that_is_no_mapping_or_whose_base_is_missing_is_named(tmp_path, text) -> None:
    with pytest.raises(ValueError, match=r"(?s)config\.yaml" + (".*nothing" if "nothing.yaml" in text else "")):
        load_config(Run, write(tmp_path, text))
    with pytest.raises(ValueError, match=r"no config file '.*absent\.yaml'"):
        load_config(Run, tmp_path / "absent.yaml")


def test_yaml_builds_no_python_objects(tmp_path) -> None:
    touched = tmp_path / "touched"
    with pytest.raises(ValueError, match=r"config\.yaml"):
        load_config(Run, write(tmp_path, f"net: !!python/object/apply:pathlib.Path.touch ['{touched}']\n"))
    assert not touched.exists()


def test_all_mistakes_are_named_at_once_also_of_a_base_and_keys_that_are_missing(child, tmp_path) -> None:
    write(tmp_path, "net: {nrom: gn, name: 3}\nsolver: {iterations: true, steps: [1, x]}\nflip: 1\n", "base")
    with pytest.raises(ValueError, match="5 problems") as error:
        load_config(Run, tmp_path / "base.yaml")
    for said in ("'net.norm'", "'net.name'", "'solver.iterations'", "'solver.steps[1]'", "'flip'"):
        assert said in str(error.value)
    with pytest.raises(ValueError, match=r"'net\.nrom'; did you mean 'net.norm'"):
        load_config(Run, child)
    with pytest.raises(ValueError, match="'path'"):
        build_dataclass(Required, {"count": 2})


def test_the_schema_for_editors_knows_keys_and_choices() -> None:
    tree = json_schema(Run)
    assert {"net", "solver", "augment", "_BASE_"} <= tree["properties"].keys()
    assert tree["additionalProperties"] is False
    options = tree["$defs"]["Net"]["properties"]["norm"]["anyOf"]
    assert ["bn", "frozen_bn", "gn"] in [option.get("enum") for option in options]

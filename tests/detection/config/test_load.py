"""Mirrors detection/config/load.py."""

from __future__ import annotations

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


@pytest.fixture
def child(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text("net: {norm: gn, name: vgg16}\nsolver: {base_lr: 1, iterations: 5}\n")
    path = tmp_path / "child.yaml"
    path.write_text("_BASE_: base.yaml\nnet: {name: resnet18, stages: [c5]}\nsolver: {base_lr: 1e-4}\n")
    return path


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


# what wins


def test_child_wins_over_base_and_base_over_defaults(child: Path) -> None:
    config = load_config(Run, child)
    assert config.net == Net(name="resnet18", norm="gn", stages=("c5",))
    assert config.solver == Solver(base_lr=1e-4, iterations=5)


def test_a_base_may_have_a_base_of_its_own(child: Path, tmp_path: Path) -> None:
    path = write(tmp_path, "_BASE_: child.yaml\nsolver: {iterations: 7}\n")
    config = load_config(Run, path)
    assert (config.net.name, config.net.norm, config.solver.iterations) == ("resnet18", "gn", 7)


def test_overrides_win_over_files_and_the_last_over_the_first(child: Path) -> None:
    overrides = ["solver.iterations=3", "net.weights=r50.pth", "solver.clip_norm=35", "solver.iterations=4", "flip=no"]
    config = load_config(Run, child, overrides)
    assert (config.solver.iterations, config.solver.clip_norm) == (4, 35.0)
    assert (config.net.weights, config.net.name, config.flip) == ("r50.pth", "resnet18", False)


def test_an_override_may_hold_a_list_a_mapping_or_an_equals_sign(child: Path) -> None:
    config = load_config(
        Run, child, ["solver.steps=[1, 2]", "augment=[{Blur: {p: 0.5}}]", "net.weights=a=b", "extra.x=2"]
    )
    assert config.solver.steps == (1, 2)
    assert config.augment == ({"Blur": {"p": 0.5}},)
    assert config.net.weights == "a=b"
    assert config.extra == {"x": 2.0}


# values


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "+1.e-4", "1_0e-5"])
def test_numbers_in_scientific_notation_are_floats(child: Path, text: str) -> None:
    assert load_config(Run, child, [f"solver.base_lr={text}"]).solver.base_lr == 1e-4


def test_an_integer_serves_as_a_float_and_stays_one_of_its_type(child: Path) -> None:
    solver = load_config(Run, child, ["solver.base_lr=2", "solver.iterations=3"]).solver
    assert (type(solver.base_lr), type(solver.iterations)) == (float, int)


def test_null_gives_none_where_it_is_allowed(child: Path) -> None:
    assert load_config(Run, child, ["net.norm=null"]).net.norm is None


def test_dump_and_load_give_an_equal_config(tmp_path: Path) -> None:
    config = Run(
        net=Net(name="1e-4", norm="bn", stages=("c4", "null"), weights="yes"),
        solver=Solver(base_lr=1 / 9, iterations=70000, clip_norm=1e-12, steps=(1, 2)),
        augment=({"Rotate": {"limit": [-5, 5], "p": 1.0, "fill": None}}, {"HorizontalFlip": {}}),
        flip=False,
        extra={"ä": 0.1},
    )
    assert load_config(Run, write(tmp_path, dump_config(config))) == config
    assert parse_config(Run, dump_config(config)) == config


def test_a_dump_with_tuples_inside_free_values_is_plain_yaml() -> None:
    text = dump_config(Run(augment=({"Rotate": {"limit": (-5, 5)}},)))
    assert parse_config(Run, text).augment == ({"Rotate": {"limit": [-5, 5]}},)


def test_an_empty_text_gives_the_defaults() -> None:
    assert parse_config(Run, "") == Run()


# mistakes


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("solver.base_rl=1", "'solver.base_rl'; did you mean 'solver.base_lr'?"),
        ("slover.base_lr=1", "'slover'; did you mean 'solver'?"),
        ("solver.zzzzzzzzzzz=1", "known keys: base_lr, iterations, clip_norm, steps"),
        ("net.norm=xx", "'net.norm' takes one of 'bn', 'frozen_bn' or 'gn', got 'xx'"),
        ("net.stages=c5", "'net.stages' takes a list, such as [a, b], got 'c5'"),
        ("net.stages=[c4, 1]", "'net.stages[1]' takes a text, got 1"),
        ("net.name=5", "'net.name' takes a text, got 5"),
        ("net.name=null", "'net.name' takes a text, got None"),
        ("net=5", "'net' takes a section of keys, got 5"),
        ("solver.base_lr=fast", "'solver.base_lr' takes a number, got 'fast'"),
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
    ],
)
def test_mistakes_are_named(child: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(Run, child, [override])


def test_an_override_that_is_no_yaml_is_named(child: Path) -> None:
    with pytest.raises(ValueError, match=r"solver\.steps"):
        load_config(Run, child, ["solver.steps=[1"])


def test_a_mistake_in_a_base_is_found(child: Path, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("net: {nrom: gn}\n")
    with pytest.raises(ValueError, match=r"'net\.nrom'; did you mean 'net.norm'"):
        load_config(Run, child)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config file '.*nothing\.yaml'"):
        load_config(Run, tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    "text",
    ["", "# nothing but a comment\n", "net: [\n", "[]\n", "[net]\n", "net\n", "5\n", "net: {name: a\n"],
)
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"config\.yaml"):
        load_config(Run, write(tmp_path, text))


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)config\.yaml.*nothing\.yaml"):
        load_config(Run, write(tmp_path, "_BASE_: nothing.yaml\n"))


def test_a_file_that_is_its_own_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.yaml"):
        load_config(Run, write(tmp_path, "_BASE_: config.yaml\n"))


def test_yaml_builds_no_python_objects(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    with pytest.raises(ValueError, match=r"config\.yaml"):
        load_config(Run, write(tmp_path, f"net: !!python/object/apply:pathlib.Path.touch ['{touched}']\n"))
    assert not touched.exists()


def test_a_key_without_default_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="'path'"):
        build_dataclass(Required, {"count": 2})


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "net: {nrom: gn, name: 3}\nsolver: {iterations: true, steps: [1, x]}\nflip: 1\n")
    with pytest.raises(ValueError, match="5 problems") as error:
        load_config(Run, path)
    for said in ("'net.norm'", "'net.name'", "'solver.iterations'", "'solver.steps[1]'", "'flip'"):
        assert said in str(error.value)


def test_a_text_is_no_number() -> None:
    with pytest.raises(ValueError, match=r"'solver\.base_lr' takes a number, got '1e-4'"):
        parse_config(Run, "solver: {base_lr: '1e-4'}")


def test_a_key_of_another_section_is_found() -> None:
    with pytest.raises(ValueError, match=r"'net\.clip_norm'; did you mean 'solver\.clip_norm'"):
        parse_config(Run, "net: {clip_norm: 3}")


def test_the_schema_for_editors_knows_keys_and_choices() -> None:
    tree = json_schema(Run)
    assert {"net", "solver", "augment", "_BASE_"} <= tree["properties"].keys()
    assert tree["additionalProperties"] is False
    options = tree["$defs"]["Net"]["properties"]["norm"]["anyOf"]
    assert ["bn", "frozen_bn", "gn"] in [option.get("enum") for option in options]

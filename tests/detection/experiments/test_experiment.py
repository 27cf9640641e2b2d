"""Mirrors detection/experiments/experiment.py; the files of configs/experiments are held to it as well."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from detection.classification.config import ClassificationConfig
from detection.config.detection import DetectionConfig
from detection.config.load import load_config, section_names
from detection.config.schema import flatten
from detection.experiments.experiment import (
    Experiment,
    Protocol,
    check_fair,
    covers,
    differences,
    load_experiment,
    resolve_base,
    resolve_variants,
)

CONFIGS = Path(__file__).parents[3] / "configs"
FILES = sorted((CONFIGS / "experiments").glob("*.yaml"))
VARIANTS = {"small": {"backbone": {"name": "resnet18"}}, "large": ["backbone.name=resnet34"]}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """An experiment file over a base of ResNet-50 on bccd; keys given as None are left out."""

    def write_file(**keys: Any) -> Path:
        (tmp_path / "base.yaml").write_text(
            "data: {train: [bccd:trainval], test: [bccd:test]}\nsolver: {base_lr: 0.01}\n"
        )
        values = {"base": "base.yaml", "variants": VARIANTS, "seeds": [0, 1], "allowed": ["backbone.name"]} | keys
        path = tmp_path / "swap.yaml"
        kept = {key: value for key, value in values.items() if value is not None}
        path.write_text(yaml.safe_dump(kept, sort_keys=False))
        return path

    return write_file


def refused(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_experiment(path)


def test_variants_change_the_base_as_a_mapping_or_as_a_list(write: Write) -> None:
    experiment = load_experiment(write(overrides=["solver.iterations=7"]), ["seed=3"])
    assert (experiment.name, experiment.seeds, experiment.protocol) == ("swap", (0, 1), Protocol())
    base, variants = resolve_base(experiment, DetectionConfig), resolve_variants(experiment, DetectionConfig)
    assert (base.solver.iterations, base.solver.base_lr, base.seed) == (7, 0.01, 3)
    assert [config.backbone.name for config in variants.values()] == ["resnet18", "resnet34"]
    assert all(replace(config, backbone=base.backbone) == base for config in variants.values())


def test_nested_and_listed_values_of_a_variant_survive(write: Write) -> None:
    changes = {"data": {"jitter": {"size": 64}, "augment": [{"VerticalFlip": {"p": 0.5}}]}, "init_classes": {"a": "b"}}
    config = resolve_variants(load_experiment(write(variants=VARIANTS | {"other": changes})), DetectionConfig)["other"]
    assert config.data.jitter is not None
    assert config.data.jitter.size == 64
    assert config.data.augment == ({"VerticalFlip": {"p": 0.5}},)
    assert config.init_classes == {"a": "b"}


def test_allowed_differences_are_returned_with_all_values(write: Write) -> None:
    experiment = load_experiment(write())
    (found,) = check_fair(experiment, resolve_variants(experiment, DetectionConfig))
    assert (found.key, found.values) == ("backbone.name", {"small": "resnet18", "large": "resnet34"})


def test_a_smuggled_learning_rate_is_refused_with_key_values_and_fix(write: Write) -> None:
    variants = VARIANTS | {"large": ["backbone.name=resnet34", "solver.base_lr=0.02"]}
    experiment = load_experiment(write(variants=variants))
    expected = (
        "experiment swap: solver.base_lr differs and is not allowed to: small has 0.01, large has 0.02. "
        "Take it out of the variants, or add solver.base_lr to `allowed`"
    )
    with pytest.raises(ValueError, match=re.escape(expected)):
        check_fair(experiment, resolve_variants(experiment, DetectionConfig))


@pytest.mark.parametrize(
    ("override", "protocol", "message"),
    [
        ("seed=5", {}, "seed differs and is not allowed to: small has 0, large has 5. .*`seeds` sets it"),
        ("data.test=[bccd:val]", {}, "data.test differs .*all variants are tested on the same images"),
        (
            "solver.base_lr=1",
            {"name": "learning_rate_grid", "factors": [1, 2], "validation": ["bccd:val"]},
            "solver.base_lr differs .*The protocol learning_rate_grid sets it",
        ),
        ("solver.iterations=9", {"name": "equal_time", "minutes": 5}, "The protocol equal_time sets it"),
    ],
)
def test_what_the_experiment_decides_is_no_variant_s_to_change(
    write: Write, override: str, protocol: dict[str, Any], message: str
) -> None:
    variants = VARIANTS | {"large": ["backbone.name=resnet34", override]}
    experiment = load_experiment(write(variants=variants, protocol=protocol))
    with pytest.raises(ValueError, match=message):
        check_fair(experiment, resolve_variants(experiment, DetectionConfig))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("backbone.nam", "allowed has 'backbone.nam', which is no config key; did you mean 'backbone.na"),
        ("zzzz", "it takes section.key, such as backbone.name"),
    ],
)
def test_an_allowed_key_that_no_config_has_is_refused(write: Write, key: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve_variants(load_experiment(write(allowed=[key])), DetectionConfig)


def test_runs_that_may_end_early_are_refused(write: Write) -> None:
    path = write(overrides=["solver.patience=3", "solver.evaluate_every=10"])
    with pytest.raises(ValueError, match=r"solver\.patience 3.*set it to 0"):
        resolve_variants(load_experiment(path), DetectionConfig)


def test_a_section_s_name_allows_all_keys_below_it(write: Write) -> None:
    variants = {"a": ["backbone.name=vgg16", "backbone.dropout=0.1"], "b": ["backbone.name=vgg16"]}
    experiment = load_experiment(write(variants=variants, allowed=["backbone"]))
    (found,) = check_fair(experiment, resolve_variants(experiment, DetectionConfig))
    assert found.key == "backbone.dropout"


@pytest.mark.parametrize(
    ("allowed", "key", "answer"),
    [("rpn", "rpn.channels", True), ("rpn.channels", "rpn.channels", True), ("rpn.conv", "rpn.convs", False)],
)
def test_a_key_is_covered_by_itself_and_its_section(allowed: str, key: str, answer: bool) -> None:
    assert covers(allowed, key) is answer


def test_differences_of_sections_that_only_one_has() -> None:
    configs = {
        "a": load_config(DetectionConfig, CONFIGS / "digits/resnet18_c4.yaml"),
        "b": load_config(DetectionConfig, CONFIGS / "digits/resnet18_c4.yaml", ["data.jitter={size: 64}"]),
    }
    found = {difference.key: difference.values for difference in differences(configs)}
    assert found["data.jitter.size"] == {"a": None, "b": 64}
    assert differences({"a": configs["a"], "c": configs["a"]}) == ()


def test_flat_values_are_those_of_json() -> None:
    flat = flatten(DetectionConfig())
    assert flat["anchors.sizes"] == [128.0, 256.0, 512.0]
    assert (flat["init_classes"], flat["seed"], flat["backbone.weights"]) == ({}, 0, None)


def test_detections_of_other_programs_are_arms_beside_one_variant(write: Write, tmp_path: Path) -> None:
    for name in ("y1.json", "y2.json"):
        (tmp_path / name).write_text("[]")
    experiment = load_experiment(write(variants={"ours": []}, detections={"yolo": ["y1.json", "y2.json"]}))
    assert experiment.detections == {"yolo": (str(tmp_path / "y1.json"), str(tmp_path / "y2.json"))}


HEADS = {"two": {}, "dense": {"architecture": "retinanet", "solver": {"base_lr": 0.02}}}
PYRAMID = ["backbone.fpn=true", "box.head=fc"]


def test_every_variant_runs_under_every_head_which_differ_in_what_they_say(write: Write) -> None:
    experiment = load_experiment(write(heads=HEADS, overrides=PYRAMID))
    configs = resolve_variants(experiment, DetectionConfig)
    assert list(configs) == ["two.small", "two.large", "dense.small", "dense.large"]
    assert experiment.arms_by_head["dense"] == {"small": "dense.small", "large": "dense.large"}
    assert {arm: (c.architecture, c.backbone.name, c.solver.base_lr) for arm, c in configs.items()} == {
        "two.small": ("faster_rcnn", "resnet18", 0.01),
        "two.large": ("faster_rcnn", "resnet34", 0.01),
        "dense.small": ("retinanet", "resnet18", 0.02),
        "dense.large": ("retinanet", "resnet34", 0.02),
    }
    assert {d.key for d in check_fair(experiment, configs)} == {"architecture", "backbone.name", "solver.base_lr"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"variants": VARIANTS | {"large": ["solver.base_lr=0.03"]}}, "solver.base_lr differs .*two.large has 0.03"),
        ({"heads": HEADS | {"two": ["data.test=[bccd:val]"]}}, "data.test differs .*variants and heads"),
        ({"heads": HEADS | {"two": ["seed=3"]}}, "seed differs .*variants and heads"),
    ],
)
def test_the_list_holds_within_each_head_and_heads_change_no_test(
    write: Write, keys: dict[str, Any], message: str
) -> None:
    experiment = load_experiment(write(**({"heads": HEADS, "overrides": PYRAMID} | keys)))
    with pytest.raises(ValueError, match=message):
        check_fair(experiment, resolve_variants(experiment, DetectionConfig))


@pytest.mark.parametrize(
    ("detections", "told"),
    [
        ({"yolo": ["none.json"]}, "detections.yolo is"),
        ({"yolo": []}, "detections.yolo is"),
        ({"yolo": ["base.yaml", "./base.yaml"]}, "detections.yolo has a file twice"),
        ({"small": ["base.yaml"]}, "share the names ['small']"),
        ({"../yolo": ["base.yaml"]}, "names a folder"),
    ],
)
def test_arms_without_files_or_names_of_their_own_are_refused(
    write: Write, detections: dict[str, Any], told: str
) -> None:
    refused(write(detections=detections), told)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"base": None}, "experiment "),
        (
            {"variants": {"one": {}}},
            "variants needs two or more to compare, or one beside detections; got variants ['one']",
        ),
        ({"variants": {"a/b": {}, "c": {}}}, "'a/b' names a folder: it takes letters, digits and . _ + -"),
        ({"seeds": []}, "seeds takes one or more different numbers from 0, got []"),
        ({"seeds": [1, 1]}, "seeds takes one or more different numbers from 0, got [1, 1]"),
        ({"seeds": [-1]}, "got [-1]"),
        ({"allowed": ["data"]}, "allowed has 'data', which can't differ between variants: all variants are tested on"),
        ({"allowed": ["data.test"]}, "allowed has 'data.test', which can't differ between variants: all variants are"),
        ({"allowed": ["seed"]}, "can't differ between variants: `seeds` sets it for every variant alike"),
        ({"heads": {"two": {}}}, "heads takes two or more, each with two or more variants and without detections; got"),
        ({"heads": HEADS | {"a.b": {}}}, "'a.b' names a head, and its arms are HEAD.VARIANT"),
        ({"varients": {}}, "no config key 'varients'; did you mean 'variants'?"),
        ({"protocol": {"name": "equal"}}, "config key 'protocol.name' takes one of"),
        ({"protocol": {"name": "equal_time"}}, "got None under equal_time"),
        ({"protocol": {"name": "equal_time", "minutes": 0}}, "got 0.0 under equal_time"),
        ({"protocol": {"minutes": 3}}, "got 3.0 under equal_steps"),
        (
            {"protocol": {"name": "learning_rate_grid", "factors": [1]}},
            "protocol.validation and perhaps protocol.train",
        ),
        ({"protocol": {"factors": [1]}}, "got factors [1.0], validation [] and train [] under equal_steps"),
        (
            {"protocol": {"name": "learning_rate_grid", "factors": [1, 1], "validation": ["bccd:val"]}},
            "protocol.factors are different positive numbers, got [1.0, 1.0]",
        ),
    ],
)
def test_files_that_describe_no_experiment(write: Write, keys: dict[str, Any], message: str) -> None:
    path = write(**keys)
    refused(path, message)
    refused(path, f"experiment {path}")


@pytest.mark.parametrize(("text", "message"), [("[1]", "must hold a YAML mapping"), ("{", "can't be read")])
def test_files_that_are_no_mapping(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    refused(path, f"experiment {path} {message}")
    refused(tmp_path / "none.yaml", "can't be read")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["backbone.nam=x"], "variant 'large': no config key 'backbone.nam'"),
        (
            "resnet34",
            "variant 'large': it takes a mapping, such as {backbone: {name: resnet18}}, or [key=value], got 'res",
        ),
        (["data.test=[]"], "variant 'large': data.test is empty"),
    ],
)
def test_variants_that_are_no_config_are_named(write: Write, changes: Any, message: str) -> None:
    experiment = load_experiment(write(variants=VARIANTS | {"large": changes}))
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve_variants(experiment, DetectionConfig)


def test_a_missing_base_is_named(write: Write) -> None:
    with pytest.raises(ValueError, match=r"variant 'small': no config file '.*/none\.yaml'"):
        resolve_variants(load_experiment(write(base="none.yaml")), DetectionConfig)


def load(name: str) -> tuple[Experiment, dict[str, DetectionConfig]]:
    experiment = load_experiment(CONFIGS / "experiments" / f"{name}.yaml")
    return experiment, resolve_variants(experiment, DetectionConfig)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_experiment_here_is_fair_and_has_a_header(path: Path) -> None:
    experiment = load_experiment(path)
    classifies = "classification" in section_names(experiment.base)
    variants = resolve_variants(experiment, ClassificationConfig if classifies else DetectionConfig)
    assert check_fair(experiment, variants)
    header = [line.split(":")[0] for line in path.read_text().splitlines() if line.startswith("# ")]
    assert {"# Command", "# Hardware", "# Expected"} <= set(header)


@pytest.mark.parametrize(
    ("name", "recipes"),
    [
        ("voc_table7", ("voc/vgg16_c4_0712", "voc/resnet101_c4_0712")),
        ("coco_table8", ("coco/vgg16_c4", "coco/resnet101_c4")),
    ],
)
def test_experiments_at_paper_scale_are_the_single_configs_three_times(name: str, recipes: tuple[str, str]) -> None:
    experiment, variants = load(name)
    assert experiment.seeds == (0, 1, 2)
    assert list(variants.values()) == [load_config(DetectionConfig, CONFIGS / f"{recipe}.yaml") for recipe in recipes]


@pytest.mark.parametrize(
    ("name", "recipes"),
    [
        ("bccd_heads", ("bccd/fpn_small", "bccd/retinanet_small", "bccd/fcos_small")),
        (
            "coco_heads",
            tuple(f"coco/modern/{head}_r50_fpn_1x" for head in ("faster_rcnn", "retinanet", "fcos")),
        ),
    ],
)
def test_heads_are_the_single_configs(name: str, recipes: tuple[str, ...]) -> None:
    experiment, variants = load(name)
    for named, recipe in zip(experiment.arms_by_head.values(), recipes, strict=True):
        single = load_config(DetectionConfig, CONFIGS / f"{recipe}.yaml", experiment.overrides)
        found = variants[next(iter(named.values()))]
        unused = {"rpn": single.rpn, "box": single.box} if single.one_stage else {}
        assert replace(found, backbone=single.backbone, **unused) == single
        assert replace(found.backbone, name=single.backbone.name) == single.backbone


def test_the_small_experiment_has_twelve_runs_that_differ_in_the_name_of_the_backbone_alone() -> None:
    experiment, variants = load("bccd")
    assert len(experiment.seeds) * len(variants) == 12
    assert [difference.key for difference in differences(variants)] == ["backbone.name"]
    assert {config.backbone.norm for config in variants.values()} == {"gn"}

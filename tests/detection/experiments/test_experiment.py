import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detection.classification.config import ClassificationConfig
from detection.config.detection import DetectionConfig
from detection.config.load import load_config, section_names
from detection.experiments import experiment as module
from detection.experiments.experiment import Experiment, check_fair, differences, load_experiment, resolve_variants

CONFIGS = Path(__file__).parents[3] / "configs"
FILES = sorted((CONFIGS / "experiments").glob("*.yaml"))
VARIANTS = {"small": {"backbone": {"name": "resnet18"}}, "large": ["backbone.name=resnet34"]}
HEADS = {"two": {}, "dense": {"architecture": "retinanet", "solver": {"base_lr": 0.02}}}
PYRAMID = ["backbone.fpn=true", "box.head=fc"]
TIME = {"name": "equal_time", "minutes": 5}
GRID = {"name": "learning_rate_grid", "factors": [1, 2], "validation": ["bccd:val"]}
TAKE_IT_OUT = r"experiment swap: solver\.base_lr differs and is not allowed to: small has 0\.01, large has 0\.02\. "
TAKE_IT_OUT += r"Take it out of the variants, or add solver\.base_lr to `allowed`"


@pytest.fixture
def write(write_swap):
    """An experiment file over a base of ResNet-50 on bccd."""
    base = "data: {train: [bccd:trainval], test: [bccd:test]}\nsolver: {base_lr: 0.01}\n"
    return lambda **keys: write_swap(base, **{"variants": VARIANTS, "seeds": [0, 1], **keys})


def resolved(path: Path, overrides: Any = ()) -> tuple[Experiment, dict[str, Any]]:
    experiment = load_experiment(path, overrides)
    return experiment, resolve_variants(experiment, DetectionConfig)


def with_large(*changes: str) -> dict[str, Any]:
    return VARIANTS | {"large": ["backbone.name=resnet34", *changes]}


def test_variants_change_the_base_as_a_mapping_or_as_a_list(write) -> None:
    nested = {"data": {"jitter": {"size": 64}, "augment": [{"VerticalFlip": {"p": 0.5}}]}, "init_classes": {"a": "b"}}
    path = write(overrides=["solver.iterations=7"], variants={**VARIANTS, "o": nested})
    experiment, variants = resolved(path, ["seed=3"])
    assert (experiment.name, experiment.seeds, experiment.protocol) == ("swap", (0, 1), module.Protocol())
    base, other = module.resolve_base(experiment, DetectionConfig), variants.pop("o")
    assert (base.solver.iterations, base.solver.base_lr, base.seed) == (7, 0.01, 3)
    assert [config.backbone.name for config in variants.values()] == ["resnet18", "resnet34"]
    assert all(replace(config, backbone=base.backbone) == base for config in variants.values())
    assert (other.data.jitter.size, other.init_classes) == (64, {"a": "b"})
    assert other.data.augment == ({"VerticalFlip": {"p": 0.5}},)


def test_allowed_differences_are_returned_with_all_values(write) -> None:
    (found,) = check_fair(*resolved(write()))
    assert (found.key, found.values) == ("backbone.name", {"small": "resnet18", "large": "resnet34"})
    variants = {"a": ["backbone.name=vgg16", "backbone.dropout=0.1"], "b": ["backbone.name=vgg16"]}
    (found,) = check_fair(*resolved(write(variants=variants, allowed=["backbone"])))  # a section allows what is below
    assert found.key == "backbone.dropout"
    assert module.covers("rpn", "rpn.channels")
    assert module.covers("rpn.channels", "rpn.channels")
    assert not module.covers("rpn.conv", "rpn.convs")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"variants": with_large("solver.base_lr=0.02")}, TAKE_IT_OUT),
        ({"variants": with_large("seed=5")}, "seed differs and .*: small has 0, large has 5. .*`seeds` sets it"),
        ({"variants": with_large("data.test=[bccd:val]")}, "all variants are tested on the same images"),
        ({"variants": with_large("solver.base_lr=1"), "protocol": GRID}, "The protocol learning_rate_grid sets it"),
        ({"variants": with_large("solver.iterations=9"), "protocol": TIME}, "The protocol equal_time sets it"),
        ({"variants": with_large("solver.base_lr=0.03"), "heads": HEADS}, "base_lr differs .*two.large has 0.03"),
        ({"heads": HEADS | {"two": ["data.test=[bccd:val]"]}}, "data.test differs .*variants and heads"),
        ({"heads": HEADS | {"two": ["seed=3"]}}, "seed differs .*variants and heads"),
    ],
)
def test_differences_that_are_not_allowed_are_refused(write, keys, message) -> None:
    others = {"overrides": PYRAMID} if "heads" in keys else {}
    with pytest.raises(ValueError, match=message):
        check_fair(*resolved(write(**others, **keys)))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"allowed": ["backbone.nam"]}, "allowed has 'backbone.nam', which is no config key; did you mean 'backbone."),
        ({"allowed": ["zzzz"]}, "it takes section.key, such as backbone.name"),
        ({"overrides": ["solver.patience=3", "solver.evaluate_every=10"]}, "solver.patience 3"),  # may end early
        ({"variants": VARIANTS | {"large": ["backbone.nam=x"]}}, "variant 'large': no config key 'backbone.nam'"),
        ({"variants": VARIANTS | {"large": "resnet34"}}, "variant 'large': it takes a mapping, such as {backbone: {"),
        ({"variants": VARIANTS | {"large": ["data.test=[]"]}}, "variant 'large': data.test is empty"),
        ({"base": "none.yaml"}, "variant 'small': no config file '"),
    ],
)
def test_variants_that_are_no_config_are_named(write, keys, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        resolved(write(**keys))


def test_differences_of_sections_that_only_one_has() -> None:
    path = CONFIGS / "digits/resnet18_c4.yaml"
    a, b = (load_config(DetectionConfig, path, changes) for changes in ([], ["data.jitter={size: 64}"]))
    found = {difference.key: difference.values for difference in differences({"a": a, "b": b})}
    assert found["data.jitter.size"] == {"a": None, "b": 64}
    assert differences({"a": a, "c": a}) == ()


def test_every_variant_runs_under_every_head_which_differ_in_what_they_say(write, tmp_path) -> None:
    experiment, configs = resolved(write(heads=HEADS, overrides=PYRAMID))
    assert experiment.arms_by_head["dense"] == {"small": "dense.small", "large": "dense.large"}
    assert {arm: (c.architecture, c.backbone.name, c.solver.base_lr) for arm, c in configs.items()} == {
        "two.small": ("faster_rcnn", "resnet18", 0.01),
        "two.large": ("faster_rcnn", "resnet34", 0.01),
        "dense.small": ("retinanet", "resnet18", 0.02),
        "dense.large": ("retinanet", "resnet34", 0.02),
    }
    assert {d.key for d in check_fair(experiment, configs)} == {"architecture", "backbone.name", "solver.base_lr"}
    (tmp_path / "y1.json").write_text("[]")  # detections of other programs are arms beside one variant
    experiment = load_experiment(write(variants={"ours": []}, detections={"yolo": ["y1.json"]}))
    assert experiment.detections == {"yolo": (str(tmp_path / "y1.json"),)}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"base": None}, "experiment "),
        ({"variants": {"one": {}}}, "needs two or more to compare, or one beside detections; got variants ['o"),
        ({"variants": {"a/b": {}, "c": {}}}, "'a/b' names a folder: it takes letters, digits and . _ + -"),
        ({"seeds": [1, 1]}, "seeds takes one or more different numbers from 0, got [1, 1]"),
        ({"allowed": ["data.test"]}, "allowed has 'data.test', which can't differ between variants: all variants are"),
        ({"allowed": ["seed"]}, "can't differ between variants: `seeds` sets it for every variant alike"),
        ({"heads": {"two": {}}}, "heads takes two or more, each with two or more variants and without detections; got"),
        ({"heads": HEADS | {"a.b": {}}}, "'a.b' names a head, and its arms are HEAD.VARIANT"),
        ({"varients": {}}, "no config key 'varients'; did you mean 'variants'?"),
        ({"protocol": {"name": "equal"}}, "config key 'protocol.name' takes one of"),
        ({"protocol": TIME | {"minutes": 0}}, "got 0.0 under equal_time"),
        ({"protocol": {"minutes": 3}}, "got 3.0 under equal_steps"),
        ({"protocol": GRID | {"validation": []}}, "protocol.validation and perhaps protocol.train"),
        ({"protocol": {"factors": [1]}}, "got factors [1.0], validation [] and train [] under equal_steps"),
        ({"protocol": GRID | {"factors": [1, 1]}}, "protocol.factors are different positive numbers, got [1.0, 1.0]"),
        ({"detections": {"yolo": ["none.json"]}}, "detections.yolo is"),
        ({"detections": {"yolo": ["base.yaml", "./base.yaml"]}}, "detections.yolo has a file twice"),
        ({"detections": {"small": ["base.yaml"]}}, "share the names ['small']"),
        ({"detections": {"../yolo": ["base.yaml"]}}, "names a folder"),
    ],
)
def test_files_that_describe_no_experiment(write, keys, message) -> None:
    path = write(**keys)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_experiment(path)
    assert f"experiment {path}" in str(error.value)
    path.unlink()
    for text, message in ((None, "can't be read"), ("[1]", "must hold a YAML mapping"), ("{", "can't be read")):
        if text is not None:
            path.write_text(text)
        with pytest.raises(ValueError, match=f"experiment {re.escape(str(path))} {message}"):
            load_experiment(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_experiment_here_is_fair_and_has_a_header(path) -> None:
    experiment = load_experiment(path)
    classifies = "classification" in section_names(experiment.base)
    assert check_fair(experiment, resolve_variants(experiment, ClassificationConfig if classifies else DetectionConfig))
    header = [line.split(":")[0] for line in path.read_text().splitlines() if line.startswith("# ")]
    assert {"# Command", "# Hardware", "# Expected"} <= set(header)


@pytest.mark.parametrize(
    ("name", "recipes"),
    [
        ("voc_table7", ["voc/vgg16_c4_0712", "voc/resnet101_c4_0712"]),
        ("coco_table8", ["coco/vgg16_c4", "coco/resnet101_c4"]),
        ("bccd_heads", ["bccd/fpn_small", "bccd/retinanet_small", "bccd/fcos_small"]),
        ("coco_heads", [f"coco/modern/{head}_r50_fpn_1x" for head in ("faster_rcnn", "retinanet", "fcos")]),
    ],
)
def test_experiments_are_the_single_configs(name, recipes) -> None:
    experiment, variants = resolved(CONFIGS / "experiments" / f"{name}.yaml")
    singles = [load_config(DetectionConfig, CONFIGS / f"{r}.yaml", experiment.overrides) for r in recipes]
    if not experiment.heads:  # at paper scale, three times
        assert (experiment.seeds, list(variants.values())) == ((0, 1, 2), singles)
    for named, single in zip(experiment.arms_by_head.values(), singles if experiment.heads else (), strict=True):
        found = variants[next(iter(named.values()))]
        unused = {"rpn": single.rpn, "box": single.box} if single.one_stage else {}
        assert replace(found, backbone=single.backbone, **unused) == single
        assert replace(found.backbone, name=single.backbone.name) == single.backbone

"""Mirrors detection/config/detection.py; the YAML files of configs/ are held to it as well."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path

import pytest

from detection.classification.config import ClassificationConfig, ClassifierConfig
from detection.config.detection import DetectionConfig, DetectorDataConfig, JitterConfig
from detection.config.load import dump_config, load_config, parse_config
from detection.config.schema import different_meaning
from detection.config.sections import SolverConfig
from detection.edges.config import EdgesConfig
from detection.localization.config import LocalizationConfig

CONFIGS = Path(__file__).parents[3] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
# Those are tables of test settings, experiments of several runs, tables of the paper, and the list of experiments.
RUNS = [path for path in FILES if path.parent.name not in ("methods", "experiments", "reproduce", "configs")]


def test_every_section_has_defaults_and_they_survive_dump_and_load() -> None:
    assert parse_config(DetectionConfig, dump_config(DetectionConfig())) == DetectionConfig()


def test_sections_cannot_be_changed() -> None:
    config = DetectionConfig()
    for part in (config, *(getattr(config, f.name) for f in fields(config))):
        if is_dataclass(part):
            with pytest.raises(FrozenInstanceError):
                setattr(part, fields(part)[0].name, None)


def test_defaults_are_those_of_the_papers() -> None:
    config = DetectionConfig()
    assert config.anchors.sizes == (128.0, 256.0, 512.0)
    assert config.anchors.ratios == (0.5, 1.0, 2.0)
    assert (config.rpn.positive_iou, config.rpn.negative_iou, config.rpn.samples_per_image) == (0.7, 0.3, 256)
    assert (config.data.shorter_side, config.data.longer_side) == (600, 1000)
    assert (config.solver.base_lr, config.solver.momentum, config.solver.weight_decay) == (1e-3, 0.9, 5e-4)


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("solver: {iterations: 0}", "solver.iterations", "at least 1, got 0"),
        ("solver: {images_per_step: 3, accumulate: 2}", "solver.images_per_step", "a multiple of accumulate 2"),
        ("solver: {patience: 3}", "solver", "evaluate_every above 0, got 0"),
        ("solver: {base_lr: 0.0}", "solver.base_lr", "above 0.0, got 0.0"),
        ("solver: {steps: [5, 3]}", "solver.steps", "must rise, got [5, 3]"),
        ("solver: {ema_decay: 1.0}", "solver.ema_decay", "below 1.0, got 1.0"),
        ("data: {train_shorter_sides: [640, 0]}", "data.train_shorter_sides[1]", "at least 1, got 0"),
        ("data: {copy_paste: 1.5}", "data.copy_paste", "at most 1.0, got 1.5"),
        ("data: {jitter: {}, train_shorter_sides: [640]}", "data.jitter", "leave train_shorter_sides empty"),
        ("data: {jitter: {low: 1.5, high: 1.0}}", "data.jitter.low", "at most high, got low 1.5 and high 1.0"),
        ("test: {scales: [600]}", "test.scales", "got [600]"),
        ("architecture: cascade_rcnn", "architecture", "set box.head to fc"),
        ("rpn: {post_nms_test: 100000}", "rpn.post_nms_test", "at most 20000, got 100000"),
        ("architecture: fast_rcnn", "architecture", "did you mean 'faster_rcnn'?"),
        ("cascade: {ious: [0.5]}", "cascade.ious", "at least 2"),
        ("box: {coder_weights: [1, 2, 3]}", "box.coder_weights[3]", "missing"),
        ("{architecture: semantic_fpn}", "architecture semantic_fpn", "set backbone.fpn to true"),
        ("{architecture: fcn, backbone: {fpn: true}}", "architecture fcn", "set backbone.fpn to false"),
        ("{architecture: fcn, data: {copy_paste: 0.5}}", "data.copy_paste", "finds no objects"),
        ("{architecture: deeplabv3}", "solver.best_metric", "set it to semseg.mIoU"),
    ],
)
def test_what_cannot_work_is_refused_by_key(text: str, key: str, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(key)) as error:
        parse_config(DetectionConfig, text)
    assert expected in str(error.value)


def test_images_that_divide_into_parts_are_accepted() -> None:
    assert SolverConfig(images_per_step=16, accumulate=8).accumulate == 8


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("{crop: 0}", "classification.crop", "at least 1, got 0"),
        ("{crop: 257}", "classification.crop", "at most shorter_side 256, got 257"),
        ("{label_smoothing: 1.0}", "classification.label_smoothing", "below 1.0, got 1.0"),
        ("{mixup: -1}", "classification.mixup", "at least 0.0, got -1"),
        ("{mixup: 0.2, cutmix: 1}", "classification", "'mixup': 0.2, 'cutmix': 1.0"),
        ("{scales: []}", "classification.scales", "at least 1"),
        ("{network: spp}", "classification.network", "spp takes 1 of features"),
        ("{network: relay, features: [c4]}", "classification.network", "relay takes 2 of features"),
    ],
)
def test_a_classification_that_cannot_work_is_refused(text: str, key: str, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(key)) as error:
        parse_config(ClassificationConfig, f"classification: {text}")
    assert expected in str(error.value)


def test_keys_of_another_program_are_refused_with_its_command() -> None:
    with pytest.raises(ValueError, match=r"'classification'; it belongs to a config of `resdet pretrain`"):
        parse_config(DetectionConfig, "classification: {crop: 32}")
    for text in ("data: {jitter: {}}", "data: {limit: 3}", "backbone: {fpn: true}", "init: run", "rpn: {}"):
        with pytest.raises(ValueError, match="no config key"):
            parse_config(ClassificationConfig, text)


def test_weights_of_another_attention_learning_mean_something_else() -> None:
    naive, residual = (parse_config(ClassificationConfig, f"backbone: {{attention: {a}}}") for a in ("naive", "null"))
    assert different_meaning(naive, residual, "backbone") == ["backbone.attention is None here, and was 'naive'"]


def test_a_classifier_is_chosen_by_its_own_metric() -> None:
    assert parse_config(ClassificationConfig, "solver: {iterations: 3}").solver.best_metric == "classification.top1"


def test_defaults_of_classification_are_the_papers() -> None:
    config = ClassificationConfig().classification
    assert (config.crop, config.shorter_side, config.scales) == (224, 256, (224, 256, 384, 480, 640))
    assert (config.network, config.views, config.label_smoothing, config.mixup) == ("classifier", "crop", 0, 0)
    ClassifierConfig(crop=256, network="relay", features=("c3", "c4"), label_smoothing=0.1, mixup=0.2)


def test_jitter_reads_as_a_section_and_its_defaults_are_the_papers() -> None:
    text = "data: {jitter: {size: 512}}"
    assert parse_config(DetectionConfig, text).data.jitter == JitterConfig(size=512, low=0.1, high=2.0)
    assert parse_config(DetectionConfig, dump_config(parse_config(DetectionConfig, text))) == parse_config(
        DetectionConfig, text
    )


def test_modern_options_are_off_by_default() -> None:
    data, solver = DetectorDataConfig(), SolverConfig()
    assert (data.train_shorter_sides, data.jitter, data.copy_paste, data.repeat_threshold) == ((), None, 0, 0)
    assert (solver.optimizer, solver.ema_decay) == ("sgd", 0)


def test_the_default_augmentation_is_the_flip() -> None:
    assert DetectorDataConfig().augment == ({"HorizontalFlip": {"p": 0.5}},)


def test_there_are_configs() -> None:
    assert FILES


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_of_a_run_loads(path: Path) -> None:
    localizes = path.stem.startswith(("loc_", "table14"))
    classifies = path.parent.name in ("cifar10", "amazon", "tiny_imagenet") or path.stem.startswith("cls_")
    schema = LocalizationConfig if localizes else ClassificationConfig if classifies else DetectionConfig
    schema = EdgesConfig if path.parent.name == "bsds" else schema
    config = load_config(schema, path)
    assert parse_config(schema, dump_config(config)) == config


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_file_of_configs_opens_with_a_header(path: Path) -> None:
    assert path.read_text().startswith("#")

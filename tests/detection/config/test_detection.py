import re
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path

import pytest

from detection.classification.config import ClassificationConfig, ClassifierConfig
from detection.config.detection import DetectionConfig, JitterConfig
from detection.config.load import dump_config, load_config, parse_config
from detection.config.schema import different_meaning
from detection.config.sections import SolverConfig
from detection.edges.config import EdgesConfig
from detection.localization.config import LocalizationConfig

DETECTOR, CLASSIFIER = DetectionConfig, ClassificationConfig
CONFIGS = Path(__file__).parents[3] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
# Those are tables of test settings, experiments of several runs, tables of the paper, and the list of experiments.
RUNS = [path for path in FILES if path.parent.name not in ("methods", "experiments", "reproduce", "configs")]


def test_defaults_cannot_be_changed_and_survive_dump_and_load() -> None:
    config = DetectionConfig()
    assert parse_config(DetectionConfig, dump_config(config)) == config
    for part in (config, *(getattr(config, f.name) for f in fields(config))):
        if is_dataclass(part):
            with pytest.raises(FrozenInstanceError):
                setattr(part, fields(part)[0].name, None)


def test_defaults_are_those_of_the_papers_without_modern_options() -> None:
    config, cls = DetectionConfig(), ClassificationConfig().classification
    data, solver = config.data, config.solver
    assert (config.anchors.sizes, config.anchors.ratios) == ((128.0, 256.0, 512.0), (0.5, 1.0, 2.0))
    assert (config.rpn.positive_iou, config.rpn.negative_iou, config.rpn.samples_per_image) == (0.7, 0.3, 256)
    assert (data.shorter_side, data.longer_side, data.augment) == (600, 1000, ({"HorizontalFlip": {"p": 0.5}},))
    assert (data.train_shorter_sides, data.jitter, data.copy_paste, data.repeat_threshold) == ((), None, 0, 0)
    assert (solver.base_lr, solver.momentum, solver.weight_decay) == (1e-3, 0.9, 5e-4)
    assert (solver.optimizer, solver.ema_decay) == ("sgd", 0)
    assert (cls.crop, cls.shorter_side, cls.scales) == (224, 256, (224, 256, 384, 480, 640))
    assert (cls.network, cls.views, cls.label_smoothing, cls.mixup) == ("classifier", "crop", 0, 0)
    assert parse_config(ClassificationConfig, "solver: {iterations: 3}").solver.best_metric == "classification.top1"
    jittered = parse_config(DetectionConfig, "data: {jitter: {size: 512}}")
    assert jittered.data.jitter == JitterConfig(size=512, low=0.1, high=2.0)
    assert parse_config(DetectionConfig, dump_config(jittered)) == jittered


@pytest.mark.parametrize(
    ("schema", "text", "key", "expected"),
    [
        (DETECTOR, "solver: {iterations: 0}", "solver.iterations", "at least 1, got 0"),
        (DETECTOR, "solver: {images_per_step: 3, accumulate: 2}", "solver.images_per_step", "of accumulate 2"),
        (DETECTOR, "solver: {patience: 3}", "solver", "evaluate_every above 0, got 0"),
        (DETECTOR, "solver: {base_lr: 0.0}", "solver.base_lr", "above 0.0, got 0.0"),
        (DETECTOR, "solver: {steps: [5, 3]}", "solver.steps", "must rise, got [5, 3]"),
        (DETECTOR, "solver: {ema_decay: 1.0}", "solver.ema_decay", "below 1.0, got 1.0"),
        (DETECTOR, "data: {train_shorter_sides: [640, 0]}", "data.train_shorter_sides[1]", "at least 1, got 0"),
        (DETECTOR, "data: {copy_paste: 1.5}", "data.copy_paste", "at most 1.0, got 1.5"),
        (DETECTOR, "data: {jitter: {}, train_shorter_sides: [9]}", "data.jitter", "leave train_shorter_sides empty"),
        (DETECTOR, "data: {jitter: {low: 1.5, high: 1}}", "data.jitter.low", "at most high, got low 1.5 and high 1.0"),
        *(
            (DETECTOR, f"test: {{scales: {bad}}}", "scales takes two or more rising", "")
            for bad in ([6], [6, 4], [6, 6])
        ),
        *((DETECTOR, f"test: {{vote_iou: {bad}}}", "test.vote_iou", f"got {bad}") for bad in (0, 1.5)),
        (DETECTOR, "architecture: cascade_rcnn", "architecture", "set box.head to fc"),
        (DETECTOR, "rpn: {post_nms_test: 100000}", "rpn.post_nms_test", "at most 20000, got 100000"),
        (DETECTOR, "architecture: fast_rcnn", "architecture", "did you mean 'faster_rcnn'?"),
        (DETECTOR, "cascade: {ious: [0.5]}", "cascade.ious", "at least 2"),
        (DETECTOR, "box: {coder_weights: [1, 2, 3]}", "box.coder_weights[3]", "missing"),
        (DETECTOR, "{architecture: semantic_fpn}", "architecture semantic_fpn", "set backbone.fpn to true"),
        (DETECTOR, "{architecture: fcn, backbone: {fpn: true}}", "architecture fcn", "set backbone.fpn to false"),
        (DETECTOR, "{architecture: fcn, data: {copy_paste: 0.5}}", "data.copy_paste", "finds no objects"),
        (DETECTOR, "{architecture: deeplabv3}", "solver.best_metric", "set it to semseg.mIoU"),
        (DETECTOR, "classification: {crop: 32}", "'classification'", "it belongs to a config of `resdet pretrain`"),
        (CLASSIFIER, "classification: {crop: 0}", "classification.crop", "at least 1, got 0"),
        (CLASSIFIER, "classification: {crop: 257}", "classification.crop", "at most shorter_side 256, got 257"),
        (CLASSIFIER, "classification: {label_smoothing: 1.0}", "label_smoothing", "below 1.0, got 1.0"),
        (CLASSIFIER, "classification: {mixup: -1}", "classification.mixup", "at least 0.0, got -1"),
        (CLASSIFIER, "classification: {mixup: 0.2, cutmix: 1}", "classification", "'mixup': 0.2, 'cutmix': 1.0"),
        (CLASSIFIER, "classification: {scales: []}", "classification.scales", "at least 1"),
        (CLASSIFIER, "classification: {network: spp}", "classification.network", "spp takes 1 of features"),
        (CLASSIFIER, "classification: {network: relay, features: [c4]}", "network", "relay takes 2 of features"),
        *((CLASSIFIER, f"data: {{{own}}}", "no config key", "") for own in ("jitter: {}", "limit: 3")),
        *((CLASSIFIER, own, "no config key", "") for own in ("backbone: {fpn: true}", "init: run", "rpn: {}")),
    ],
)
def test_what_cannot_work_is_refused_by_key(schema, text, key, expected) -> None:
    with pytest.raises(ValueError, match=re.escape(key)) as error:
        parse_config(schema, text)
    assert expected in str(error.value)


def test_what_is_at_a_limit_is_accepted() -> None:
    assert SolverConfig(images_per_step=16, accumulate=8).accumulate == 8
    ClassifierConfig(crop=256, network="relay", features=("c3", "c4"), label_smoothing=0.1, mixup=0.2)


def test_weights_of_another_attention_learning_mean_something_else() -> None:
    naive, residual = (parse_config(ClassificationConfig, f"backbone: {{attention: {a}}}") for a in ("naive", "null"))
    assert different_meaning(naive, residual, "backbone") == ["backbone.attention is None here, and was 'naive'"]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_of_a_run_loads(path) -> None:
    localizes = path.stem.startswith(("loc_", "table14"))
    classifies = path.parent.name in ("cifar10", "amazon", "tiny_imagenet") or path.stem.startswith("cls_")
    schema = LocalizationConfig if localizes else ClassificationConfig if classifies else DetectionConfig
    schema = EdgesConfig if path.parent.name == "bsds" else schema
    config = load_config(schema, path)
    assert parse_config(schema, dump_config(config)) == config


def test_every_file_of_configs_opens_with_a_header() -> None:
    assert FILES
    assert [path for path in FILES if not path.read_text().startswith("#")] == []

"""Mirrors detection/config/detection.py; the YAML files of configs/ are held to it as well."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path

import pytest

from detection.config.detection import ClassificationConfig, Config, DataConfig, JitterConfig, SolverConfig
from detection.config.load import dump_config, load_config, parse_config

CONFIGS = Path(__file__).parents[3] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
# Those are tables of test settings, and experiments of several runs.
RUNS = [path for path in FILES if path.parent.name not in ("methods", "experiments")]


def test_every_section_has_defaults_and_they_survive_dump_and_load() -> None:
    assert parse_config(Config, dump_config(Config())) == Config()


def test_sections_cannot_be_changed() -> None:
    config = Config()
    for part in (config, *(getattr(config, f.name) for f in fields(config))):
        if is_dataclass(part):
            with pytest.raises(FrozenInstanceError):
                setattr(part, fields(part)[0].name, None)


def test_defaults_are_those_of_the_papers() -> None:
    config = Config()
    assert config.anchors.sizes == (128.0, 256.0, 512.0)
    assert config.anchors.ratios == (0.5, 1.0, 2.0)
    assert (config.rpn.positive_iou, config.rpn.negative_iou, config.rpn.samples_per_image) == (0.7, 0.3, 256)
    assert (config.data.shorter_side, config.data.longer_side) == (600, 1000)
    assert (config.solver.base_lr, config.solver.momentum, config.solver.weight_decay) == (1e-3, 0.9, 5e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"iterations": 0}, "solver.iterations must be at least 1, got 0"),
        ({"images_per_step": 0}, "solver.images_per_step must be at least 1, got 0"),
        ({"accumulate": -1}, "solver.accumulate must be at least 1, got -1"),
        ({"log_every": 0}, "solver.log_every must be at least 1, got 0"),
        ({"keep_checkpoints": 0}, "solver.keep_checkpoints must be at least 1, got 0"),
        ({"images_per_step": 3, "accumulate": 2}, "images_per_step 3 must be a multiple of accumulate 2"),
        ({"base_lr": 0.0}, "solver.base_lr must be positive, got 0.0"),
        ({"steps": (5, 3)}, "solver.steps must rise, got (5, 3)"),
        ({"ema_decay": 1.0}, "solver.ema_decay is at least 0 and below 1, such as 0.9998, got 1.0"),
        ({"ema_decay": -0.1}, "got -0.1"),
    ],
)
def test_a_solver_that_cannot_work_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SolverConfig(**values)  # pyright: ignore[reportArgumentType]  # any values


def test_images_that_divide_into_parts_are_accepted() -> None:
    assert SolverConfig(images_per_step=16, accumulate=8).accumulate == 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_shorter_sides": (640, 0)}, "data.train_shorter_sides must be at least 1, got (640, 0)"),
        ({"copy_paste": 1.5}, "data.copy_paste is a fraction from 0 to 1, got 1.5"),
        ({"repeat_threshold": -0.1}, "data.repeat_threshold is a fraction from 0 to 1, got -0.1"),
        ({"jitter": JitterConfig(), "train_shorter_sides": (640,)}, "leave data.train_shorter_sides empty, or jitter"),
    ],
)
def test_data_that_cannot_be_made_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        DataConfig(**values)  # pyright: ignore[reportArgumentType]  # any values


@pytest.mark.parametrize("values", [{"size": 0}, {"low": 0.0}, {"low": 1.5, "high": 1.0}])
def test_a_jitter_that_cannot_work_is_refused_with_its_values(values: dict[str, float]) -> None:
    with pytest.raises(
        ValueError, match=r"data\.jitter takes a size of at least 1 and 0 < low <= high, got size "
    ) as error:
        JitterConfig(**values)  # pyright: ignore[reportArgumentType]  # any values
    assert all(f"{name} {value}" in str(error.value) for name, value in values.items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop": 0}, "classification.crop must be at least 1 and at most shorter_side 256, got 0"),
        ({"crop": 257}, "classification.crop must be at least 1 and at most shorter_side 256, got 257"),
        ({"label_smoothing": 1.0}, "a label_smoothing from 0 to below 1 and a mixup of at least 0, got 1.0 and 0.0"),
        ({"label_smoothing": -0.1}, "got -0.1 and 0.0"),
        ({"mixup": -1.0}, "got 0.0 and -1.0"),
        ({"scales": ()}, "classification.scales takes one or more shorter sides, got ()"),
        ({"scales": (224, 0)}, "got (224, 0)"),
        ({"network": "spp"}, "spp takes one of classification.features, the stage it pools, such as [c5]; got ()"),
        ({"network": "spp", "features": ("c4", "c5")}, "got ('c4', 'c5')"),
        ({"network": "relay"}, "relay takes two classification.features, such as [c3, c4], got ()"),
        ({"network": "relay", "features": ("c4",)}, "got ('c4',)"),
    ],
)
def test_a_classification_that_cannot_work_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ClassificationConfig(**values)  # pyright: ignore[reportArgumentType]  # any values


def test_defaults_of_classification_are_the_papers() -> None:
    config = Config().classification
    assert (config.crop, config.shorter_side, config.scales) == (224, 256, (224, 256, 384, 480, 640))
    assert (config.network, config.views, config.label_smoothing, config.mixup) == ("classifier", "crop", 0, 0)
    ClassificationConfig(crop=256, network="relay", features=("c3", "c4"), label_smoothing=0.1, mixup=0.2)


def test_jitter_reads_as_a_section_and_its_defaults_are_the_papers() -> None:
    text = "data: {jitter: {size: 512}}"
    assert parse_config(Config, text).data.jitter == JitterConfig(size=512, low=0.1, high=2.0)
    assert parse_config(Config, dump_config(parse_config(Config, text))) == parse_config(Config, text)


def test_modern_options_are_off_by_default() -> None:
    data, solver = DataConfig(), SolverConfig()
    assert (data.train_shorter_sides, data.jitter, data.copy_paste, data.repeat_threshold) == ((), None, 0, 0)
    assert (solver.optimizer, solver.ema_decay) == ("sgd", 0)


def test_the_default_augmentation_is_the_flip() -> None:
    assert DataConfig().augment == ({"HorizontalFlip": {"p": 0.5}},)


def test_there_are_configs() -> None:
    assert FILES


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_of_a_run_loads(path: Path) -> None:
    config = load_config(Config, path)
    assert parse_config(Config, dump_config(config)) == config


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_file_of_configs_opens_with_a_header(path: Path) -> None:
    assert path.read_text().startswith("#")

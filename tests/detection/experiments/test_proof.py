"""Mirrors detection/experiments/proof.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detection.config.detection import DetectionConfig, DetectorBackboneConfig, DetectorDataConfig
from detection.config.load import load_config
from detection.data.digits import write_digits
from detection.data.index import AnnotationIndex
from detection.experiments import proof
from detection.experiments.detectors import DETECTORS
from detection.experiments.experiment import load_experiment, resolve_variants
from detection.experiments.proof import also_changes, check_apart, describe, hash_code

CONFIGS = Path(__file__).parents[3] / "configs"

Make = Callable[..., AnnotationIndex]


def with_backbone(**options: Any) -> DetectionConfig:
    return DetectionConfig(backbone=DetectorBackboneConfig(**options))


def changes(**configs: DetectionConfig) -> dict[str, dict[str, Any]]:
    return {entry["what"]: entry["values"] for entry in also_changes(configs, 20, DETECTORS)}


def test_what_changes_with_the_paper_s_backbones() -> None:
    configs = resolve_variants(load_experiment(CONFIGS / "experiments" / "voc_table7.yaml"), DetectionConfig)
    found = changes(**configs)
    assert found["tail"] == {
        "vgg16": "VGGTail on regions of 7 x 7",
        "resnet101": "ResNetTail on regions of 14 x 14",
    }
    assert found["features"] == {"vgg16": "c5: 512 at stride 16", "resnet101": "c4: 1024 at stride 16"}
    # fc6 and fc7, and 21 + 80 outputs
    assert found["head parameters"]["vgg16"] == 512 * 49 * 4096 + 4096 + 4096 * 4096 + 4096 + 101 * 4097
    assert found["normalisation layers"]["vgg16"] == "none"
    assert found["normalisation layers"]["resnet101"].endswith("FrozenBatchNorm")
    assert "total stride" not in found
    assert "pre-training data" not in found


def test_a_stride_and_pre_training_that_differ_are_flagged() -> None:
    found = changes(
        a=with_backbone(name="resnet18"),
        b=with_backbone(name="resnet18", weights="torchvision"),
        c=with_backbone(name="resnet18", weights="mine.pth", weights_source="caffe"),
        d=replace(with_backbone(name="resnet18"), init="output/coco"),
    )
    assert found["pre-training data"] == {
        "a": "none",
        "b": "ImageNet-1k, torchvision's",
        "c": "mine.pth, caffe",
        "d": "a detector: output/coco",
    }
    assert "'bgr'" in found["input"]["c"]


def test_equal_detectors_have_nothing_that_changes() -> None:
    config = with_backbone(name="resnet18")
    assert also_changes({"a": config, "b": replace(config, seed=3)}, 20, DETECTORS) == []


def test_what_changes_below_a_pyramid_is_flagged() -> None:
    base = ["backbone.norm=gn"]
    configs = {
        name: load_config(DetectionConfig, CONFIGS / "bccd/fpn_resnet18.yaml", [*base, f"backbone.name={name}"])
        for name in ("resnet18", "vgg11_bn")
    }
    found = changes(**configs)
    assert found["total stride"] == {"resnet18": 32, "vgg11_bn": 16}
    assert "tail" not in found  # both have the same fully connected head
    assert "head parameters" not in found


def test_the_hash_of_weights_is_that_of_the_seed_s_network(tmp_path: Path) -> None:
    config = with_backbone(name="resnet18", norm="gn", roi_size=1)
    assert DETECTORS.hash_weights(config, 3) == DETECTORS.hash_weights(config, 3)
    assert DETECTORS.hash_weights(config, 3) != DETECTORS.hash_weights(replace(config, seed=1), 3)
    start = tmp_path / "start.safetensors"
    start.write_bytes(b"weights")
    hashes = [DETECTORS.hash_weights(replace(config, init=str(start), seed=seed), 3) for seed in (0, 1)]
    assert hashes[0] == hashes[1]


def test_the_hash_of_the_code_sees_a_changed_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hash_code()
    package = tmp_path / "detection"
    package.mkdir()
    (package / "__init__.py").write_text("x = 1\n")
    monkeypatch.setattr(proof.detection, "__file__", str(package / "__init__.py"))
    one = hash_code()
    (package / "__init__.py").write_text("x = 2\n")
    assert len({before, one, hash_code()}) == 3


def test_sets_that_share_an_image_are_refused(make_index: Make) -> None:
    first, second = make_index([[], []], paths=["a.jpg", "b.jpg"]), make_index([[]], paths=["./b.jpg"])
    expected = re.escape("data.test and validation share 1 images, such as ") + r".*b\.jpg: a learning rate chosen on"
    with pytest.raises(ValueError, match=expected):
        check_apart(("data.test", "validation"), first, second)
    check_apart(("data.test", "validation"), first, make_index([[]], paths=["c.jpg"]))


def test_an_experiment_is_described(tmp_path: Path) -> None:
    root = write_digits(tmp_path / "data", num_train=2, num_test=1).parent
    path = tmp_path / "swap.yaml"
    (tmp_path / "base.yaml").write_text("data: {train: [digits:train], test: [digits:test]}\nbackbone: {norm: gn}")
    path.write_text(
        "{base: base.yaml, seeds: [4], allowed: [backbone.name], variants: {a: [backbone.name=plain18], b: []}}"
    )
    experiment = load_experiment(path, [f"data.root={root}"])
    proof = describe(experiment, resolve_variants(experiment, DetectionConfig), DETECTORS, say=print)
    assert (proof["name"], proof["seeds"], proof["allowed"]) == ("swap", [4], ["backbone.name"])
    assert proof["protocol"]["name"] == "equal_steps"
    assert proof["base"]["backbone.name"] == "resnet50"
    assert proof["differences"] == [{"key": "backbone.name", "values": {"a": "plain18", "b": "resnet50"}}]
    assert {entry["what"] for entry in proof["also_changes"]} >= {"head parameters", "features"}
    assert list(proof["hashes"]["data"]) == ["digits:train", "digits:test"]
    hashes = [*proof["hashes"]["data"].values(), *proof["hashes"]["initial_weights"].values(), proof["hashes"]["code"]]
    assert len(set(hashes)) == 5
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in hashes)
    assert proof["environment"]["torch"] == torch.__version__
    assert proof["environment"]["cpu"]


def test_data_without_a_root_are_refused(tmp_path: Path) -> None:
    config = DetectionConfig(
        data=DetectorDataConfig(train=("digits:train",), test=("digits:test",), root=str(tmp_path))
    )
    path = tmp_path / "swap.yaml"
    (tmp_path / "base.yaml").write_text("{}")
    path.write_text("{base: base.yaml, seeds: [0], variants: {a: {}, b: {}}}")
    with pytest.raises(ValueError, match="data set 'digits' is not at"):
        describe(load_experiment(path), {"a": config, "b": config}, DETECTORS, say=print)

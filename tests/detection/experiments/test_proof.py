import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from detection.config.detection import DetectionConfig, DetectorBackboneConfig
from detection.config.load import load_config
from detection.experiments import proof
from detection.experiments.detectors import DETECTORS
from detection.experiments.experiment import load_experiment, resolve_variants
from detection.experiments.proof import also_changes, check_apart, describe, hash_code

CONFIGS = Path(__file__).parents[3] / "configs"


def with_backbone(**options: Any) -> DetectionConfig:
    return DetectionConfig(backbone=DetectorBackboneConfig(**dict[str, Any](name="resnet18") | options))


def changes(**configs: DetectionConfig) -> dict[str, dict[str, Any]]:
    return {entry["what"]: entry["values"] for entry in also_changes(configs, 20, DETECTORS)}


def test_what_changes_with_the_paper_s_backbones() -> None:
    configs = resolve_variants(load_experiment(CONFIGS / "experiments" / "voc_table7.yaml"), DetectionConfig)
    found = changes(**configs)
    assert found["tail"] == {"vgg16": "VGGTail on regions of 7 x 7", "resnet101": "ResNetTail on regions of 14 x 14"}
    assert found["features"] == {"vgg16": "c5: 512 at stride 16", "resnet101": "c4: 1024 at stride 16"}
    # fc6 and fc7, and 21 + 80 outputs
    assert found["head parameters"]["vgg16"] == 512 * 49 * 4096 + 4096 + 4096 * 4096 + 4096 + 101 * 4097
    assert found["normalisation layers"]["vgg16"] == "none"
    assert found["normalisation layers"]["resnet101"].endswith("FrozenBatchNorm")
    assert not {"total stride", "pre-training data"} & found.keys()


def test_a_stride_and_pre_training_that_differ_are_flagged() -> None:
    found = changes(
        a=with_backbone(),
        b=with_backbone(weights="torchvision"),
        c=with_backbone(weights="mine.pth", weights_source="caffe"),
        d=replace(with_backbone(), init="output/coco"),
    )
    sources = ["none", "ImageNet-1k, torchvision's", "mine.pth, caffe", "a detector: output/coco"]
    assert list(found["pre-training data"].values()) == sources
    assert "'bgr'" in found["input"]["c"]
    assert changes(a=with_backbone(), b=replace(with_backbone(), seed=3)) == {}
    load = partial(load_config, DetectionConfig, CONFIGS / "bccd/fpn_resnet18.yaml")
    found = changes(**{n: load(["backbone.norm=gn", f"backbone.name={n}"]) for n in ("resnet18", "vgg11_bn")})
    assert found["total stride"] == {"resnet18": 32, "vgg11_bn": 16}
    assert not {"tail", "head parameters"} & found.keys()  # both have the same fully connected head


def test_hashes_are_of_the_network_and_of_the_code(tmp_path, monkeypatch) -> None:
    config, start = with_backbone(name="cifar_resnet20", norm="gn", roi_size=1), tmp_path / "start.safetensors"
    start.write_bytes(b"weights")
    first, same, other = (DETECTORS.hash_weights(replace(config, seed=seed), 3) for seed in (0, 0, 1))
    assert first == same != other
    given = [DETECTORS.hash_weights(replace(config, init=str(start), seed=seed), 3) for seed in (0, 1)]
    assert given[0] == given[1] != first
    file = tmp_path / "detection" / "__init__.py"
    file.parent.mkdir()
    hashes = [hash_code()]
    monkeypatch.setattr(proof.detection, "__file__", str(file))
    for line in ("x = 1\n", "x = 2\n"):
        file.write_text(line)
        hashes.append(hash_code())
    assert len({*hashes}) == 3


def test_sets_that_share_an_image_are_refused(make_index) -> None:
    first, second = make_index([[], []], paths=["a.jpg", "b.jpg"]), make_index([[]], paths=["./b.jpg"])
    expected = re.escape("data.test and validation share 1 images, such as ") + r".*b\.jpg: a learning rate chosen on"
    with pytest.raises(ValueError, match=expected):
        check_apart(("data.test", "validation"), first, second)
    check_apart(("data.test", "validation"), first, make_index([[]], paths=["c.jpg"]))


def test_an_experiment_is_described(card, write_swap, tmp_path) -> None:
    base = f"data: {{train: ['{card}:train'], test: ['{card}:test']}}\n"
    base += "backbone: {name: cifar_resnet20, norm: gn, roi_size: 1}"
    path = write_swap(base, seeds=[4], variants={"a": ["backbone.name=cifar_resnet32"], "b": []})

    def described(root: Path) -> dict[str, Any]:
        experiment = load_experiment(path, [f"data.root={root}"])
        return describe(experiment, resolve_variants(experiment, DetectionConfig), DETECTORS, say=print)

    with pytest.raises(ValueError, match="data set 'coco' is not at"):
        described(tmp_path / "none")
    found = described(tmp_path)
    assert (found["name"], found["seeds"], found["allowed"]) == ("swap", [4], ["backbone.name"])
    assert found["protocol"]["name"] == "equal_steps"
    assert found["base"]["backbone.name"] == "cifar_resnet20"
    differing = {"a": "cifar_resnet32", "b": "cifar_resnet20"}
    assert found["differences"] == [{"key": "backbone.name", "values": differing}]
    assert {entry["what"] for entry in found["also_changes"]} >= {"backbone parameters"}
    assert list(found["hashes"]["data"]) == [f"{card}:train", f"{card}:test"]
    hashes = [*found["hashes"]["data"].values(), *found["hashes"]["initial_weights"].values(), found["hashes"]["code"]]
    assert len(set(hashes)) == 5
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in hashes)
    assert found["environment"]["torch"] == torch.__version__
    assert found["environment"]["cpu"]

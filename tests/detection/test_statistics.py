"""Mirrors detection/statistics.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from backbones.factory import build_backbone
from backbones.weights import read_state_dict
from detection.build import build_detector
from detection.config import BackboneConfig, BoxConfig, Config, DataConfig, RPNConfig
from detection.data.build import build_test_loader
from detection.data.cards import load_dataset
from detection.data.digits import write_digits
from detection.statistics import recompute_statistics


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = write_digits(tmp_path_factory.mktemp("root"), num_train=6, num_test=1).parent
    data = DataConfig(train=("digits:train",), root=str(root), shorter_side=64, longer_side=96, workers=0)
    backbone = BackboneConfig(name="resnet18", norm="frozen_bn", freeze_at=2, roi_size=2)
    return Config(backbone=backbone, rpn=RPNConfig(channels=8), box=BoxConfig(), data=data)


def test_statistics_are_those_of_all_images(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    torch.manual_seed(0)
    assert recompute_statistics(config, path, images=100) == 6
    state = read_state_dict(path)
    torch.manual_seed(0)
    trained = build_detector(replace(config, backbone=replace(config.backbone, norm="bn", freeze_at=0)), 10)
    index, _ = load_dataset(config.data.train, Path(str(config.data.root)))
    sums, squares, count = torch.zeros(64), torch.zeros(64), 0
    stem = trained.backbone.get_submodule("conv1")
    for batch in build_test_loader(index, config.data):
        with torch.no_grad():
            responses = stem(trained._normalize(batch.images)).flatten(2)[0].double()  # (64, H * W)
        sums, squares = sums + responses.sum(1), squares + responses.square().sum(1)
        count += responses.shape[1]
    mean = sums / count
    torch.testing.assert_close(state["bn1.running_mean"].double(), mean, rtol=2e-2, atol=2e-3)
    torch.testing.assert_close(state["bn1.running_var"].double(), squares / count - mean.square(), rtol=5e-2, atol=1e-2)
    assert not state["layer4.1.bn2.running_mean"].eq(0).all()  # the tail too


def test_the_file_is_one_that_a_frozen_backbone_takes(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    recompute_statistics(config, path, images=2)
    backbone = build_backbone("resnet18", weights=str(path), norm="frozen_bn")
    state = read_state_dict(path)
    assert torch.equal(backbone.state_dict()["bn1.running_var"], state["bn1.running_var"])
    assert not [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]


def test_a_network_without_them_is_refused(config: Config, tmp_path: Path) -> None:
    plain = replace(config, backbone=BackboneConfig(name="vgg11", roi_size=2))
    with pytest.raises(ValueError, match="has no option 'norm'"):
        recompute_statistics(plain, tmp_path / "x.safetensors", images=1)
    assert not list(tmp_path.iterdir())

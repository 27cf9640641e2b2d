from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from backbones.classifier import backbone_weights
from backbones.weights.load import read_state_dict
from detection.build import build_detector
from detection.build_trunk import build_plain_backbone
from detection.config.detection import DetectionConfig, DetectorBackboneConfig, RPNConfig
from detection.data.cards import load_dataset
from detection.data.loader import build_test_loader
from detection.structures import ImageBatch
from detection.tasks.precise_bn import recompute_statistics


@pytest.fixture(scope="module")
def config(tiny) -> DetectionConfig:
    backbone = DetectorBackboneConfig(name="resnet18", norm="frozen_bn", freeze_at=2, roi_size=2)
    return DetectionConfig(backbone=backbone, rpn=RPNConfig(channels=8), data=tiny.data)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "backbone.safetensors"


@pytest.fixture
def recomputed(config, path):
    """Recomputes; gives the number of images, the written weights and the detector that they come from."""

    def recompute(**options: Any) -> tuple[int, dict[str, Any], Any]:
        torch.manual_seed(0)
        count = recompute_statistics(config, path, images=100, **options)
        torch.manual_seed(0)
        trained = build_detector(replace(config, backbone=replace(config.backbone, norm="bn", freeze_at=0)), 10)
        return count, dict(backbone_weights(read_state_dict(path))), trained

    return recompute


def test_statistics_are_those_of_all_images(config, recomputed) -> None:
    count, state, trained = recomputed()
    assert count == 6
    index, _ = load_dataset(config.data.train, Path(str(config.data.root)))
    sums, squares, count = torch.zeros(64), torch.zeros(64), 0
    stem = trained.backbone.get_submodule("conv1")
    for batch in build_test_loader(index, config.data):
        with torch.no_grad():
            responses = stem(trained.normalize(batch.images)).flatten(2)[0].double()  # (64, H * W)
        sums, squares = sums + responses.sum(1), squares + responses.square().sum(1)
        count += responses.shape[1]
    mean = sums / count
    torch.testing.assert_close(state["bn1.running_mean"].double(), mean, rtol=2e-2, atol=2e-3)
    torch.testing.assert_close(state["bn1.running_var"].double(), squares / count - mean.square(), rtol=5e-2, atol=1e-2)
    assert not state["layer4.1.bn2.running_mean"].eq(0).all()  # the tail too


@pytest.mark.parametrize("options", [{}, {"name": "resnet50", "stride_in": "1x1"}], ids=["resnet18", "1x1"])
def test_the_file_is_one_that_a_frozen_backbone_takes(config, path, options) -> None:
    described = replace(config.backbone, **options)
    recompute_statistics(replace(config, backbone=described), path, images=2)
    backbone = build_plain_backbone(replace(described, weights=str(path)), pretrained=True)
    state = backbone_weights(read_state_dict(path))
    assert torch.equal(backbone.state_dict()["bn1.running_var"], state["bn1.running_var"])
    assert backbone.state_dict().keys() <= state.keys()
    assert not [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    if options:
        with pytest.raises(ValueError, match=r"backbone\.stride_in is None here, and was '1x1'"):
            build_plain_backbone(replace(described, weights=str(path), stride_in=None), pretrained=True)


def test_an_image_folder_is_seen_as_in_classification(config, recomputed, path, tmp_path) -> None:
    # One flat colour per image: the crop is that colour, so the mean response of a 1x1 network is known.
    for number, colour in enumerate([(10, 20, 30), (110, 20, 30)]):
        folder = tmp_path / "images" / f"class{number}"
        folder.mkdir(parents=True)
        Image.new("RGB", (400, 300), colour).save(folder / "a.png")
    count, state, trained = recomputed(folder=tmp_path / "images")
    assert count == 2
    crops = [torch.tensor(colour, dtype=torch.uint8) for colour in [(10, 20, 30), (110, 20, 30)]]
    images = ImageBatch.from_images([crop[:, None, None].expand(3, 224, 224) for crop in crops])
    with torch.no_grad():
        wanted = trained.backbone.get_submodule("conv1")(trained.normalize(images)).mean(dim=(0, 2, 3))
    torch.testing.assert_close(state["bn1.running_mean"], wanted, rtol=1e-3, atol=1e-3)
    assert recompute_statistics(config, path, images=1, folder=tmp_path / "images") == 1  # only so many are read


def test_other_files_networks_and_folders_are_refused(config, tmp_path) -> None:
    plain = replace(config, backbone=DetectorBackboneConfig(name="vgg11", roi_size=2))
    for own, name, options, message in (
        (config, "x.pth", {}, r"takes a \.safetensors file, got '.*x\.pth'"),
        (plain, "x.safetensors", {}, "has no option 'norm'"),
        (config, "x.safetensors", {"folder": tmp_path}, "must be a folder with a subfolder of images per class"),
    ):
        with pytest.raises(ValueError, match=message):
            recompute_statistics(own, tmp_path / name, images=1, **options)
    assert not list(tmp_path.iterdir())

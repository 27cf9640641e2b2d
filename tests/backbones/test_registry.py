"""Mirrors registry.py."""

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models import get_model

from backbones import registry
from backbones.base import IMAGENET_RGB, InputStats
from backbones.registry import backbone_names, build_backbone, register
from backbones.resnet import ResNet
from backbones.weights.load import SOURCES

OWN = InputStats(mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), channel_order="bgr")


def torchvision_state(name: str) -> dict[str, Tensor]:
    """Names and shapes of torchvision's state dict; each entry is one number, repeated, so that its file is small."""
    with torch.device("meta"):
        shapes = get_model(name, weights=None).state_dict().items()
    return {key: torch.full(value.shape, 1 + i / 1000) for i, (key, value) in enumerate(shapes)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights."""
    folder = tmp_path_factory.mktemp("weights")
    for name in ("resnet18", "resnet50"):
        torch.save(torchvision_state(name), folder / f"{name}.pth")
    torch.save({n: v for n, v in torchvision_state("resnet50").items() if n != "conv1.weight"}, folder / "short.pth")
    return folder


LACKING = {"resnet50": "dropout", "resnet18": "stride_in deform", "plain34": "shortcut", "seresnet18": "se"}
LACKING |= {"cifar_plain20": "stochastic_depth", "cifar_preact_resnet164": "shortcut"}
LACKING |= {"vgg16": "norm norm_eps", "vgg16_bn": "depth"}


@pytest.mark.parametrize(("name", "options"), LACKING.items())
def test_option_that_a_backbone_lacks_is_answered_with_those_it_has(meta, name: str, options: str) -> None:
    given: Any
    for option in options.split():
        given = {option: 1}
        with pytest.raises(ValueError, match=f"{name} has no option '{option}' .*it has out_features, .*input_stats"):
            build_backbone(name, **given)
    meta(name, **dict.fromkeys(options.split()))


def test_none_means_the_default_of_the_backbone(meta) -> None:
    backbone = meta("resnet18", out_features=None, norm=None, roi_size=None, input_stats=None)
    assert (list(backbone.specs), backbone.tail().roi_size, backbone.input_stats) == (["c4"], 14, IMAGENET_RGB)
    assert meta("vgg11", input_stats=OWN).input_stats == OWN
    assert meta("resnet50", stride_in="1x1", norm_eps=1e-3).input_stats == IMAGENET_RGB


def test_weights_from_a_file_are_loaded(files) -> None:
    expected = torchvision_state("resnet18")
    state = build_backbone("resnet18", weights=str(files / "resnet18.pth")).state_dict()
    assert set(state) == {n for n in expected if not n.startswith("fc.") and not n.endswith("num_batches_tracked")}
    torch.testing.assert_close(dict(state), {name: expected[name] for name in state}, rtol=0, atol=0)
    # deformable networks take those of plain ones and start on the grid; options may be given as the weights need them
    options = {"deform": ("c5",), "stride_in": "3x3", "norm_eps": 1e-5, "input_stats": IMAGENET_RGB}
    state = build_backbone("resnet50", weights=str(files / "resnet50.pth"), **options).state_dict()
    assert torch.equal(state["layer4.1.conv2.weight"], torchvision_state("resnet50")["layer4.1.conv2.weight"])
    assert not state["layer4.1.conv2.offset.weight"].any()


def test_a_source_brings_stats_and_stride_also_without_weights(files) -> None:
    options: Any
    for name, options in (
        ("resnet50", {"weights": "unread.pth", "load_weights": False}),
        ("resnet50", {}),
        ("resnet18", {"weights": str(files / "resnet18.pth")}),  # with one place for the stride
    ):
        backbone = build_backbone(name, weights_source="caffe", **options)
        assert backbone.input_stats == SOURCES["caffe"].input_stats
        assert backbone.get_submodule("layer2.0.conv1").stride == (2, 2)


@pytest.mark.parametrize(
    ("source", "option", "given", "needed"),
    [
        ("torchvision", "stride_in", "1x1", "'3x3'"),
        ("caffe", "stride_in", "3x3", "'1x1'"),
        ("torchvision", "norm_eps", 1e-3, "1e-05"),
        ("torchvision", "input_stats", OWN, r".*\(123.675, 116.28, 103.53\)"),
    ],
)
def test_option_against_the_source_is_refused_with_both_sides(source: str, option: str, given, needed: str) -> None:
    ours = r"InputStats\(mean=\(1.0, 2.0, 3.0\).*" if given is OWN else repr(given)
    with pytest.raises(ValueError, match=f"^backbone.{option} is {ours} but weights from '{source}' .* with {needed}"):
        build_backbone("resnet50", weights="unread.pth", weights_source=source, **{option: given})


@pytest.mark.parametrize(
    ("name", "weights", "options", "message"),
    [
        ("resnet34", "resnet18.pth", {}, r"do not fit ResNet[^$]*missing: .*layer1\.2\.conv1\.weight"),
        ("resnet18", "resnet50.pth", {}, r"unused: .*layer1\.0\.conv3[^$]*mismatched: .*layer1\.0\.conv1\.weight"),
        ("resnet18", "resnet18.pth", {"shortcut": "A"}, r"unused: 15: layer2\.0\.downsample"),
        ("plain18", "resnet18.pth", {}, r"unused: 15: layer2\.0\.downsample"),
        ("resnet50", "short.pth", {"deform": ("c5",)}, r"missing: 1: conv1\.weight"),
        ("resnet18", "absent.pth", {}, "no weights file '.*absent.pth"),
        ("resnet18", None, {"weights_source": "timm"}, "no weights_source 'timm'; known: torchvision, caffe, msra"),
        ("resnet18", "torchvision", {"weights_source": "caffe"}, "cannot come from weights_source 'caffe'"),
        ("plain18", "torchvision", {}, "no ImageNet weights for 'plain18'"),
        ("resnet51", None, {}, r"'resnet51'; did you mean 'resnet50'\? known: resnet18, .*vgg16"),
    ],
)
def test_what_does_not_fit_is_refused(files, name: str, weights: str, options, message: str) -> None:
    weights = str(files / weights) if weights and weights.endswith(".pth") else weights
    with pytest.raises(ValueError, match=message):
        build_backbone(name, weights=weights, **options)


def test_vgg_from_a_pickle_of_caffe_s(meta, tmp_path) -> None:
    shapes = [tuple(value.shape) for value in meta("vgg11", roi_size=1).state_dict().values()]
    layers = [f"conv{place}" for place in ("1_1", "2_1", "3_1", "3_2", "4_1", "4_2", "5_1", "5_2")]
    layers += ["fc6", "fc7", "fc8"]
    arrays = [np.full(shape, i, np.float32) for i, shape in enumerate([*shapes, (3, 4096), (3,)])]
    path = tmp_path / "vgg11.pkl"
    path.write_bytes(pickle.dumps(dict(zip(layers, zip(arrays[::2], arrays[1::2], strict=True), strict=True))))
    state = build_backbone("vgg11", weights=str(path), weights_source="caffe", roi_size=1).state_dict()
    assert all(value.eq(i).all() for i, value in enumerate(state.values()))
    with pytest.raises(ValueError, match="have Caffe's names"):
        build_backbone("vgg11", weights=str(path), roi_size=1)


def test_torchvision_weights_are_downloaded(monkeypatch) -> None:
    monkeypatch.setattr(registry, "download_torchvision", torchvision_state)
    state = build_backbone("resnet18", weights="torchvision", freeze_at=2).state_dict()
    assert torch.equal(state["layer4.1.conv2.weight"], torchvision_state("resnet18")["layer4.1.conv2.weight"])


def test_registered_backbone_is_built_by_name(meta, monkeypatch) -> None:
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    register("thin", partial(ResNet, 18, shortcut="A"))
    assert backbone_names()[-1] == "thin"
    assert "c3" in meta("thin", out_features=("c3",)).specs
    for action, message in (
        (partial(build_backbone, "thin", shortcut="B"), "no option 'shortcut'"),
        (partial(register, "thin", ResNet), "'thin' exists"),
    ):
        with pytest.raises(ValueError, match=message):
            action()

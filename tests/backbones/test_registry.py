"""Mirrors registry.py."""

import hashlib
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models import ResNet18_Weights, get_model

from backbones import registry as factory
from backbones.base import IMAGENET_RGB, InputStats
from backbones.registry import backbone_names, build_backbone, register
from backbones.resnet import ResNet
from backbones.weights.load import SOURCES

OWN_STATS = InputStats(mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), channel_order="bgr")
MISFITS = [
    ("stride_in", {"stride_in": "1x1"}, "torchvision", "'1x1'", "'3x3'"),
    ("stride_in", {"stride_in": "3x3"}, "caffe", "'3x3'", "'1x1'"),
    ("norm_eps", {"norm_eps": 1e-3}, "torchvision", "0.001", "1e-05"),
    ("input_stats", {"input_stats": OWN_STATS}, "torchvision", "(1.0, 2.0, 3.0)", "(123.675, 116.28, 103.53)"),
]


def torchvision_state(name: str) -> dict[str, Tensor]:
    """Names and shapes of torchvision's state dict; each entry is one number, repeated, so that its file is small."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in get_model(name, weights=None).state_dict().items()}
    return {key: torch.full(shape, 1 + i / 1000) for i, (key, shape) in enumerate(shapes.items())}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of weights by architecture."""
    paths = {name: tmp_path_factory.mktemp("weights") / f"{name}.pth" for name in ("resnet18", "resnet50")}
    for name, path in paths.items():
        torch.save(torchvision_state(name), path)
    return {name: str(path) for name, path in paths.items()}


def test_names() -> None:
    resnets = ("resnet18", "resnet34", "plain18", "plain34", "resnet50", "resnet101", "resnet152")
    vggs = tuple(f"vgg{depth}{suffix}" for depth in (11, 13, 16, 19) for suffix in ("", "_bn"))
    variants = (
        *(f"seresnet{depth}" for depth in (18, 34, 50, 101, 152)),
        *("resnet18d", "resnet50c", "resnet50d", "resnet101d", "resnext50_32x4d", "resnext101_32x8d"),
        *("resnext101_64x4d", "resnext152_32x8d", "wide_resnet50_2", "wide_resnet101_2"),
        *(f"preact_resnet{depth}" for depth in (18, 34, 50, 101, 152, 200)),
    )
    cifar = (
        *(f"cifar_resnet{depth}" for depth in (20, 32, 44, 56, 110, 1202)),
        *(f"cifar_plain{depth}" for depth in (20, 32, 44, 56, 110)),
        *(f"cifar_preact_resnet{depth}" for depth in (110, 164, 1001)),
    )
    assert set(resnets + vggs + variants + cifar) <= set(backbone_names())


def test_unknown_name_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no backbone 'resnet51'; did you mean 'resnet50'\? known: resnet18, .*vgg16"):
        build_backbone("resnet51")


def test_none_means_the_default_of_the_backbone() -> None:
    with torch.device("meta"):
        backbone = build_backbone("resnet18", out_features=None, norm=None, roi_size=None, input_stats=None)
    assert list(backbone.specs) == ["c4"]
    assert backbone.tail().roi_size == 14


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("resnet50", "dropout"),
        ("resnet18", "stride_in"),
        ("resnet18", "deform"),
        ("plain34", "shortcut"),
        ("cifar_plain20", "stochastic_depth"),
        ("cifar_preact_resnet164", "shortcut"),
        ("seresnet18", "se"),
        ("vgg16", "norm"),
        ("vgg16", "norm_eps"),
        ("vgg16_bn", "depth"),
    ],
)
def test_option_that_a_backbone_lacks_is_answered_with_those_it_has(name: str, option: str) -> None:
    given: dict[str, Any] = {option: 1}
    with pytest.raises(ValueError, match=f"{name} has no option '{option}' .*it has out_features, .*input_stats"):
        build_backbone(name, **given)
    with torch.device("meta"):
        unset: dict[str, Any] = dict.fromkeys(given)
        build_backbone(name, **unset)


def test_input_stats_default_to_imagenet_and_can_be_given_without_weights() -> None:
    with torch.device("meta"):
        assert build_backbone("resnet18").input_stats == IMAGENET_RGB
        assert build_backbone("vgg11", input_stats=OWN_STATS).input_stats == OWN_STATS


def test_weights_from_a_file_are_loaded(files: dict[str, str]) -> None:
    expected = torchvision_state("resnet18")
    state = build_backbone("resnet18", weights=files["resnet18"]).state_dict()
    assert set(state) == {n for n in expected if not n.startswith("fc.") and not n.endswith("num_batches_tracked")}
    for name, value in state.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_weights_bring_stats_and_stride_of_their_source(files: dict[str, str]) -> None:
    backbone = build_backbone("resnet50", weights=files["resnet50"], weights_source="caffe")
    assert backbone.input_stats == SOURCES["caffe"].input_stats
    assert backbone.get_submodule("layer2.0.conv1").stride == (2, 2)


def test_basic_blocks_take_weights_of_either_stride(files: dict[str, str]) -> None:
    backbone = build_backbone("resnet18", weights=files["resnet18"], weights_source="caffe", norm_eps=1e-5)
    assert backbone.input_stats.channel_order == "bgr"
    assert backbone.get_submodule("layer2.0.conv1").stride == (2, 2)


@pytest.mark.parametrize(("key", "options", "source", "ours", "theirs"), MISFITS)
def test_option_against_the_source_is_refused_with_both_sides(
    key: str, options: dict[str, Any], source: str, ours: str, theirs: str
) -> None:
    with pytest.raises(ValueError, match=f"^backbone.{key} is ") as error:
        build_backbone("resnet50", weights="unread.pth", weights_source=source, **options)
    before, _, after = str(error.value).partition(f" but weights from '{source}' were trained with ")
    assert ours in before
    assert theirs in after


def test_weights_that_are_not_loaded_still_bring_what_they_need() -> None:
    with torch.device("meta"):
        backbone = build_backbone("resnet50", weights="unread.pth", weights_source="caffe", load_weights=False)
    assert backbone.input_stats == SOURCES["caffe"].input_stats
    assert backbone.get_submodule("layer2.0.conv1").stride == (2, 2)
    with pytest.raises(ValueError, match="no weights file 'unread"):
        build_backbone("resnet18", weights="unread.pth")


def test_option_equal_to_the_source_is_accepted(files: dict[str, str]) -> None:
    backbone = build_backbone(
        "resnet50", weights=files["resnet50"], stride_in="3x3", norm_eps=1e-5, input_stats=IMAGENET_RGB
    )
    assert backbone.input_stats == IMAGENET_RGB


@pytest.mark.parametrize(
    ("name", "file", "listed"),
    [
        ("resnet34", "resnet18", ["missing: ", "layer1.2.conv1.weight"]),
        ("resnet18", "resnet50", ["unused: ", "layer1.0.conv3.weight", "mismatched: ", "layer1.0.conv1.weight"]),
    ],
)
def test_weights_of_another_architecture_are_refused(
    files: dict[str, str], name: str, file: str, listed: list[str]
) -> None:
    with pytest.raises(ValueError, match=f"{file}.pth' do not fit ResNet") as error:
        build_backbone(name, weights=files[file])
    assert all(text in str(error.value) for text in listed)


def test_deformable_networks_take_weights_of_plain_ones_and_start_on_the_grid(
    files: dict[str, str], tmp_path: Path
) -> None:
    state = build_backbone("resnet50", weights=files["resnet50"], deform=("c5",)).state_dict()
    assert torch.equal(state["layer4.1.conv2.weight"], torchvision_state("resnet50")["layer4.1.conv2.weight"])
    assert not state["layer4.1.conv2.offset.weight"].any()
    short = {name: value for name, value in torchvision_state("resnet50").items() if name != "conv1.weight"}
    torch.save(short, tmp_path / "short.pth")
    with pytest.raises(ValueError, match=r"missing: 1: conv1\.weight"):
        build_backbone("resnet50", weights=str(tmp_path / "short.pth"), deform=("c5",))


def test_other_shortcuts_refuse_the_projections_they_lack(files: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"unused: 15: layer2\.0\.downsample"):
        build_backbone("resnet18", weights=files["resnet18"], shortcut="A")


def test_vgg_from_a_pickle_of_caffe_s(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = [tuple(value.shape) for value in build_backbone("vgg11", roi_size=1).state_dict().values()]
    convolutions = ["conv1_1", "conv2_1", "conv3_1", "conv3_2", "conv4_1", "conv4_2", "conv5_1", "conv5_2"]
    arrays = [np.full(shape, i, np.float32) for i, shape in enumerate([*shapes, (3, 4096), (3,)])]
    pairs = zip(arrays[::2], arrays[1::2], strict=True)
    path = tmp_path / "vgg11.pkl"
    path.write_bytes(pickle.dumps(dict(zip([*convolutions, "fc6", "fc7", "fc8"], pairs, strict=True)), protocol=4))
    state = build_backbone("vgg11", weights=str(path), weights_source="caffe", roi_size=1).state_dict()
    assert all(value.eq(i).all() for i, value in enumerate(state.values()))
    with pytest.raises(ValueError, match="have Caffe's names"):
        build_backbone("vgg11", weights=str(path), roi_size=1)


def test_source_without_weights_builds_what_its_weights_need() -> None:
    with torch.device("meta"):
        backbone = build_backbone("resnet50", weights_source="msra")
        unbound = build_backbone("resnet50", stride_in="1x1", norm_eps=1e-3)
    assert backbone.input_stats == SOURCES["msra"].input_stats
    assert backbone.get_submodule("layer2.0.conv1").stride == (2, 2)
    assert unbound.input_stats == IMAGENET_RGB
    with pytest.raises(ValueError, match=r"backbone\.stride_in is '3x3' but weights from 'msra'"):
        build_backbone("resnet50", weights_source="msra", stride_in="3x3")


def test_unknown_source_lists_the_known() -> None:
    with pytest.raises(ValueError, match="no weights_source 'timm'; known: torchvision, caffe, msra"):
        build_backbone("resnet18", weights_source="timm")


def test_torchvision_weights_have_one_source() -> None:
    with pytest.raises(ValueError, match="weights 'torchvision' cannot come from weights_source 'caffe'"):
        build_backbone("resnet18", weights="torchvision", weights_source="caffe")


def test_plain_networks_have_no_weights_at_torchvision_and_refuse_those_of_a_residual_network(
    files: dict[str, str],
) -> None:
    with pytest.raises(ValueError, match="torchvision has no ImageNet weights for 'plain18'; give a file's path"):
        build_backbone("plain18", weights="torchvision")
    with pytest.raises(ValueError, match=r"unused: 15: layer2\.0\.downsample"):
        build_backbone("plain18", weights=files["resnet18"])


def test_torchvision_weights_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = torchvision_state("resnet18")
    draft = tmp_path / "draft.pth"
    torch.save(expected, draft)
    digest = hashlib.sha256(draft.read_bytes()).hexdigest()[:8]
    path = draft.rename(tmp_path / f"resnet18-{digest}.pth")
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", path.as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    state = build_backbone("resnet18", weights="torchvision", freeze_at=2).state_dict()
    torch.testing.assert_close(state["layer4.1.conv2.weight"], expected["layer4.1.conv2.weight"], rtol=0, atol=0)


def test_registered_backbone_is_built_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory, "_BUILDERS", dict(factory._BUILDERS))
    register("thin", partial(ResNet, 18, shortcut="A"))
    assert backbone_names()[-1] == "thin"
    with torch.device("meta"):
        assert "c3" in build_backbone("thin", out_features=("c3",)).specs
    with pytest.raises(ValueError, match="no option 'shortcut'"):
        build_backbone("thin", shortcut="B")
    with pytest.raises(ValueError, match="'thin' exists"):
        register("thin", ResNet)

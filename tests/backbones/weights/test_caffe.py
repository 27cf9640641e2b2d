"""Mirrors caffe.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model

from backbones.registry import build_backbone
from backbones.weights.caffe import NORM_EPS, has_caffe_names, rename_caffe
from backbones.weights.load import SOURCES

CAFFE_LAYERS = {"downsample.0": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
NORMS = {"bn1": "conv1", "bn2": "conv2", "bn3": "conv3", "downsample.1": "downsample.0"}


def caffe_place(layer: str) -> str:
    """Caffe's name of a convolution that torchvision calls ``layer``."""
    if layer == "conv1":
        return "conv1"
    stage, block, inner = layer.removeprefix("layer").split(".", maxsplit=2)
    return f"res{int(stage) + 1}_{block}_{CAFFE_LAYERS[inner]}"


def convolution_of(norm: str) -> str:
    prefix, _, last = norm.rpartition(".")
    if last == "1":
        return norm.removesuffix("1") + "0"
    return f"{prefix}.{NORMS[last]}".lstrip(".")


def resnet_pickle(state: dict[str, Tensor], *, folded: bool) -> dict[str, Tensor]:
    """torchvision's ``state`` of a ResNet as pickles of MSRA's have it: with statistics, or folded into a scale."""
    caffe: dict[str, Tensor] = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if layer == "fc":
            caffe[f"fc1000_{kind[0]}"] = value
        elif value.ndim == 4:
            caffe[f"{caffe_place(layer)}_w"] = value
        elif kind == "weight":
            norm = f"{caffe_place(convolution_of(layer))}_bn".replace("conv1", "res_conv1")
            bias, mean, var = (state[f"{layer}.{part}"] for part in ("bias", "running_mean", "running_var"))
            if folded:
                scale = value / (var + NORM_EPS).sqrt()
                caffe |= {f"{norm}_s": scale, f"{norm}_b": bias - mean * scale}
            else:
                caffe |= {f"{norm}_gamma": value, f"{norm}_beta": bias}
                caffe |= {f"{norm}_running_mean": mean, f"{norm}_running_var": var}
    return caffe


@pytest.fixture(scope="module")
def resnet() -> dict[str, Tensor]:
    """torchvision's state of a ResNet-50 with statistics as training leaves them."""
    torch.manual_seed(0)
    state = dict(get_model("resnet50", weights=None).state_dict())
    for name, value in state.items():
        if "running_mean" in name or name.endswith(".bias"):
            state[name] = 0.1 * torch.randn_like(value)
        elif "running_var" in name:
            state[name] = 0.5 + torch.rand_like(value)
    return {name: value for name, value in state.items() if "num_batches" not in name}


def test_statistics_of_a_resnet_get_torchvision_s_names(resnet: dict[str, Tensor]) -> None:
    pickled = resnet_pickle(resnet, folded=False)
    assert {"conv1_w", "res_conv1_bn_gamma", "res2_0_branch1_bn_running_var", "res4_5_branch2c_w"} <= set(pickled)
    renamed = rename_caffe(pickled)
    assert set(renamed) == set(resnet)
    for name, value in renamed.items():
        assert value is resnet[name], name


@pytest.mark.parametrize("biased", [False, True])
@torch.inference_mode()
def test_a_folded_resnet_is_the_same_network(resnet: dict[str, Tensor], tmp_path: Path, biased: bool) -> None:
    """Also when convolutions have a bias, as MSRA's ResNet-50 in its first layer."""
    pickled = resnet_pickle(resnet, folded=True)
    if biased:
        for name in [name for name in pickled if name.startswith(("conv1", "res")) and name.endswith("_w")]:
            norm = f"{name.removesuffix('_w')}_bn".replace("conv1", "res_conv1")
            bias = torch.randn(len(pickled[name]))
            pickled[name.replace("_w", "_b")] = bias
            pickled[f"{norm}_b"] = pickled[f"{norm}_b"] - bias * pickled[f"{norm}_s"]
    torch.save(resnet, tmp_path / "a.pth")
    own = rename_caffe(pickled)
    assert set(own) == set(resnet)
    expected = build_backbone("resnet50", weights=str(tmp_path / "a.pth"), weights_source="msra", out_features=("c5",))
    found = build_backbone("resnet50", weights_source="msra", out_features=("c5",))
    found.load_state_dict({name: value for name, value in own.items() if not name.startswith("fc.")})
    images = 50 * torch.randn(1, 3, 64, 64)
    wanted = expected(images)["c5"]
    torch.testing.assert_close(found(images)["c5"] / wanted.max(), wanted / wanted.max(), rtol=0, atol=1e-5)


def test_vgg_gets_torchvision_s_places() -> None:
    for depth in (11, 13, 16, 19):
        with torch.device("meta"):
            theirs = get_model(f"vgg{depth}", weights=None).state_dict()
        shapes = iter([value for name, value in theirs.items() if name.startswith("features.")])
        counts = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}[depth]
        places = [f"conv{stage}_{n}" for stage, count in enumerate(counts, start=1) for n in range(1, count + 1)]
        caffe = {f"{place}_{kind}": next(shapes) for place in places for kind in "wb"}
        renamed = rename_caffe(caffe)
        assert list(renamed) == [name for name in theirs if name.startswith("features.")]
        assert [value.shape for value in renamed.values()] == [theirs[name].shape for name in renamed]


def test_linear_layers_and_unknown_names() -> None:
    caffe = dict.fromkeys(["conv1_1_w", "fc6_w", "fc7_b", "fc8_w", "fc8_b", "conv5_4_gn_s", "res2_0_branch2d_w"])
    renamed = rename_caffe({name: torch.zeros(1) for name in caffe})
    assert list(renamed) == [
        "features.0.weight", "fc6.weight", "fc7.bias", "fc.weight", "fc.bias", "conv5_4_gn_s", "res2_0_branch2d_w",
    ]  # fmt: skip


def test_caffe_s_names_are_recognised() -> None:
    assert has_caffe_names({"conv1_w": torch.zeros(1)})
    assert has_caffe_names({"conv1_1_w": torch.zeros(1)})
    assert not has_caffe_names({"conv1.weight": torch.zeros(1)})
    assert not has_caffe_names({})


def test_sources_of_caffe_s_networks() -> None:
    for name, mean in (("caffe", (102.9801, 115.9465, 122.7717)), ("msra", (103.53, 116.28, 123.675))):
        source = SOURCES[name]
        assert (source.input_stats.mean, source.input_stats.std) == (mean, (1.0, 1.0, 1.0))
        assert (source.input_stats.channel_order, source.stride_in, source.norm_eps) == ("bgr", "1x1", 1e-5)


def test_tensors_stay_as_they_were(resnet: dict[str, Tensor]) -> None:
    pickled = resnet_pickle(resnet, folded=True) | {"conv1_b": torch.ones(64)}
    before = {name: value.clone() for name, value in pickled.items()}
    rename_caffe(pickled)
    assert all(torch.equal(pickled[name], before[name]) for name in before)

"""Mirrors caffe.py."""

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model

from backbones.registry import build_backbone
from backbones.weights.caffe import NORM_EPS, has_caffe_names, rename_caffe

CAFFE_LAYERS = {"downsample.0": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
NORMS = {"bn1": "conv1", "bn2": "conv2", "bn3": "conv3", "downsample.1": "downsample.0"}
State = dict[str, Tensor]


def caffe_place(layer: str) -> str:
    """Caffe's name of a convolution that torchvision calls ``layer``, or of that which this norm follows."""
    if layer in ("conv1", "bn1"):
        return "conv1"
    stage, block, inner = layer.removeprefix("layer").split(".", maxsplit=2)
    return f"res{int(stage) + 1}_{block}_{CAFFE_LAYERS[NORMS.get(inner, inner)]}"


def resnet_pickle(state: State, *, folded: bool) -> State:
    """torchvision's ``state`` of a ResNet as pickles of MSRA's have it: with statistics, or folded into a scale."""
    caffe: State = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if layer == "fc":
            caffe[f"fc1000_{kind[0]}"] = value
        elif value.ndim == 4:
            caffe[f"{caffe_place(layer)}_w"] = value
        elif kind == "weight":
            norm = f"{caffe_place(layer)}_bn".replace("conv1", "res_conv1")
            bias, mean, var = (state[f"{layer}.{part}"] for part in ("bias", "running_mean", "running_var"))
            if folded:
                scale = value / (var + NORM_EPS).sqrt()
                caffe |= {f"{norm}_s": scale, f"{norm}_b": bias - mean * scale}
            else:
                caffe |= {f"{norm}_gamma": value, f"{norm}_beta": bias}
                caffe |= {f"{norm}_running_mean": mean, f"{norm}_running_var": var}
    return caffe


@pytest.fixture(scope="module")
def resnet() -> State:
    """torchvision's state of a ResNet-50 with statistics as training leaves them."""
    torch.manual_seed(0)
    state = {n: v for n, v in get_model("resnet50", weights=None).state_dict().items() if "num_batches" not in n}
    for name, value in state.items():
        if "running_mean" in name or name.endswith(".bias"):
            state[name] = 0.1 * torch.randn_like(value)
        elif "running_var" in name:
            state[name] = 0.5 + torch.rand_like(value)
    return state


def test_statistics_of_a_resnet_get_torchvision_s_names(resnet: State) -> None:
    pickled = resnet_pickle(resnet, folded=False)
    assert {"conv1_w", "res_conv1_bn_gamma", "res2_0_branch1_bn_running_var", "res4_5_branch2c_w"} <= set(pickled)
    renamed = rename_caffe(pickled)
    assert set(renamed) == set(resnet)
    assert all(value is resnet[name] for name, value in renamed.items())


@pytest.mark.parametrize("biased", [False, True])
@torch.inference_mode()
def test_a_folded_resnet_is_the_same_network(resnet: State, tmp_path, biased: bool) -> None:
    """Also when convolutions have a bias, as MSRA's ResNet-50 in its first layer."""
    pickled = resnet_pickle(resnet, folded=True)
    if biased:
        for name in [name for name in pickled if name.startswith(("conv1", "res")) and name.endswith("_w")]:
            norm = f"{name.removesuffix('_w')}_bn".replace("conv1", "res_conv1")
            pickled[name.replace("_w", "_b")] = bias = torch.randn(len(pickled[name]))
            pickled[f"{norm}_b"] = pickled[f"{norm}_b"] - bias * pickled[f"{norm}_s"]
    torch.save(resnet, tmp_path / "a.pth")
    before = {name: value.clone() for name, value in pickled.items()}
    own = rename_caffe(pickled)
    assert all(torch.equal(pickled[name], before[name]) for name in before)
    assert set(own) == set(resnet)
    expected = build_backbone("resnet50", weights=str(tmp_path / "a.pth"), weights_source="msra", out_features=("c5",))
    found = build_backbone("resnet50", weights_source="msra", out_features=("c5",))
    found.load_state_dict({name: value for name, value in own.items() if not name.startswith("fc.")})
    images = 50 * torch.randn(1, 3, 64, 64)
    wanted = expected(images)["c5"]
    torch.testing.assert_close(found(images)["c5"] / wanted.max(), wanted / wanted.max(), rtol=0, atol=1e-5)


COUNTS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


@pytest.mark.parametrize("depth", COUNTS)
def test_vgg_gets_torchvision_s_places(meta, depth: int) -> None:
    theirs = meta(get_model, f"vgg{depth}", weights=None).state_dict()
    layers = {name: value for name, value in theirs.items() if name.startswith("features.")}
    places = [f"conv{stage}_{n}" for stage, count in enumerate(COUNTS[depth], 1) for n in range(1, count + 1)]
    names = [f"{place}_{kind}" for place in places for kind in "wb"]
    assert list(rename_caffe(dict(zip(names, layers.values(), strict=True)))) == list(layers)


def test_linear_layers_and_unknown_names() -> None:
    names = ["conv1_1_w", "fc6_w", "fc7_b", "fc8_w", "fc8_b", "conv5_4_gn_s", "res2_0_branch2d_w"]
    renamed = rename_caffe({name: torch.zeros(1) for name in names})
    ours = ["features.0.weight", "fc6.weight", "fc7.bias", "fc.weight", "fc.bias", "conv5_4_gn_s", "res2_0_branch2d_w"]
    assert list(renamed) == ours
    assert [has_caffe_names({name: torch.zeros(1)}) for name in ("conv1_w", "conv1_1_w", "conv1.weight")] == [1, 1, 0]
    assert not has_caffe_names({})

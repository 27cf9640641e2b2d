"""Mirrors timm.py and torchvision.py of backbones/adapters, and names with a prefix in registry.py."""

import sys

import pytest
import torch
from torchvision.models import GoogLeNet_Weights, get_model
from torchvision.models.feature_extraction import create_feature_extractor

from backbones.base import InputStats
from backbones.registry import build_backbone, pyramid_features

timm = pytest.importorskip("timm")

GOOGLENET = "torchvision:googlenet"


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "densenet121"])
def test_features_equal_those_of_timm(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    theirs = timm.create_model(name, features_only=True, out_indices=(-4, -3, -2, -1)).eval()
    values = list(model.state_dict().values())
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=False)))  # other names, the same order
    ours = build_backbone(f"timm:{name}", weights=str(tmp_path / "weights.pth"), out_features=pyramid_features("timm:"))
    images = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close([*ours.eval()(images).values()], [*theirs(images)], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_googlenet_equals_torchvision_with_its_own_preprocessing(tmp_path) -> None:
    torch.manual_seed(0)
    theirs = get_model("googlenet", weights=None, aux_logits=True, transform_input=True, init_weights=False).eval()
    torch.save(theirs.state_dict(), tmp_path / "googlenet.pth")
    ours = build_backbone(GOOGLENET, weights=str(tmp_path / "googlenet.pth"), out_features=("c3", "c4", "c5")).eval()
    pixels, preset = torch.rand(1, 3, 64, 96) * 255, GoogLeNet_Weights.IMAGENET1K_V1.transforms()

    def normalised(pixels: torch.Tensor, mean, std) -> torch.Tensor:
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    nodes = {"inception3b": "c3", "inception4e": "c4", "inception5b": "c5"}
    expected = create_feature_extractor(theirs, nodes, suppress_diff_warning=True)(
        normalised(pixels / 255, preset.mean, preset.std)
    )
    found = ours(normalised(pixels, ours.input_stats.mean, ours.input_stats.std))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_stages_go_by_stride_and_stats_are_those_of_the_weights_unless_given(meta) -> None:
    specs = meta("timm:vgg11", out_features=("c2", "c4")).specs
    assert {name: (spec.channels, spec.stride) for name, spec in specs.items()} == {"c2": (256, 4), "c4": (512, 16)}
    backbone = meta(GOOGLENET, freeze_at=1)
    assert [n for n, p in backbone.named_parameters() if not p.requires_grad] == ["trunk.conv1.conv.weight"]
    assert backbone.input_stats.mean == (127.5, 127.5, 127.5)
    stats = meta("timm:resnet18", weights="unread.pth", load_weights=False).input_stats
    assert stats.mean == pytest.approx((123.675, 116.28, 103.53))
    assert (stats.std, stats.channel_order) == (pytest.approx((58.395, 57.12, 57.375)), "rgb")
    assert meta("timm:mobilenetv3_large_100.miil_in21k").input_stats.mean == (0, 0, 0)
    given = InputStats(mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), channel_order="bgr")
    assert [meta(name, input_stats=given).input_stats for name in ("timm:resnet18", GOOGLENET)] == [given, given]


def test_published_weights_are_asked_for_by_name_and_tag(meta, monkeypatch) -> None:
    torch.manual_seed(0)
    model, asked = timm.create_model("resnet18"), []

    def create(name: str, *, pretrained: bool = False) -> torch.nn.Module:
        asked.append((name, pretrained))
        if pretrained and len(asked) > 2:
            raise OSError("no network")
        return model if pretrained else timm.models.create_model(name)

    monkeypatch.setattr(timm, "create_model", create)
    state = build_backbone("timm:resnet18.a1_in1k", weights="timm").state_dict()
    assert asked == [("resnet18.a1_in1k", False), ("resnet18.a1_in1k", True)]
    torch.testing.assert_close(state["trunk.conv1.weight"], model.conv1.weight, rtol=0, atol=0)
    with pytest.raises(ValueError, match="cannot get timm's weights of 'resnet18': no network; download the file"):
        build_backbone("timm:resnet18", weights="timm")
    state = meta(get_model, "googlenet", weights=None, init_weights=False).state_dict()
    asked.clear()
    monkeypatch.setattr("backbones.adapters.torchvision.download_torchvision", lambda name: asked.append(name) or state)
    meta(GOOGLENET, weights="torchvision")
    assert asked == ["googlenet"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm:resnet18", {"stride_in": "1x1"}, "'stride_in' .*has out_features, norm, freeze_at, input_stats"),
        ("timm:resnet18", {"weights": "torchvision"}, "no weights file 'torchvision'"),
        ("timm:resnet18", {"weights": "a.pth", "weights_source": "caffe"}, "weights_source 'caffe' .* timm:resnet18"),
        ("timm:convnext_atto", {"freeze_at": 1}, "freeze_at must be one of 0, 2, 3, 4, 5 for .*, got 1"),
        ("timm:densenet12", {}, "'densenet12'; did you mean 'densenet121'"),
        ("timm:???", {}, r"no model '\?\?\?'; timm.list_models\(\) lists them"),
        ("timm:densenet121.mine", {}, "cannot build 'densenet121.mine': .*densenet121.ra_in1k"),
        ("timm:vit_tiny_patch16_224", {}, "images of 224 x 224 pixels only; choose a convolutional network"),
        ("timm:crossvit_9_240", {}, "images of 240 x 240 pixels only"),
        ("timm:hrnet_w18_small", {}, "hrnet_w18_small cannot be a backbone: c4 of an image of 48 x 80 pixels is"),
        ("torchvision:resnet18", {}, "known: torchvision:googlenet; .*timm:resnet18"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused_with_the_reason(meta, name: str, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        meta(name, **options)


def test_weights_of_another_network_or_without_timm(monkeypatch, tmp_path) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match=r"resnet18.pth' do not fit ConvNeXt"):
        build_backbone("timm:convnext_atto", weights=str(tmp_path / "resnet18.pth"))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'resdet\[timm\]'"):
        build_backbone("timm:resnet18")

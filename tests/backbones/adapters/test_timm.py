"""Mirrors timm_adapter.py; names with a prefix in factory.py too."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from backbones.base import InputStats
from backbones.registry import build_backbone, pyramid_features

timm = pytest.importorskip("timm")

STATS = InputStats(mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), channel_order="bgr")


def build_meta(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return build_backbone(name, **options)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "densenet121"])
def test_features_equal_those_of_timm(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    theirs = timm.create_model(name, features_only=True, out_indices=(-4, -3, -2, -1)).eval()
    values = list(model.state_dict().values())
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=False)))  # other names, the same order
    ours = build_backbone(f"timm:{name}", weights=str(tmp_path / "weights.pth"), out_features=pyramid_features("timm:"))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for feature, expected in zip(ours.eval()(images).values(), theirs(images), strict=True):
            torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4)


def test_stages_go_by_stride() -> None:
    backbone = build_meta("timm:vgg11", out_features=("c2", "c4"))
    assert {name: (spec.channels, spec.stride) for name, spec in backbone.specs.items()} == {
        "c2": (256, 4),
        "c4": (512, 16),
    }


def test_input_stats_are_those_of_the_weights_unless_given() -> None:
    stats = build_meta("timm:resnet18").input_stats
    assert stats.mean == pytest.approx((123.675, 116.28, 103.53))
    assert stats.std == pytest.approx((58.395, 57.12, 57.375))
    assert stats.channel_order == "rgb"
    assert build_meta("timm:mobilenetv3_large_100.miil_in21k").input_stats.mean == (0, 0, 0)
    assert build_meta("timm:resnet18", input_stats=STATS).input_stats == STATS


def test_timm_weights_are_asked_for_by_name_and_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18")
    asked = []

    def create(name: str, *, pretrained: bool = False) -> Any:
        asked.append((name, pretrained))
        return model if pretrained else timm.models.create_model(name)

    monkeypatch.setattr(timm, "create_model", create)
    backbone = build_backbone("timm:resnet18.a1_in1k", weights="timm")
    assert asked == [("resnet18.a1_in1k", False), ("resnet18.a1_in1k", True)]
    torch.testing.assert_close(backbone.state_dict()["trunk.conv1.weight"], model.conv1.weight, rtol=0, atol=0)


def test_weights_that_cannot_be_had_or_do_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match=r"resnet18.pth' do not fit ConvNeXt"):
        build_backbone("timm:convnext_atto", weights=str(tmp_path / "resnet18.pth"))
    with pytest.raises(ValueError, match="no weights file 'torchvision'"):
        build_backbone("timm:resnet18", weights="torchvision")

    def create(name: str, *, pretrained: bool = False) -> Any:
        if pretrained:
            raise OSError("no network")
        return timm.models.create_model(name)

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(ValueError, match="cannot get timm's weights of 'resnet18': no network; download the file"):
        build_backbone("timm:resnet18", weights="timm")


def test_weights_are_left_for_a_whole_detector() -> None:
    build_meta("timm:resnet18", weights="unread.pth", load_weights=False)


@pytest.mark.parametrize("option", ["stride_in", "shortcut", "roi_size", "norm_eps", "dropout", "tail_stride"])
def test_options_of_the_table_mean_nothing(option: str) -> None:
    message = f"timm:resnet18 has no option '{option}' .*it has out_features, norm, freeze_at, input_stats"
    with pytest.raises(ValueError, match=message):
        build_meta("timm:resnet18", **{option: 1})


def test_source_of_the_table_means_nothing() -> None:
    with pytest.raises(ValueError, match="weights_source 'caffe' is for networks of the table; timm:resnet18 takes"):
        build_backbone("timm:resnet18", weights="resnet18.pth", weights_source="caffe")


def test_only_other_strides_of_a_frozen_stage_are_left() -> None:
    with pytest.raises(ValueError, match="freeze_at must be one of 0, 2, 3, 4, 5 for timm:convnext_atto, got 1"):
        build_meta("timm:convnext_atto", freeze_at=1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("densenet12", r"has no model 'densenet12'; did you mean 'densenet121'"),
        ("???", r"has no model '\?\?\?'; timm.list_models\(\) lists them"),
        ("densenet121.mine", r"cannot build 'densenet121.mine': .*Known: densenet121.ra_in1k"),
        ("vit_tiny_patch16_224", "takes images of 224 x 224 pixels only; choose a convolutional network"),
        ("crossvit_9_240", "takes images of 240 x 240 pixels only"),
        ("hrnet_w18_small", "timm:hrnet_w18_small cannot be a backbone: c4 of an image of 48 x 80 pixels is"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_meta(f"timm:{name}")


def test_without_timm_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"timm:resnet18 needs the package timm; pip install 'resdet\[timm\]'"):
        build_backbone("timm:resnet18")

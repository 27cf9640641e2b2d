"""Mirrors torchvision_adapter.py."""

from pathlib import Path

import pytest
import torch
from torchvision.models import GoogLeNet_Weights, get_model
from torchvision.models.feature_extraction import create_feature_extractor

from backbones.adapters.fx import TracedBackbone
from backbones.base import InputStats
from backbones.registry import build_backbone

NAME = "torchvision:googlenet"


def test_googlenet_equals_torchvision_with_its_own_preprocessing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = get_model("googlenet", weights=None, aux_logits=True, transform_input=True, init_weights=False).eval()
    torch.save(theirs.state_dict(), tmp_path / "googlenet.pth")
    ours = build_backbone(NAME, weights=str(tmp_path / "googlenet.pth"), out_features=("c3", "c4", "c5")).eval()
    pixels = torch.rand(1, 3, 64, 96) * 255
    preset = GoogLeNet_Weights.IMAGENET1K_V1.transforms()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std))
    nodes = {"inception3b": "c3", "inception4e": "c4", "inception5b": "c5"}
    stats = ours.input_stats
    normalised = (pixels - torch.tensor(stats.mean).view(3, 1, 1)) / torch.tensor(stats.std).view(3, 1, 1)
    with torch.no_grad():
        expected = create_feature_extractor(theirs, nodes, suppress_diff_warning=True)((pixels / 255 - mean) / std)
        torch.testing.assert_close(ours(normalised), expected, rtol=1e-4, atol=1e-4)


def test_stats_can_be_given() -> None:
    stats = InputStats(mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), channel_order="bgr")
    with torch.device("meta"):
        assert build_backbone(NAME, input_stats=stats).input_stats == stats
        assert build_backbone(NAME).input_stats.mean == (127.5, 127.5, 127.5)


def test_first_stage_can_be_frozen() -> None:
    with torch.device("meta"):
        backbone = build_backbone(NAME, freeze_at=1)
    frozen = [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]
    assert frozen == ["trunk.conv1.conv.weight"]


def test_torchvision_weights_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        state = get_model("googlenet", weights=None, init_weights=False).state_dict()
    asked = []
    monkeypatch.setattr("backbones.adapters.torchvision.download_torchvision", lambda name: asked.append(name) or state)
    with torch.device("meta"):
        backbone = build_backbone(NAME, weights="torchvision")
    assert isinstance(backbone, TracedBackbone)
    assert asked == ["googlenet"]


def test_others_are_refused_with_timm_as_the_way_out() -> None:
    with pytest.raises(
        ValueError, match=r"no torchvision:resnet18 here; known: torchvision:googlenet; .*timm:resnet18"
    ):
        build_backbone("torchvision:resnet18")

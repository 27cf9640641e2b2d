"""Mirrors fx.py: the contract of backbones that come from other libraries, and what is done to their graphs.

Most checks run on torch's "meta" device, where shapes and gradients flow but no values are computed.
"""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.feature_extraction import create_feature_extractor

from backbones.adapters.fx import Stage, TracedBackbone, pad_borders
from backbones.base import IMAGENET_RGB
from backbones.fpn import FPN
from backbones.norm import FrozenBatchNorm
from backbones.registry import build_backbone
from backbones.weights.load import LoadReport

STAGES = ("c2", "c3", "c4", "c5")
NAMES = ("densenet121", "tf_efficientnet_lite0", "convnext_atto", "res2net50_14w_8s", "legacy_xception", "inception_v3")
NAMES = (*(f"timm:{name}" for name in NAMES), "torchvision:googlenet")


class Classifier(nn.Module):
    """Three layers of stride 4, 8 and 16 and a linear one."""

    def __init__(self, *layers: nn.Module, fixed_size: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.third = layers
        self.fc, self.fixed_size = nn.Linear(4, 10), fixed_size

    def forward(self, x: Tensor) -> Tensor:
        if self.fixed_size:
            torch._assert(x.shape[-1] == 224, "images must be 224 wide")
        return self.fc(self.third(self.second(self.first(x))).mean((2, 3)))


class Small(TracedBackbone):
    """A ``Classifier`` as a backbone."""

    def __init__(self, model: nn.Module, **options) -> None:
        modules = {"c2": Stage("first", 4), "c3": Stage("second", 4), "c4": Stage("third", 4)}
        defaults: dict[str, Any] = {"out_features": ("c2", "c3", "c4"), "norm": None, "freeze_at": 0, "stages": modules}
        super().__init__(model, **{"name": "small", "input_stats": IMAGENET_RGB, **defaults, **options})

    def load_weights(self, weights: str) -> LoadReport:
        return self.load(torch.load(weights, weights_only=True), source=weights)


def conv(in_channels: int, kernel_size: int, stride: int, padding: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, 4, kernel_size, stride, padding), nn.BatchNorm2d(4))


def exact(last_stride: int = 2, **options) -> Classifier:
    """Every layer rounds up."""
    return Classifier(conv(3, 5, 4, 2), conv(4, 3, 2, 1), conv(4, 3, last_stride, 1), **options)


@pytest.mark.parametrize("name", NAMES)
def test_the_contract_of_backbones_holds(meta, name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    whole, backbone = meta(name, out_features=STAGES), meta(name, freeze_at=2)
    for size in ((65, 97), (1, 31)):
        features = whole(torch.zeros(2, 3, *size, device="meta"))
        assert list(features) == list(whole.specs) == list(STAGES)
        for feature, spec in zip(features.values(), whole.specs.values(), strict=True):
            assert feature.shape == (2, spec.channels, *(math.ceil(side / spec.stride) for side in size))
    with pytest.raises(ValueError, match=f"^{name} has no tail; set box.head to fc, or classification.network to spp$"):
        whole.tail()
    copied = deepcopy(whole)
    copied.load_state_dict(whole.state_dict())
    with torch.device("meta"):
        assert FPN(copied, channels=8)(torch.zeros(1, 3, 64, 96))["p3"].shape == (1, 8, 8, 12)
    # the default is one map of stride 16 of layers that learn unless frozen
    assert backbone.specs == {"c4": whole.specs["c4"]}
    assert whole.specs["c4"].stride == 16
    assert set(backbone.state_dict()) < set(whole.state_dict())
    backbone(torch.zeros(1, 3, 64, 64, device="meta"))["c4"].sum().backward()
    parameters = list(backbone.parameters())
    assert [p.grad is not None for p in parameters] == [p.requires_grad for p in parameters]
    assert len({p.requires_grad for p in parameters}) == 2


def test_maps_are_those_of_the_layers_where_these_are_exact_and_survive_a_round_trip() -> None:
    torch.manual_seed(0)
    model, images = exact(), torch.randn(1, 3, 37, 50)
    source, target = Small(model, norm="bn").eval(), Small(exact(), norm="bn").eval()
    expected = model.eval().third(model.second(model.first(images)))
    torch.testing.assert_close(source(images)["c4"], expected, rtol=0, atol=0)
    assert not torch.equal(target(images)["c4"], expected)
    target.load_state_dict(source.state_dict())
    torch.testing.assert_close(target(images), source(images), rtol=0, atol=0)


def test_layers_that_round_down_see_zeros_beyond_the_image_and_unpadded_ones_are_padded_where_cells_are_lost() -> None:
    model, images = Classifier(conv(3, 4, 4, 0), nn.AvgPool2d(2), nn.MaxPool2d(2)).eval(), torch.randn(1, 3, 37, 50)
    padded, features = functional.pad(images, (0, 14, 0, 11)), Small(model, norm="bn").eval()(images)
    torch.testing.assert_close(features["c2"], model.first(padded)[:, :, :10, :13])
    torch.testing.assert_close(features["c4"], model.third(model.second(model.first(padded))))
    model = Classifier(conv(3, 5, 4, 0), nn.MaxPool2d(3, stride=2), nn.AvgPool2d(3, stride=2)).eval()
    c2 = model.first(functional.pad(torch.ones(1, 3, 33, 33), (2, 2, 2, 2)))
    c3 = functional.max_pool2d(c2, 3, stride=2, padding=1)
    c4 = functional.avg_pool2d(c3, 3, stride=2, padding=1, count_include_pad=False)
    features = Small(model, norm="bn").eval()(torch.ones(1, 3, 33, 33))
    torch.testing.assert_close(features, {"c2": c2, "c3": c3, "c4": c4})


def test_padding_keeps_layers_that_are_padded_and_even_kernels() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tall = nn.Conv2d(3, 4, (7, 1), padding=(3, 0))
            self.wide = nn.Conv2d(4, 4, (1, 3), dilation=(1, 2))
            self.even = nn.Conv2d(4, 4, 2, stride=2)
            self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)

        def forward(self, x: Tensor) -> Tensor:
            return functional.max_pool2d(self.pool(self.even(self.wide(self.tall(x)))), 3, stride=2)

    trunk: Any = create_feature_extractor(Layers(), {"max_pool2d": "c4"})
    pad_borders(trunk)
    assert (trunk.tall.padding, trunk.wide.padding, trunk.even.padding) == ((3, 0), (0, 2), (0, 0))
    assert (trunk.pool.padding, trunk.pool.ceil_mode) == ((1, 1), False)
    for trunk.training in (True, False):
        assert trunk(torch.zeros(1, 3, 32, 32))["c4"].shape == (1, 4, 4, 4)


@torch.no_grad()
def test_inception_away_from_the_border_is_the_original_on_a_shifted_image() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    original = timm.create_model("inception_v3", features_only=True, out_indices=(2,)).eval()
    backbone: Any = build_backbone("timm:inception_v3", out_features=("c3",)).eval()
    backbone.load(original.state_dict(), source="timm")
    images = torch.randn(1, 3, 203, 195)
    (expected,) = original(images[:, :, 3:, 3:])  # cell i of the original looks at pixel 8 i + 13, ours at 8 i
    torch.testing.assert_close(backbone(images)["c3"][:, :, 12:14, 12:13], expected[:, :, 10:12, 10:11])


@pytest.mark.parametrize(("norm", "freeze_at", "kept"), [(None, 0, 3), ("frozen_bn", 0, 3), ("bn", 0, 0), ("bn", 3, 2)])
def test_norm_and_frozen_stages_keep_statistics(norm: str | None, freeze_at: int, kept: int) -> None:
    model, images = exact(), torch.randn(2, 3, 32, 32)
    model.get_buffer("first.1.running_mean").copy_(torch.arange(4.0))
    expected = deepcopy(model).eval().first(images)
    backbone = Small(model, norm=norm, freeze_at=freeze_at).train()
    assert sum(isinstance(layer, FrozenBatchNorm) for layer in backbone.modules()) == kept
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in backbone.modules()) == 3 - kept
    trained = {name.split(".")[1] for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert trained == ({"third"} if freeze_at else {"first", "second", "third"})
    for _ in range(2):
        assert torch.allclose(backbone(images)["c2"], expected, atol=1e-5) == (kept > 0)


def test_weights_of_dropped_layers_may_be_there_and_others_not() -> None:
    state, backbone = exact().state_dict(), Small(exact(), out_features=("c3",))
    report = backbone.load({**state, "aux1.conv.weight": torch.zeros(1)}, source="file")
    assert len(report.loaded) == 2 * 6
    unused = [name for name in report.unused if name.startswith(("fc.", "aux1."))]
    assert unused == ["fc.weight", "fc.bias", "aux1.conv.weight"]
    with pytest.raises(ValueError, match=r"from file do not fit Classifier(.|\n)*unused: 1: other.weight"):
        backbone.load({**state, "other.weight": torch.zeros(1)}, source="file")
    del state["first.0.weight"]
    with pytest.raises(ValueError, match=r"missing: 1: first.0.weight"):
        backbone.load(state, source="file")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (exact, {"stages": {"c2": Stage("first", 4), "c3": Stage("second", 4)}}, r"no map of stride 16.*are \[4, 8\]"),
        (exact, {"out_features": ("c5",)}, "out_features must be one of 'c2', 'c3', 'c4', got 'c5'"),
        (exact, {"freeze_at": 1}, "freeze_at must be one of 0, 2, 3, 4 for small, got 1"),
        (exact, {"norm": "gn"}, "norm of small must be one of None, 'bn', 'frozen_bn', got 'gn'"),
        (lambda: Classifier(nn.Conv2d(3, 4, 4, 4), nn.AvgPool2d(2), nn.AvgPool2d(2)), {"norm": "bn"}, "got 'bn'"),
        (
            lambda: exact(4),
            {},
            r"small cannot .* c4 of an image of 48 x 80 pixels is \(1, 4, 2, 3\), not \(1, 4, 3, 5\)",
        ),
        (lambda: exact(fixed_size=True), {}, r"not run on images of 48 x 80 pixels \(images must be 224 wide\)"),
        (exact, {"stages": {"c4": Stage("nowhere", 4)}, "out_features": ("c4",)}, "cannot be traced .node: 'nowhere'"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused_with_the_reason(model, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Small(model(), **options)

"""Mirrors branchynet.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from backbones.base import IMAGENET_RGB, Backbone, FeatureSpec, Tail
from backbones.classifier import Classifier
from backbones.extras.branchynet import BranchyNet, Exit
from backbones.registry import build_backbone

NEVER, ALWAYS = Exit(0.0), Exit(math.inf)


def make_net(exits: dict[str, Exit] | None = None, name: str = "cifar_resnet20") -> BranchyNet:
    torch.manual_seed(0)
    return BranchyNet(build_backbone(name, out_features=("c0", "c1")), 10, exits).eval()


def make_images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 20, 17, generator=torch.Generator().manual_seed(1))


def entropy(logits: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits).entropy()


@torch.no_grad()
def test_infinite_threshold_answers_at_the_first_exit() -> None:
    net = make_net({"c0": ALWAYS, "c1": NEVER})
    logits, taken = net.answer(make_images())
    torch.testing.assert_close(logits, net.exits(make_images())[0])
    assert taken.tolist() == [0] * 6


@torch.no_grad()
def test_threshold_zero_answers_at_the_end() -> None:
    net = make_net({"c0": NEVER, "c1": NEVER})
    logits, taken = net.answer(make_images())
    torch.testing.assert_close(logits, Classifier.forward(net, make_images()), rtol=0, atol=0)
    torch.testing.assert_close(logits, net.exits(make_images())[-1], rtol=0, atol=0)
    assert taken.tolist() == [2] * 6


def mixed() -> BranchyNet:
    """A network of which four samples leave by the first exit, one by the second, one by the last."""
    net = make_net()
    with torch.no_grad():
        first, second, _ = net.exits(make_images())
        order = entropy(first).argsort()
        rest = entropy(second)[order[4:]].sort().values
        net.rules = {"c0": Exit(entropy(first)[order[4]].item()), "c1": Exit(rest.mean().item())}
    return net


@torch.no_grad()
def test_batch_gives_what_its_samples_give_alone() -> None:
    net, images = mixed(), make_images()
    logits, taken = net.answer(images)
    assert sorted(taken.tolist()) == [0, 0, 0, 0, 1, 2]
    torch.testing.assert_close(net(images), logits, rtol=0, atol=0)
    for image, expected, by in zip(images, logits, taken, strict=True):
        alone, own = net.answer(image[None])
        assert own.tolist() == [by.item()]
        torch.testing.assert_close(alone[0], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_first_exit_that_is_sure_answers() -> None:
    net, images = mixed(), make_images()
    every = torch.stack(net.exits(images), dim=1)  # (N, 3, K)
    sure = [[bool(entropy(row[i]) < net.rules[name].threshold) for i, name in enumerate(net.rules)] for row in every]
    expected = [row.index(True) if any(row) else 2 for row in sure]
    logits, taken = net.answer(images)
    assert taken.tolist() == expected
    torch.testing.assert_close(logits, every[torch.arange(6), taken], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_layers_after_an_exit_see_only_the_samples_that_stay() -> None:
    net = mixed()
    seen: dict[str, int] = {}

    def note(name: str) -> Any:
        return lambda _module, inputs, _output: seen.__setitem__(name, len(inputs[0]))

    for name in ("backbone.layer1", "backbone.layer2", "tail", "fc"):
        net.get_submodule(name).register_forward_hook(note(name))
    net(make_images())
    assert seen == {"backbone.layer1": 6, "backbone.layer2": 2, "tail": 1, "fc": 1}


@torch.no_grad()
def test_no_images() -> None:
    logits, taken = make_net().answer(make_images(0))
    assert logits.shape == (0, 10)
    assert taken.shape == (0,)
    assert [own.shape for own in make_net().exits(make_images(0))] == [(0, 10)] * 3


def test_losses_are_the_weighted_losses_of_all_exits() -> None:
    net = make_net({"c1": Exit(loss_weight=0.25), "c0": Exit(loss_weight=2.0)})
    labels = functional.one_hot(torch.tensor([0, 9, 3, 3, 1, 2]), 10).float()
    losses = net.losses(make_images(), labels, functional.cross_entropy)
    first, second, last = (functional.cross_entropy(logits, labels).item() for logits in net.exits(make_images()))
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
        {"classification": last, "exit_c0": 2 * first, "exit_c1": 0.25 * second}
    )
    torch.stack(list(losses.values())).sum().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None]


def test_plain_classifier_s_weights_fit() -> None:
    net = make_net()
    plain = Classifier(build_backbone("cifar_resnet20"), 10)
    report = net.load_state_dict(plain.state_dict(), strict=False)
    assert report.unexpected_keys == []
    assert all(name.startswith("branches.") for name in report.missing_keys)


def test_running_the_network_leaves_nothing_behind() -> None:
    net = make_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net(make_images())
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
    assert not [m for m in net.modules() if m._forward_hooks]


@pytest.mark.parametrize(
    ("name", "features"), [("vgg11_bn", ("c1", "c3", "c5")), ("preact_resnet18", ("c2", "c3")), ("all_cnn_c", ("c0",))]
)
@torch.no_grad()
def test_every_backbone_can_be_left_early(name: str, features: tuple[str, ...]) -> None:
    options: dict[str, Any] = {"roi_size": 1} if name.startswith("vgg") else {}
    net = BranchyNet(build_backbone(name, out_features=features, **options), 4).eval()
    assert list(net.rules) == list(features)
    values = net.backbone(make_images(2))
    for own, feature in zip(net.exits(make_images(2)), features, strict=False):
        torch.testing.assert_close(own, net.branches[feature](values[feature]))
    net.rules = dict.fromkeys(features, NEVER) | {features[-1]: ALWAYS}
    assert net.answer(make_images(2))[1].tolist() == [len(features) - 1] * 2


def test_exit_after_an_unknown_feature_is_refused() -> None:
    with pytest.raises(ValueError, match="exits must be one of 'c0', 'c1', got 'c2'"):
        make_net({"c2": NEVER})


class Averaged(Tail):
    def forward(self, regions: Tensor) -> Tensor:
        return regions.mean(dim=(2, 3))


class Doubled(Backbone):
    """Its feature is made between modules."""

    def __init__(self) -> None:
        super().__init__({"c0": FeatureSpec(4, 1)}, IMAGENET_RGB)
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"c0": 2 * self.conv(images)}

    def tail(self) -> Averaged:
        return Averaged(in_channels=4, out_channels=4, roi_size=1)


def test_feature_that_no_module_returns_is_refused() -> None:
    with pytest.raises(ValueError, match="no module of Doubled returns c0, so no exit can follow it"):
        BranchyNet(Doubled(), 2)

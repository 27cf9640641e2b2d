"""Mirrors branchynet.py."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from backbones.base import IMAGENET_RGB, Backbone, FeatureSpec
from backbones.classifier import Classifier
from backbones.extras.branchynet import BranchyNet, Exit
from backbones.registry import build_backbone

NEVER, ALWAYS = Exit(0.0), Exit(math.inf)
IMAGES = torch.randn(6, 3, 20, 17, generator=torch.Generator().manual_seed(1))


def make_net(exits: dict[str, Exit] | None = None) -> BranchyNet:
    torch.manual_seed(0)
    return BranchyNet(build_backbone("cifar_resnet20", out_features=("c0", "c1")), 10, exits).eval()


@torch.no_grad()
def test_the_first_exit_that_is_sure_answers_whatever_the_rest_of_the_batch() -> None:
    net, seen = make_net(), dict[str, int]()
    every = torch.stack(net.exits(IMAGES), dim=1)  # (N, 3, K)
    first, second = torch.distributions.Categorical(logits=every[:, :2]).entropy().unbind(1)
    order = first.argsort()  # four leave by the first exit, one by the second, one by the last
    net.rules = {"c0": Exit(first[order[4]].item()), "c1": Exit(second[order[4:]].mean().item())}
    expected = [0 if first[i] < net.rules["c0"].threshold else 1 for i in range(6)]
    expected = [2 if e and second[i] >= net.rules["c1"].threshold else e for i, e in enumerate(expected)]
    logits, taken = net.answer(IMAGES)
    assert taken.tolist() == expected
    assert sorted(expected) == [0, 0, 0, 0, 1, 2]
    torch.testing.assert_close(logits, every[torch.arange(6), taken], rtol=1e-4, atol=1e-5)
    for image, row, by in zip(IMAGES, logits, expected, strict=True):
        alone, own = net.answer(image[None])
        assert own.tolist() == [by]
        torch.testing.assert_close(alone[0], row, rtol=1e-4, atol=1e-5)
    for name in ("backbone.layer1", "backbone.layer2", "tail", "fc"):  # which see only the samples that stay
        net.get_submodule(name).register_forward_hook(lambda _, x, __, name=name: seen.update({name: len(x[0])}))
    torch.testing.assert_close(net(IMAGES), logits, rtol=0, atol=0)
    assert seen == {"backbone.layer1": 6, "backbone.layer2": 2, "tail": 1, "fc": 1}


@torch.no_grad()
def test_thresholds_of_all_or_nothing_and_no_images_leave_nothing_behind() -> None:
    for exits, exit_taken in (({"c0": ALWAYS, "c1": NEVER}, 0), ({"c0": NEVER, "c1": NEVER}, 2)):
        net = make_net(exits)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        logits, taken = net.answer(IMAGES)
        torch.testing.assert_close(logits, net.exits(IMAGES)[exit_taken])
        assert taken.tolist() == [exit_taken] * 6
        assert [x.shape for x in (*net.answer(IMAGES[:0]), *net.exits(IMAGES[:0]))] == [(0, 10), (0,), *[(0, 10)] * 3]
        torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
        assert not [m for m in net.modules() if m._forward_hooks]
    torch.testing.assert_close(logits, Classifier.forward(net, IMAGES), rtol=0, atol=0)


def test_losses_are_the_weighted_losses_of_all_exits_and_a_plain_classifier_s_weights_fit() -> None:
    net = make_net({"c1": Exit(loss_weight=0.25), "c0": Exit(loss_weight=2.0)})
    labels = functional.one_hot(torch.tensor([0, 9, 3, 3, 1, 2]), 10).float()
    losses = net.losses(IMAGES, labels, functional.cross_entropy)
    first, second, last = (functional.cross_entropy(logits, labels).item() for logits in net.exits(IMAGES))
    expected = {"classification": last, "exit_c0": 2 * first, "exit_c1": 0.25 * second}
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected)
    torch.stack(list(losses.values())).sum().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None]
    report = net.load_state_dict(Classifier(build_backbone("cifar_resnet20"), 10).state_dict(), strict=False)
    assert report.unexpected_keys == []
    assert all(name.startswith("branches.") for name in report.missing_keys)


@pytest.mark.parametrize(
    ("name", "features", "options"),
    [
        ("vgg11_bn", ("c1", "c3", "c5"), {"roi_size": 1}),
        ("preact_resnet18", ("c2", "c3"), {}),
        ("all_cnn_c", ("c0",), {}),
    ],
)
@torch.no_grad()
def test_every_backbone_can_be_left_early(name: str, features: tuple[str, ...], options) -> None:
    net = BranchyNet(build_backbone(name, out_features=features, **options), 4).eval()
    assert list(net.rules) == list(features)
    values = net.backbone(IMAGES[:2])
    for own, feature in zip(net.exits(IMAGES[:2]), features, strict=False):
        torch.testing.assert_close(own, net.branches[feature](values[feature]))
    net.rules = dict.fromkeys(features, NEVER) | {features[-1]: ALWAYS}
    assert net.answer(IMAGES[:2])[1].tolist() == [len(features) - 1] * 2


class Doubled(Backbone):
    """Its feature is made between modules."""

    def __init__(self) -> None:
        super().__init__({"c0": FeatureSpec(6, 1)}, IMAGENET_RGB)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"c0": torch.cat([images, images], dim=1)}

    def tail(self):
        return build_backbone("cifar_resnet20").tail()


def test_exits_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="exits must be one of 'c0', 'c1', got 'c2'"):
        make_net({"c2": NEVER})
    with pytest.raises(ValueError, match="no module of Doubled returns c0"):
        BranchyNet(Doubled(), 2)

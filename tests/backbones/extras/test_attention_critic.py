"""Mirrors attention_critic.py."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from backbones.attention import Gate
from backbones.attention_net import CifarAttentionNet
from backbones.extras.attention_critic import PENALTY, Critic, CriticClassifier, gain
from backbones.registry import build_backbone

LABELS = functional.one_hot(torch.tensor([0, 2, 1]), 3).float()
CLASSES = LABELS.argmax(dim=1)
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
KINDS = {
    ".se.fc1.weight": lambda: build_backbone("seresnet18", norm="gn"),
    ".se.spatial.weight": lambda: build_backbone("cbam_resnet18", norm="gn"),
    ".mask.head.2.weight": lambda: CifarAttentionNet(56, norm="gn"),
}  # makers of maps -> networks with them


def make_model(kind: str = ".se.fc1.weight") -> CriticClassifier:
    torch.manual_seed(0)
    return CriticClassifier(KINDS[kind](), 3)


def step(model: CriticClassifier) -> dict[str, Tensor]:
    return model.losses(IMAGES, LABELS, functional.cross_entropy)


def reached(model: nn.Module, loss: Tensor) -> set[str]:
    """Names of the parameters that get a gradient other than zero."""
    model.zero_grad()
    loss.backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def test_gain_by_hand() -> None:
    whole = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2]]).log()
    without = torch.tensor([[0.25, 0.5, 0.25], [0.05, 0.9, 0.05], [0.2, 0.4, 0.4]]).log()
    got = gain(whole, without, torch.tensor([0, 1, 2]))
    assert got.tolist() == pytest.approx([1 - 0.25 / 0.5, 1 - 0.9 / 0.8, -PENALTY])


def test_critic_takes_maps_of_any_shape_and_knows_those_before() -> None:
    torch.manual_seed(0)
    critic = Critic()
    features = [torch.rand(2, 64, 8, 8), torch.rand(2, 128, 3, 5), torch.rand(2, 7, 1, 1)]
    maps = [torch.rand(2, 64, 1, 1), torch.rand(2, 1, 3, 5), torch.rand(2, 7, 1, 1)]
    gains, others = critic(features, maps), critic(features, [maps[0], 1 - maps[1], maps[2]])
    assert gains.shape == (2, 3)
    assert torch.equal(others[:, 0], gains[:, 0])
    assert (others[:, 1:] != gains[:, 1:]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_critic_and_maps_learn_in_turns(kind: str) -> None:
    model = make_model(kind)
    critic = {name for name, _ in model.named_parameters() if name.startswith("critic.")}
    losses = step(model)
    assert list(losses) == ["classification", "critic", "attention"]
    assert losses["attention"] == 0 < losses["critic"]
    assert set() < reached(model, losses["critic"]) <= critic
    losses = step(model)
    assert losses["critic"] == 0
    found = reached(model, losses["attention"])
    assert not found & critic
    assert any(name.endswith(kind) for name in found)
    assert int(model.turn) == 2
    everywhere = reached(model, torch.stack(list(step(model).values())).sum())
    assert everywhere == {name for name, _ in model.named_parameters()}


def test_every_map_has_its_turn() -> None:
    model, judged = make_model(".mask.head.2.weight"), []
    names = {gate: name for name, gate in model.named_modules() if isinstance(gate, Gate)}
    assert len(names) == 3
    usual = model.gain
    model.gain = lambda *args: judged.append(names[args[-1]]) or usual(*args)  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(8):
        step(model)
    assert judged == [*names.values(), next(iter(names.values()))]


def test_gain_compares_with_a_map_that_is_even() -> None:
    model = make_model()
    gate = model.get_submodule("tail.layer4.1.se.gate")
    got = model.gain(IMAGES, CLASSES, gate)  # pyright: ignore[reportArgumentType]
    before = model.eval()(IMAGES)
    handle = gate.register_forward_hook(lambda _gate, seen, _out: seen[0] * seen[1].mean(dim=(1, 2, 3), keepdim=True))
    torch.testing.assert_close(got, gain(before, model(IMAGES), CLASSES))
    handle.remove()
    for parameter in model.critic.parameters():
        nn.init.constant_(parameter, math.nan)  # which answers do without
    torch.testing.assert_close(model(IMAGES), before)


def test_gain_leaves_statistics_and_the_mode_as_they_are_and_needs_attention() -> None:
    model = CriticClassifier(build_backbone("seresnet18", norm="bn"), 3)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.gain(IMAGES, CLASSES, next(module for module in model.modules() if isinstance(module, Gate)))
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"CifarResNet has no attention maps .* seresnet50"):
        CriticClassifier(build_backbone("cifar_resnet20", norm="gn"), 3)

"""An attention critic: a network that estimates the gain of each attention map, from which the maps learn.

Source: Li and Chen 2020, "Deep Reinforced Attention Learning for Quality-Aware Visual Recognition": a meta-critic,
recurrent over the attention modules of any network, estimates the relative gain in recognition that comes from each
map, and critic and actors (the modules) are trained in turns.  Only its abstract was at hand: docs/classification.md
lists what was chosen here.

Shapes: N images, C channels, H W height and width, K classes, L maps of a network, from the first to the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from backbones.attention import Gate
from backbones.base import Backbone
from backbones.classifier import Classifier

__all__ = ["Critic", "CriticClassifier", "gain"]

CHANNELS, CELLS = 32, 4  # of the profile of a map: its channels, and its rows and columns of cells
HIDDEN = 64
PENALTY = 1.0  # minus the reward of a map in an image that the network gets wrong
ACTOR_WEIGHT = 0.1  # of the estimated gain; the class loss has weight 1


@dataclass(frozen=True, slots=True)
class Look:
    """The inputs of one gate in one forward pass.

    Attributes:
        gate: weights the features by the map.
        features: (N, C, H, W).
        attention: the map, which broadcasts to the features.
    """

    gate: Gate
    features: Tensor
    attention: Tensor


class Critic(nn.Module):
    """Estimates the gain of every map of a network; the same weights serve maps of any shape.

    A map and its features are described by their averages over the cells, brought to 32 values, and over the channels,
    brought to 4 x 4.  A recurrent cell runs from the first map to the last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(2 * (CHANNELS + CELLS**2), HIDDEN)
        self.value = nn.Linear(HIDDEN, 1)

    def forward(self, features: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
        """Returns gains (N, L) of L maps and the features that they weigh."""
        state: tuple[Tensor, Tensor] | None = None
        gains: list[Tensor] = []
        for seen, attention in zip(features, maps, strict=True):
            hidden, memory = self.cell(torch.cat([_profile(seen), _profile(attention)], dim=1), state)
            gains.append(self.value(hidden))
            state = hidden, memory
        return torch.cat(gains, dim=1).float()


class CriticClassifier(Classifier):
    """A classifier whose attention maps a critic judges in training; it predicts without the critic.

    Forward passes in training alternate.  In one kind the critic learns the true gain of one map, another map each
    time; this costs two more forward passes without gradients.  In the other kind the maps, and the layers that make
    them, learn from the critic's estimate of their gains.  The class loss is part of both.

    Args:
        backbone: one with attention modules.
        num_classes: K.

    Attributes:
        turn: number of forward passes in training so far; saved with the weights, so that a resumed run keeps its turn.

    Raises:
        ValueError: the backbone has no attention modules.
    """

    turn: Tensor

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__(backbone, num_classes)
        if not any(isinstance(module, Gate) for module in self.modules()):
            raise ValueError(
                f"{type(backbone).__name__} has no attention maps for a critic to judge; choose a backbone with some, "
                "such as seresnet50, cbam_resnet50 or attention56"
            )
        self.critic = Critic()
        self.register_buffer("turn", torch.zeros((), dtype=torch.int64))

    def losses(
        self, images: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Returns the class loss and the losses of critic and maps; the one whose turn it is not is 0.

        Args:
            images: normalised float (N, 3, H, W).
            labels: (N, K), rows sum to 1.
            criterion: maps logits and labels, both (N, K), to a scalar.
        """
        turn = int(self.turn)
        self.turn += 1
        with self._looks() as looks:
            losses = {"classification": criterion(self(images), labels)}
        # Gradients of zero, not none: parallel processes average all of them.
        nothing = 0 * torch.stack([parameter.sum() for parameter in self.critic.parameters()]).sum()
        losses |= {"critic": nothing, "attention": nothing}
        if not looks:  # stochastic depth skipped every block
            return losses
        features = [look.features.detach() for look in looks]
        if turn % 2 == 0:
            chosen = turn // 2 % len(looks)
            truth = self.gain(images, labels.argmax(dim=1), looks[chosen].gate)
            estimate = self.critic(features, [look.attention.detach() for look in looks])[:, chosen]
            losses["critic"] = functional.mse_loss(estimate, truth)
        else:
            fixed = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
            estimate = functional_call(self.critic, fixed, (features, [look.attention for look in looks]))
            losses["attention"] = nothing - ACTOR_WEIGHT * estimate.mean()
        return losses

    @torch.no_grad()
    def gain(self, images: Tensor, classes: Tensor, gate: Gate) -> Tensor:
        """Returns the true gain (N,) of a map for images of the ``classes`` (N,), in eval mode.

        The prediction is compared with that of the same map replaced by its average: as strong, but uniform.
        """
        training = self.training
        self.eval()
        try:
            whole = self(images)
            handle = gate.register_forward_pre_hook(_flatten)
            try:
                without = self(images)
            finally:
                handle.remove()
        finally:
            self.train(training)
        return gain(whole, without, classes)

    @contextmanager
    def _looks(self) -> Iterator[list[Look]]:
        """Yields a list that collects the inputs of all gates."""
        looks: list[Look] = []

        def note(gate: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
            assert isinstance(gate, Gate)
            looks.append(Look(gate, *inputs))

        handles = [gate.register_forward_pre_hook(note) for gate in self.modules() if isinstance(gate, Gate)]
        try:
            yield looks
        finally:
            for handle in handles:
                handle.remove()


def gain(whole: Tensor, without: Tensor, classes: Tensor) -> Tensor:
    """Returns the share (N,) of the true class's probability that is lost without the map; -1 if predicted wrong.

    Args:
        whole: logits (N, K) with all maps.
        without: logits (N, K) without the one in question.
        classes: of the images (N,).
    """
    before, after = (logits.float().log_softmax(dim=1).gather(1, classes[:, None])[:, 0] for logits in (whole, without))
    lost = 1 - (after - before).exp()
    return lost.where(whole.argmax(dim=1) == classes, torch.full_like(lost, -PENALTY))


def _profile(values: Tensor) -> Tensor:
    """Returns averages (N, 48) of a map (N, C, H, W), any of whose dimensions but N may be 1."""
    values = values.float()
    channels = functional.adaptive_avg_pool1d(values.mean(dim=(2, 3))[:, None], CHANNELS)[:, 0]
    cells = functional.adaptive_avg_pool2d(values.mean(dim=1, keepdim=True), CELLS).flatten(1)
    return torch.cat([channels, cells], dim=1)


def _flatten(_gate: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    features, attention = inputs
    return features, attention.mean(dim=(1, 2, 3), keepdim=True)

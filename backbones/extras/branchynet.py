"""BranchyNet: a classifier with early exits, where a sample leaves the network as soon as an exit is sure of it.

Source: Teerapittayanon, McDanel and Kung 2016, "BranchyNet: Fast Inference via Early Exiting from Deep Neural
Networks", sections III-B (joint loss) and III-C (exit by entropy).
Shapes: N images, C channels, H W height and width, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backbones.base import Backbone, check_choice, he_initialise
from backbones.classifier import Classifier

__all__ = ["BranchyNet", "Exit", "entropy", "feature_sources", "make_branch"]

BRANCH_CHANNELS = 64


@dataclass(frozen=True, slots=True)
class Exit:
    """The settings of an early exit.

    Attributes:
        threshold: entropy of the class probabilities, in nats, below which a sample leaves here; with 0 none leaves,
            with infinity all do. Choose it after training, by accuracy against time; 0.3 is the paper's first for
            ResNet-110 on CIFAR-10 (table I).
        loss_weight: weight of its loss; the last exit has weight 1. More weight for early exits helps the later ones
            (section V-A).
    """

    threshold: float = 0.3
    loss_weight: float = 1.0


class BranchyNet(Classifier):
    """A classifier with exit branches after features of its backbone; the classifier's own output is the last exit.

    Args:
        backbone: each of its features must be the output of one module, on which all later layers depend.
        num_classes: K.
        exits: settings by feature; None puts an exit after every feature of the backbone.

    Attributes:
        rules: the exits by feature, from the first on; may be replaced after training.

    Raises:
        ValueError: an exit follows an unknown feature, or one that no module returns.
    """

    def __init__(self, backbone: Backbone, num_classes: int, exits: Mapping[str, Exit] | None = None) -> None:
        super().__init__(backbone, num_classes)
        for name in exits or ():
            check_choice("exits", name, tuple(backbone.specs))
        chosen = dict.fromkeys(backbone.specs, Exit()) if exits is None else exits
        self.rules = {name: chosen[name] for name in backbone.specs if name in chosen}
        self.branches = nn.ModuleDict(
            {name: make_branch(backbone.specs[name].channels, num_classes) for name in self.rules}
        )
        self._sources = feature_sources(backbone)
        for name in self.rules:
            if name not in self._sources:
                raise ValueError(f"no module of {type(backbone).__name__} returns {name}, so no exit can follow it")

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (N, K) of the exit that each of the normalised float images (N, 3, H, W) leaves by."""
        return self.answer(images)[0]

    def answer(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (N, K) of normalised float images (N, 3, H, W), and the exit (N,) that each left by, from 0.

        The layers after an exit see only the samples that are still in the network.
        """
        rows = torch.arange(len(images), device=images.device)  # of the samples that are still in the network
        left: list[tuple[Tensor, Tensor]] = []  # per exit: rows, logits

        def leave(name: str, feature: Tensor) -> Tensor:
            nonlocal rows
            logits = self.branches[name](feature)
            sure = entropy(logits) < self.rules[name].threshold
            left.append((rows[sure], logits[sure]))
            rows = rows[~sure]
            return feature[~sure]

        logits = self._run(images, leave)
        left.append((rows, logits))
        order = torch.cat([own for own, _ in left]).argsort()  # to the order of the images
        exits = torch.cat([torch.full_like(own, number) for number, (own, _) in enumerate(left)])
        return torch.cat([own for _, own in left])[order], exits[order]

    def exits(self, images: Tensor) -> list[Tensor]:
        """Returns logits (N, K) of every exit, from the first to the last, of normalised float images (N, 3, H, W)."""
        logits: list[Tensor] = []

        def stay(name: str, feature: Tensor) -> Tensor:
            logits.append(self.branches[name](feature))
            return feature

        last = self._run(images, stay)
        return [*logits, last]

    def losses(
        self, images: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Returns the weighted loss of every exit, for class probabilities ``labels`` (N, K).

        Args:
            images: normalised float (N, 3, H, W).
            labels: (N, K), rows sum to 1.
            criterion: maps logits and labels, both (N, K), to a scalar.
        """
        *early, last = self.exits(images)
        losses = {"classification": criterion(last, labels)}
        for (name, rule), logits in zip(self.rules.items(), early, strict=True):
            losses[f"exit_{name}"] = rule.loss_weight * criterion(logits, labels)
        return losses

    def _run(self, images: Tensor, at_exit: Callable[[str, Tensor], Tensor]) -> Tensor:
        """Returns logits of the last exit; every feature with an exit is replaced by the result of ``at_exit``."""
        hooks = [
            self.backbone.get_submodule(self._sources[name]).register_forward_hook(_hook(at_exit, name))
            for name in self.rules
        ]
        try:
            return super().forward(images)
        finally:
            for hook in hooks:
                hook.remove()


def make_branch(channels: int, num_classes: int) -> nn.Sequential:
    """Returns a small classifier of a feature map: (N, channels, H, W) -> logits (N, num_classes)."""
    conv = nn.Conv2d(channels, BRANCH_CHANNELS, 3, padding=1)
    he_initialise(conv)
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(conv, nn.ReLU(inplace=True), pool, nn.Flatten(), nn.Linear(BRANCH_CHANNELS, num_classes))


def _hook(at_exit: Callable[[str, Tensor], Tensor], name: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
    return lambda _module, _inputs, feature: at_exit(name, feature)


def entropy(logits: Tensor) -> Tensor:
    """Returns the entropy in nats (N,) of the class probabilities given by ``logits`` (N, K)."""
    log = logits.float().log_softmax(dim=1)
    return -(log.exp() * log).sum(dim=1)


def feature_sources(backbone: Backbone) -> dict[str, str]:
    """Returns the name of the module whose output is each feature, if there is one.

    They are found by running a copy on the meta device, since a backbone does not state which module makes a feature.
    """
    probe = copy.deepcopy(backbone).to("meta").eval()
    outputs: list[tuple[object, str]] = []
    for name, module in probe.named_modules():
        module.register_forward_hook(lambda _module, _args, output, name=name: outputs.append((output, name)))
    features: dict[str, Tensor] = probe(torch.zeros(1, 3, 64, 64, device="meta"))
    # Where modules return the same tensor, as a block and its stage do, the last to run stays in the dict.
    return {feature: name for feature, value in features.items() for output, name in outputs if output is value}

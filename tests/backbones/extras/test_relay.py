"""Mirrors relay.py."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from backbones.classifier import Classifier
from backbones.extras.relay import RelayClassifier
from backbones.extras.spp import SPP
from backbones.fpn import FPN
from backbones.registry import build_backbone

LABELS = functional.one_hot(torch.tensor([0, 2, 1]), 3).float()
IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
# the layers of ResNet-18 with stop c2 and auxiliary c3: below the stop, in both segments, above the auxiliary module
LOWEST, SHARED, TOP = ("backbone.conv1", "backbone.layer1"), ("backbone.layer2",), ("backbone.layer3", "tail", "fc")


def make_relay(weight: float = 1.0) -> RelayClassifier:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", out_features=("c2", "c3", "c4"), norm="bn")
    return RelayClassifier(backbone, 3, auxiliary="c3", loss_weight=weight)


def losses(model: Classifier) -> dict[str, Tensor]:
    return dict(model.losses(IMAGES, LABELS, functional.cross_entropy))


def gradients(model: Classifier, *sums: Tensor) -> dict[str, Tensor]:
    """Those other than zero, of these losses in turn."""
    model.zero_grad()
    for loss in sums:
        loss.backward(retain_graph=True)
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def end_to_end(model: RelayClassifier, *, auxiliary: bool) -> dict[str, Tensor]:
    """Gradients of one loss as usual, through all the layers that it comes from."""
    features = model.backbone(IMAGES)
    logits = model.auxiliary(features["c3"]) if auxiliary else model.fc(model.tail(features["c4"]))
    return gradients(model, functional.cross_entropy(logits, LABELS))


def part(found: dict[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: gradient for name, gradient in found.items() if name.startswith(prefixes)}


def test_main_loss_trains_down_to_the_stop_and_the_auxiliary_down_to_the_image() -> None:
    model = make_relay(weight=0.5)
    main, auxiliary = end_to_end(model, auxiliary=False), end_to_end(model, auxiliary=True)
    found = gradients(model, losses(model)["classification"])
    assert set(found) == {name for name in main if not name.startswith((*LOWEST, "backbone.bn1"))}
    torch.testing.assert_close(found, {name: main[name] for name in found})
    halves = {name: 0.5 * gradient for name, gradient in auxiliary.items()}
    torch.testing.assert_close(gradients(model, losses(model)["auxiliary"]), halves, rtol=1e-4, atol=1e-6)
    # both add up where the segments overlap, one after the other or at once, whatever the factor
    expected = part(halves, LOWEST) | {name: main[name] + halves[name] for name in part(main, SHARED)} | part(main, TOP)
    for make in (lambda one, two: (one, two), lambda one, two: (two, one), lambda one, two: (8 * (one + two),)):
        sums = make(*losses(model).values())
        both = {name: gradient / (8 if len(sums) == 1 else 1) for name, gradient in gradients(model, *sums).items()}
        assert set(both) == {name for name, _ in model.named_parameters()}
        torch.testing.assert_close({name: both[name] for name in expected}, expected, rtol=1e-4, atol=1e-5)


def test_prediction_is_the_main_end_s_and_losses_without_gradients_the_same() -> None:
    model, plain = make_relay(weight=0.5).eval(), Classifier(build_backbone("resnet18", norm="bn"), 3).eval()
    plain.load_state_dict({n: v for n, v in model.state_dict().items() if not n.startswith("auxiliary.")})
    trained = {name: loss.item() for name, loss in losses(model).items()}
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), plain(IMAGES), rtol=0, atol=0)
        side = functional.cross_entropy(model.auxiliary(model.backbone(IMAGES)["c3"]), LABELS).item()
        main = functional.cross_entropy(model(IMAGES), LABELS).item()
        validated = {name: loss.item() for name, loss in losses(model).items()}
    assert validated == pytest.approx(trained)
    assert validated == pytest.approx({"classification": main, "auxiliary": 0.5 * side})


def test_frozen_lowest_layers_need_no_relay() -> None:
    model = RelayClassifier(build_backbone("resnet18", out_features=("c2", "c3"), freeze_at=2), 3)
    found = gradients(model, *losses(model).values())
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not part(found, LOWEST)


def test_the_first_and_last_feature_are_the_default_and_others_must_follow_each_other() -> None:
    options: Any
    with torch.device("meta"):
        model = RelayClassifier(build_backbone("cifar_resnet20", out_features=("c1", "c0")), 10)
        assert (model.stop, model.at) == ("c0", "c1")
        for features, options, got in (
            (("c4",), {}, "c4 and c4"),
            (("c2", "c4"), {"stop": "c4", "auxiliary": "c2"}, "c4 and c2"),
            (("c2", "c4"), {"auxiliary": "c3"}, "c2 and c3"),
        ):
            with pytest.raises(ValueError, match=f"stop must be a feature before that of auxiliary, got {got}"):
                RelayClassifier(build_backbone("resnet18", out_features=features), 3, **options)
    body = build_backbone("resnet18", out_features=("c2", "c3", "c4", "c5"))
    model = RelayClassifier(SPP(FPN(body, channels=8), (1,)), 3)  # p6 comes from above, not from p2
    with pytest.raises(ValueError, match="SPP does not make p6 from what it returns as p2"):
        losses(model)

"""Mirrors relay.py."""

from __future__ import annotations

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
# the layers of ResNet-18 with stop c2 and auxiliary c3: below the stop, in both segments, above the auxiliary module
LOWEST, SHARED, TOP = ("backbone.conv1", "backbone.layer1"), ("backbone.layer2",), ("backbone.layer3", "tail", "fc")


def make_relay(weight: float = 1.0) -> RelayClassifier:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", out_features=("c2", "c3", "c4"), norm="bn")
    return RelayClassifier(backbone, 3, auxiliary="c3", loss_weight=weight)


def make_images() -> Tensor:
    return torch.randn(3, 3, 40, 40, generator=torch.Generator().manual_seed(1))


def gradients(model: Classifier) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def backward(model: RelayClassifier, *names: str, factor: float = 1.0) -> dict[str, Tensor]:
    """Gradients of the sum of these losses."""
    losses = model.losses(make_images(), LABELS, functional.cross_entropy)
    (factor * torch.stack([losses[name] for name in names]).sum()).backward()
    return gradients(model)


def end_to_end(model: RelayClassifier, *, auxiliary: bool) -> dict[str, Tensor]:
    """Gradients of one loss as usual, through all the layers that it comes from."""
    features = model.backbone(make_images())
    logits = model.auxiliary(features["c3"]) if auxiliary else model.fc(model.tail(features["c4"]))
    functional.cross_entropy(logits, LABELS).backward()
    return gradients(model)


def reached(found: dict[str, Tensor]) -> set[str]:
    return {name for name, gradient in found.items() if gradient.any()}


def part(found: dict[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: gradient for name, gradient in found.items() if name.startswith(prefixes)}


def test_main_loss_trains_down_to_the_stop() -> None:
    model = make_relay()
    found = backward(model, "classification")
    below = {n for n, _ in model.named_parameters() if n.startswith(("backbone.conv1", "backbone.bn1", *LOWEST))}
    aside = {n for n, _ in model.named_parameters() if n.startswith("auxiliary.")}
    assert reached(found) == {n for n, _ in model.named_parameters()} - below - aside
    usual = end_to_end(model, auxiliary=False)
    torch.testing.assert_close(part(found, (*SHARED, *TOP)), part(usual, (*SHARED, *TOP)))


def test_auxiliary_loss_trains_from_its_feature_down_to_the_image() -> None:
    model = make_relay()
    found, usual = backward(model, "auxiliary"), end_to_end(model, auxiliary=True)
    assert not [name for name in reached(found) if name.startswith(TOP)]
    assert reached(found) == reached(usual)
    torch.testing.assert_close(found, usual, rtol=1e-4, atol=1e-6)


def test_both_losses_add_up_where_the_segments_overlap() -> None:
    model = make_relay(weight=0.5)
    found = backward(model, "classification", "auxiliary")
    main, auxiliary = end_to_end(model, auxiliary=False), end_to_end(model, auxiliary=True)
    assert reached(found) == {name for name, _ in model.named_parameters()}
    for name in part(found, LOWEST):
        torch.testing.assert_close(found[name], 0.5 * auxiliary[name], rtol=1e-4, atol=1e-5)
    for name in part(found, SHARED):
        torch.testing.assert_close(found[name], main[name] + 0.5 * auxiliary[name], rtol=1e-4, atol=1e-5)
    for name in part(found, TOP):
        torch.testing.assert_close(found[name], main[name], rtol=1e-4, atol=1e-5)


def test_a_factor_on_the_losses_is_a_factor_on_all_gradients() -> None:
    model = make_relay()
    plain = backward(model, "classification", "auxiliary")
    scaled = backward(model, "classification", "auxiliary", factor=8.0)
    torch.testing.assert_close(scaled, {name: 8 * value for name, value in plain.items()}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [("classification", "auxiliary"), ("auxiliary", "classification")])
def test_one_after_the_other_is_their_sum(order: tuple[str, str]) -> None:
    model = make_relay()
    together = backward(model, *order)
    losses = model.losses(make_images(), LABELS, functional.cross_entropy)
    losses[order[0]].backward(retain_graph=True)
    losses[order[1]].backward()
    torch.testing.assert_close(gradients(model), together, rtol=1e-4, atol=1e-5)


def test_prediction_is_the_main_end_s() -> None:
    model = make_relay().eval()
    plain = Classifier(build_backbone("resnet18", norm="bn"), 3).eval()
    plain.load_state_dict({n: v for n, v in model.state_dict().items() if not n.startswith("auxiliary.")})
    with torch.no_grad():
        torch.testing.assert_close(model(make_images()), plain(make_images()), rtol=0, atol=0)


def test_losses_without_gradients_are_the_same_losses() -> None:
    model = make_relay(weight=0.5).eval()
    trained = model.losses(make_images(), LABELS, functional.cross_entropy)
    with torch.no_grad():
        validated = model.losses(make_images(), LABELS, functional.cross_entropy)
        logits = model.auxiliary(model.backbone(make_images())["c3"])
    assert {n: x.item() for n, x in validated.items()} == pytest.approx({n: x.item() for n, x in trained.items()})
    assert validated["classification"].item() == functional.cross_entropy(model(make_images()), LABELS).item()
    assert validated["auxiliary"].item() == pytest.approx(0.5 * functional.cross_entropy(logits, LABELS).item())


def test_frozen_lowest_layers_need_no_relay() -> None:
    backbone = build_backbone("resnet18", out_features=("c2", "c3"), freeze_at=2)
    model = RelayClassifier(backbone, 3)
    found = backward(model, "classification", "auxiliary")
    assert not part(found, LOWEST)
    assert reached(found) == {name for name, p in model.named_parameters() if p.requires_grad}


def test_feature_beside_the_path_of_the_others_is_refused() -> None:
    body = build_backbone("resnet18", out_features=("c2", "c3", "c4", "c5"))
    model = RelayClassifier(SPP(FPN(body, channels=8), (1,)), 3)  # p6 comes from above, not from p2
    with pytest.raises(ValueError, match="SPP does not make p6 from what it returns as p2, so no gradient can be"):
        model.losses(torch.randn(3, 3, 64, 64), LABELS, functional.cross_entropy)


def test_first_and_last_feature_are_the_default() -> None:
    with torch.device("meta"):
        model = RelayClassifier(build_backbone("cifar_resnet20", out_features=("c1", "c0")), 10)
    assert (model.stop, model.at) == ("c0", "c1")


@pytest.mark.parametrize(
    ("features", "options", "got"),
    [
        (("c4",), {}, "c4 and c4; the backbone has c4, more"),
        (("c2", "c4"), {"stop": "c4", "auxiliary": "c2"}, "c4 and c2; the backbone has c2, c4, more"),
        (("c2", "c4"), {"auxiliary": "c3"}, "c2 and c3; the backbone has c2, c4, more"),
    ],
)
def test_features_in_another_order_are_refused(features: tuple[str, ...], options: dict[str, Any], got: str) -> None:
    with (
        torch.device("meta"),
        pytest.raises(
            ValueError, match=f"stop must be a feature before that of auxiliary, got {got} with out_features"
        ),
    ):
        RelayClassifier(build_backbone("resnet18", out_features=features), 3, **options)

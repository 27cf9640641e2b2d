"""Mirrors detection/classification/model.py."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from backbones.classifier import Classifier, backbone_weights
from backbones.extras.branchynet import BranchyNet
from backbones.extras.relay import RelayClassifier
from backbones.extras.spp import SPP
from backbones.registry import build_backbone
from detection.classification.mixing import Mixing, cut
from detection.classification.model import ImageClassifier
from detection.padded import Regions, Targets
from detection.structures import ImageBatch, Proposals, Target

K = 4
LABELS = (2, 0, 3)
SIZE = (24, 24)
NETWORKS: dict[str, Any] = {
    "classifier": Classifier,
    "spp": lambda backbone, classes: Classifier(SPP(backbone), classes),
    "branchynet": BranchyNet,
    "relay": RelayClassifier,
}


def make_model(kind: str = "classifier", **options: Any) -> Any:
    torch.manual_seed(0)
    backbone = build_backbone("cifar_resnet20", norm="gn", out_features=("c0", "c1"))
    return ImageClassifier(NETWORKS[kind](backbone, K), **options)


def make_batch(*sizes: tuple[int, int], seeds=()) -> ImageBatch:
    generator = torch.Generator().manual_seed(1)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    return ImageBatch.from_images(images, seeds)


def make_targets(*images: tuple[int, ...]) -> Targets:
    def target(labels: tuple[int, ...]) -> Target:
        boxes, ignore = torch.tensor([[0.0, 0.0, 24.0, 24.0]]).expand(len(labels), 4), torch.zeros(len(labels)).bool()
        return Target(boxes=boxes, labels=torch.tensor(labels, dtype=torch.int64), ignore=ignore)

    return Targets.pad([target(labels) for labels in images])


TARGETS = make_targets(*((label,) for label in LABELS))
BATCH = make_batch(SIZE, SIZE, SIZE, seeds=(11, 12, 13))


def loss(model: ImageClassifier, images: ImageBatch = BATCH, targets: Targets = TARGETS) -> Tensor:
    return model(images, targets)["classification"]


def normalised(model: ImageClassifier, images: ImageBatch = BATCH) -> Tensor:
    stats = model.network.input_stats
    return (images.pixels - torch.tensor(stats.mean).view(3, 1, 1)) / torch.tensor(stats.std).view(3, 1, 1)


def mixed_entropy(logits: Tensor, share: float, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy to the labels with this share, and to those of the reversed batch."""
    labels = torch.tensor(LABELS)
    own, other = (cross_entropy(logits, wanted, label_smoothing=smoothing) for wanted in (labels, labels.flip(0)))
    return share * own + (1 - share) * other


def test_smoothing_by_hand() -> None:
    # With all logits 0 and the one of class 1 log 3, the probabilities are 1/6 and 3/6.
    model = make_model(label_smoothing=0.2)
    model.network.fc.weight.data.zero_()
    model.network.fc.bias.data = torch.tensor([0.0, math.log(3), 0.0, 0.0])
    for label, expected in (
        (0, 0.85 * math.log(6) + 0.05 * (math.log(2) + 2 * math.log(6))),
        (1, 0.85 * math.log(2) + 0.05 * 3 * math.log(6)),
    ):
        assert loss(model, make_batch(SIZE), make_targets((label,))).item() == pytest.approx(expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("classifier", ["classification"]),
        ("spp", ["classification"]),
        ("branchynet", ["classification", "exit_c0", "exit_c1"]),
        ("relay", ["classification", "auxiliary"]),
    ],
)
def test_losses_are_torchs_cross_entropy_and_every_parameter_learns(kind: str, names, smoothing: float) -> None:
    model = make_model(kind, label_smoothing=smoothing)
    losses, wanted = model(BATCH, TARGETS), one_hot(torch.tensor(LABELS), K).float()
    assert list(losses) == names
    expected = model.network.losses(
        normalised(model), wanted, lambda x, y: cross_entropy(x, y, label_smoothing=smoothing)
    )
    torch.testing.assert_close(losses, expected)
    torch.stack(list(losses.values())).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    if kind == "classifier":
        logits = model.network(normalised(model))
        expected = cross_entropy(logits, torch.tensor(LABELS), label_smoothing=smoothing)
        torch.testing.assert_close(losses["classification"], expected)
        twice = make_targets(*((label, (label + 1) % K) for label in LABELS))  # the first object of an image counts
        assert torch.equal(loss(model, targets=twice), losses["classification"])


def test_what_no_classifier_learns_from_is_refused() -> None:
    stored = Regions.pad([Proposals(boxes=torch.zeros(0, 4), scores=torch.zeros(0))] * 3)
    for arguments, message in (
        ((make_batch(SIZE, (20, 24), SIZE), TARGETS), r"\[\(20, 24\), \(24, 24\)\].* end data\.augment in"),
        ((BATCH, make_targets((1,), (), (0,))), r"an image lost its object to data\.augment"),
        ((BATCH, TARGETS, stored), r"takes no proposals; leave data\.proposals unset"),
    ):
        with pytest.raises(ValueError, match=message):
            make_model()(*arguments)


def test_mixup_by_hand() -> None:
    model = make_model(mixing=Mixing("mixup", 0.4), label_smoothing=0.1)
    share, pixels = np.random.default_rng(11).beta(0.4, 0.4), normalised(model)  # of the first image's seed
    logits = model.network(share * pixels + (1 - share) * pixels.flip(0))
    torch.testing.assert_close(loss(model), mixed_entropy(logits, share, 0.1))
    loss(model).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    torch.testing.assert_close(model(BATCH), make_model()(BATCH))  # probabilities are of the images as they are


def test_mixup_draws_from_the_seeds_of_the_batch_or_else_from_torch() -> None:
    model, images = make_model(mixing=Mixing("mixup", 1.0)), make_batch(SIZE, SIZE, SIZE)
    first = loss(model)
    torch.rand(3)
    assert torch.equal(loss(model), first)
    assert not torch.equal(loss(model, make_batch(SIZE, SIZE, SIZE, seeds=(2**31 - 1, 12, 13))), first)  # the largest
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(loss(model, images).item())
    assert found[0] == found[1] != found[2]


def test_cutmix_by_hand() -> None:
    model, random = make_model(mixing=Mixing("cutmix", 1.0)), np.random.default_rng(11)
    pixels, share = cut(normalised(model), random.beta(1.0, 1.0), random)
    torch.testing.assert_close(loss(model), mixed_entropy(model.network(pixels), share))


def test_manifold_mixup_mixes_the_image_or_one_of_the_features() -> None:
    model = make_model(mixing=Mixing("manifold", 2.0))
    network, places, seen = model.network, [None, "layer1", "layer2"], set()
    for seed in range(12):
        random = np.random.default_rng(seed)
        share, place = random.beta(2.0, 2.0), places[random.integers(3)]
        seen.add(place)
        x = normalised(model)
        for name in (None, "conv1", "bn1", "act1", "layer1", "layer2"):
            x = x if name is None else network.backbone.get_submodule(name)(x)
            x = share * x + (1 - share) * x.flip(0) if name == place else x
        expected = mixed_entropy(network.fc(network.tail(x)), share)
        torch.testing.assert_close(loss(model, make_batch(SIZE, SIZE, SIZE, seeds=(seed, 1, 2))), expected)
    assert seen == set(places)
    network.backbone.specs["c9"] = network.backbone.specs["c1"]
    with pytest.raises(ValueError, match="no module of CifarResNet returns c9, so manifold_mixup"):
        ImageClassifier(network, mixing=Mixing("manifold", 2.0))


@pytest.mark.parametrize("kind", NETWORKS)
def test_probabilities_and_the_weights_that_are_the_backbones(kind: str) -> None:
    model = make_model(kind).eval()
    found = model(BATCH)
    assert found.shape == (3, K)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3))
    torch.testing.assert_close(found, model.network(normalised(model)).softmax(dim=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(BATCH)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.sum(dim=1), torch.ones(3))
    assert set(model.state_dict()) == {f"network.{name}" for name in model.network.state_dict()}
    body = model.network.backbone.body if kind == "spp" else model.network.backbone
    got, expected = backbone_weights(model.state_dict()), body.state_dict()
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    assert all(name.startswith("layer3.") for name in got.keys() - expected.keys())  # its tail


def test_padding_is_the_mean_colour() -> None:
    model, images = make_model().eval(), make_batch((24, 24), (16, 20))
    pixels = normalised(model, images)
    pixels[1, :, 16:], pixels[1, :, :, 20:] = 0, 0
    torch.testing.assert_close(model(images), model.network(pixels).softmax(dim=1))


def test_a_backbones_weights_include_its_tail_and_nothing_that_only_classifies() -> None:
    names = backbone_weights(nn.ModuleDict({"network": Classifier(build_backbone("resnet18"), K)}).state_dict())
    assert {name.partition(".")[0] for name in names} == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    assert backbone_weights({"backbone.conv1.weight": torch.zeros(1)}) == {}

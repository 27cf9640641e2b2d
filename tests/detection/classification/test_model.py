"""Mirrors detection/classification/model.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

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


def make_network(kind: str = "classifier") -> Classifier:
    torch.manual_seed(0)
    backbone = build_backbone("cifar_resnet20", norm="gn", out_features=("c0", "c1"))
    match kind:
        case "classifier":
            return Classifier(backbone, K)
        case "spp":
            return Classifier(SPP(backbone), K)
        case "branchynet":
            return BranchyNet(backbone, K)
        case _:
            return RelayClassifier(backbone, K)


def make_batch(*sizes: tuple[int, int], seeds: Sequence[int] = ()) -> ImageBatch:
    generator = torch.Generator().manual_seed(1)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    return ImageBatch.from_images(images, seeds)


def target(*labels: int) -> Target:
    count = len(labels)
    boxes = torch.tensor([[0.0, 0.0, 24.0, 24.0]]).expand(count, 4)
    return Target(boxes=boxes, labels=torch.tensor(labels, dtype=torch.int64), ignore=torch.zeros(count).bool())


TARGETS = Targets.pad([target(label) for label in LABELS])
BATCH = make_batch(SIZE, SIZE, SIZE, seeds=(11, 12, 13))


def normalised(model: ImageClassifier, images: ImageBatch = BATCH) -> Tensor:
    stats = model.network.backbone.input_stats
    return (images.pixels - torch.tensor(stats.mean).view(3, 1, 1)) / torch.tensor(stats.std).view(3, 1, 1)


class TestLoss:
    """What a classifier learns by."""

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_equals_torchs_cross_entropy(self, smoothing: float) -> None:
        model = ImageClassifier(make_network(), label_smoothing=smoothing)
        losses = model(BATCH, TARGETS)
        assert list(losses) == ["classification"]
        logits = model.network(normalised(model))
        expected = functional.cross_entropy(logits, torch.tensor(LABELS), label_smoothing=smoothing)
        torch.testing.assert_close(losses["classification"], expected)

    def test_smoothing_by_hand(self) -> None:
        # With all logits 0 and the one of class 1 log 3, the probabilities are 1/6 and 3/6.
        network = make_network()
        nn.init.zeros_(network.fc.weight)
        with torch.no_grad():
            network.fc.bias.copy_(torch.tensor([0.0, math.log(3), 0.0, 0.0]))
        model = ImageClassifier(network, label_smoothing=0.2)
        images = make_batch(SIZE)
        expected = 0.85 * math.log(6) + 0.05 * (math.log(2) + 2 * math.log(6))  # class 0 is right
        assert model(images, Targets.pad([target(0)]))["classification"].item() == pytest.approx(expected)
        expected = 0.85 * math.log(2) + 0.05 * 3 * math.log(6)
        assert model(images, Targets.pad([target(1)]))["classification"].item() == pytest.approx(expected)

    def test_images_of_several_sizes_are_refused(self) -> None:
        batch = make_batch(SIZE, (20, 24), SIZE)
        with pytest.raises(
            ValueError, match=r"sizes \(height, width\) \[\(20, 24\), \(24, 24\)\].* end data\.augment in"
        ):
            ImageClassifier(make_network())(batch, TARGETS)

    @pytest.mark.parametrize(
        ("kind", "names"),
        [
            ("spp", ["classification"]),
            ("branchynet", ["classification", "exit_c0", "exit_c1"]),
            ("relay", ["classification", "auxiliary"]),
        ],
    )
    def test_losses_of_a_network_arrive_by_name(self, kind: str, names: list[str]) -> None:
        model = ImageClassifier(make_network(kind), label_smoothing=0.1)
        losses = model(BATCH, TARGETS)
        assert list(losses) == names
        wanted = functional.one_hot(torch.tensor(LABELS), K).float()
        expected = model.network.losses(
            normalised(model), wanted, lambda x, y: functional.cross_entropy(x, y, label_smoothing=0.1)
        )
        torch.testing.assert_close(losses, expected)

    def test_every_parameter_learns(self) -> None:
        for kind in ("classifier", "branchynet", "relay"):
            model = ImageClassifier(make_network(kind), mixing=Mixing("mixup", 1.0))
            torch.stack(list(model(BATCH, TARGETS).values())).sum().backward()
            assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]

    def test_the_first_object_of_an_image_counts(self) -> None:
        model = ImageClassifier(make_network())
        twice = Targets.pad([target(label, (label + 1) % K) for label in LABELS])
        assert torch.equal(model(BATCH, twice)["classification"], model(BATCH, TARGETS)["classification"])

    def test_image_without_an_object_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"an image lost its object to data\.augment"):
            ImageClassifier(make_network())(BATCH, Targets.pad([target(1), target(), target(0)]))

    def test_proposals_are_refused(self) -> None:
        stored = Regions.pad([Proposals(boxes=torch.zeros(0, 4), scores=torch.zeros(0))] * 3)
        with pytest.raises(ValueError, match=r"takes no proposals; leave data\.proposals unset"):
            ImageClassifier(make_network())(BATCH, TARGETS, stored)

    def test_state_has_the_networks_names_alone(self) -> None:
        names = set(make_network().state_dict())
        assert set(ImageClassifier(make_network()).state_dict()) == {f"network.{name}" for name in names}


class TestMixup:
    """A batch and its mirror image, mixed."""

    def test_by_hand(self) -> None:
        model = ImageClassifier(make_network(), mixing=Mixing("mixup", 0.4), label_smoothing=0.1)
        share = np.random.default_rng(11).beta(0.4, 0.4)  # of the first image's seed
        pixels, labels = normalised(model), torch.tensor(LABELS)
        logits = model.network(share * pixels + (1 - share) * pixels.flip(0))
        expected = share * functional.cross_entropy(logits, labels, label_smoothing=0.1)
        expected += (1 - share) * functional.cross_entropy(logits, labels.flip(0), label_smoothing=0.1)
        torch.testing.assert_close(model(BATCH, TARGETS)["classification"], expected)

    def test_draws_from_the_seed_of_the_batch(self) -> None:
        model = ImageClassifier(make_network(), mixing=Mixing("mixup", 1.0))
        first = model(BATCH, TARGETS)["classification"]
        torch.rand(3)
        assert torch.equal(model(BATCH, TARGETS)["classification"], first)
        others = make_batch(SIZE, SIZE, SIZE, seeds=(2**31 - 1, 12, 13))  # the largest
        assert not torch.equal(model(others, TARGETS)["classification"], first)

    def test_without_seeds_draws_from_torch(self) -> None:
        model, images = ImageClassifier(make_network(), mixing=Mixing("mixup", 1.0)), make_batch(SIZE, SIZE, SIZE)
        found = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            found.append(model(images, TARGETS)["classification"].item())
        assert found[0] == found[1] != found[2]

    def test_probabilities_are_of_the_images_as_they_are(self) -> None:
        torch.testing.assert_close(
            ImageClassifier(make_network(), mixing=Mixing("mixup", 1.0))(BATCH), ImageClassifier(make_network())(BATCH)
        )


class TestOtherMixing:
    """CutMix and manifold mixup."""

    def test_cutmix_by_hand(self) -> None:
        model = ImageClassifier(make_network(), mixing=Mixing("cutmix", 1.0))
        random = np.random.default_rng(11)
        pixels, share = cut(normalised(model), random.beta(1.0, 1.0), random)
        logits, labels = model.network(pixels), torch.tensor(LABELS)
        expected = share * functional.cross_entropy(logits, labels)
        expected += (1 - share) * functional.cross_entropy(logits, labels.flip(0))
        torch.testing.assert_close(model(BATCH, TARGETS)["classification"], expected)

    def test_manifold_mixup_mixes_the_image_or_one_of_the_features(self) -> None:
        model = ImageClassifier(make_network(), mixing=Mixing("manifold", 2.0))
        backbone, places = model.network.backbone, [None, "layer1", "layer2"]
        seen: list[str | None] = []
        for seed in range(12):
            random = np.random.default_rng(seed)
            share, place = random.beta(2.0, 2.0), places[random.integers(3)]
            seen.append(place)
            x = normalised(model)
            for name in (None, "conv1", "bn1", "act1", "layer1", "layer2"):
                x = x if name is None else backbone.get_submodule(name)(x)
                if name == place:
                    x = share * x + (1 - share) * x.flip(0)
            logits, labels = model.network.fc(model.network.tail(x)), torch.tensor(LABELS)
            expected = share * functional.cross_entropy(logits, labels)
            expected += (1 - share) * functional.cross_entropy(logits, labels.flip(0))
            batch = make_batch(SIZE, SIZE, SIZE, seeds=(seed, 1, 2))
            torch.testing.assert_close(model(batch, TARGETS)["classification"], expected)
        assert set(seen) == set(places)

    def test_features_that_no_module_gives_are_refused(self) -> None:
        network = make_network()
        network.backbone.specs["c9"] = network.backbone.specs["c1"]
        with pytest.raises(ValueError, match="no module of CifarResNet returns c9, so manifold_mixup"):
            ImageClassifier(network, mixing=Mixing("manifold", 2.0))


class TestProbabilities:
    """What a classifier answers."""

    @pytest.mark.parametrize("kind", ["classifier", "spp", "branchynet", "relay"])
    def test_sum_to_one_and_are_those_of_the_logits(self, kind: str) -> None:
        model = ImageClassifier(make_network(kind)).eval()
        found = model(BATCH)
        assert found.shape == (3, K)
        torch.testing.assert_close(found.sum(dim=1), torch.ones(3))
        torch.testing.assert_close(found, model.network(normalised(model)).softmax(dim=1))

    def test_padding_is_the_mean_colour(self) -> None:
        model = ImageClassifier(make_network()).eval()
        images = make_batch((24, 24), (16, 20))
        pixels = normalised(model, images)
        pixels[1, :, 16:], pixels[1, :, :, 20:] = 0, 0
        torch.testing.assert_close(model(images), model.network(pixels).softmax(dim=1))

    def test_are_float_in_half_precision(self) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = ImageClassifier(make_network()).eval()(BATCH)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize("kind", ["classifier", "spp", "branchynet", "relay"])
def test_a_backbones_weights_are_found_whatever_ends_the_network(kind: str) -> None:
    network = make_network(kind)
    body = network.backbone.body if isinstance(network.backbone, SPP) else network.backbone
    got, expected = backbone_weights(ImageClassifier(network).state_dict()), body.state_dict()
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    assert all(name.startswith("layer3.") for name in got.keys() - expected.keys())  # its tail


def test_a_backbones_weights_include_its_tail_and_nothing_that_only_classifies() -> None:
    classifier = Classifier(build_backbone("resnet18", norm="gn"), K)
    names = {name for name in backbone_weights(ImageClassifier(classifier).state_dict()) if "." in name}
    assert {name.partition(".")[0] for name in names} == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    assert backbone_weights({"backbone.conv1.weight": torch.zeros(1)}) == {}

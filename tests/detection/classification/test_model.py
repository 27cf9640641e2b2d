"""Mirrors detection/classification/model.py, mixing.py and exits.py; random erasing is a transform of data.augment."""

import math
from functools import partial
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
from backbones.summary import count_multiply_adds
from detection.classification.exits import draw_exits, exit_costs, exit_curve
from detection.classification.mixing import Mixing, blend, cut, cut_box, draw_layer, mixed_output
from detection.classification.model import ImageClassifier
from detection.data.transforms import Augment
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
OTHER_LOSSES = {"branchynet": ("exit_c0", "exit_c1"), "relay": ("auxiliary",)}


def make_model(kind: str = "classifier", **options: Any) -> Any:
    torch.manual_seed(0)
    backbone = build_backbone("cifar_resnet20", norm="gn", out_features=("c0", "c1"))
    return ImageClassifier(NETWORKS[kind](backbone, K), **options)


def make_batch(*sizes: tuple[int, int], seeds=()) -> ImageBatch:
    generator = torch.Generator().manual_seed(1)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    return ImageBatch.from_images(images, seeds)


def make_targets(*images: tuple[int, ...]) -> Targets:
    boxes = [torch.tensor([[0.0, 0.0, 24.0, 24.0]]).expand(len(labels), 4) for labels in images]
    own = zip(boxes, images, strict=True)
    return Targets.pad([Target(box, torch.tensor(labels).long(), torch.zeros(len(box)).bool()) for box, labels in own])


TARGETS = make_targets(*((label,) for label in LABELS))
BATCH = make_batch(SIZE, SIZE, SIZE, seeds=(11, 12, 13))


def loss(model: ImageClassifier, images: ImageBatch = BATCH, targets: Targets = TARGETS) -> Tensor:
    return model(images, targets)["classification"]


def normalised(model: ImageClassifier) -> Tensor:
    stats = model.network.input_stats
    return (BATCH.pixels - torch.tensor(stats.mean).view(3, 1, 1)) / torch.tensor(stats.std).view(3, 1, 1)


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
    six, two = math.log(6), math.log(2)
    for label, expected in ((0, 0.85 * six + 0.05 * (two + 2 * six)), (1, 0.85 * two + 0.05 * 3 * six)):
        assert loss(model, make_batch(SIZE), make_targets((label,))).item() == pytest.approx(expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", NETWORKS)
def test_losses_are_torchs_cross_entropy_and_every_parameter_learns(kind: str, smoothing: float) -> None:
    model = make_model(kind, label_smoothing=smoothing)
    losses, wanted = model(BATCH, TARGETS), one_hot(torch.tensor(LABELS), K).float()
    assert list(losses) == ["classification", *OTHER_LOSSES.get(kind, ())]
    formula = partial(cross_entropy, label_smoothing=smoothing)
    expected = model.network.losses(normalised(model), wanted, formula)
    torch.testing.assert_close(losses, expected)
    torch.stack(list(losses.values())).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    if kind == "classifier":
        logits = model.network(normalised(model))
        torch.testing.assert_close(losses["classification"], formula(logits, torch.tensor(LABELS)))
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


def test_mixup_and_cutmix_by_hand() -> None:
    model = make_model(mixing=Mixing("mixup", 0.4), label_smoothing=0.1)
    share, pixels = np.random.default_rng(11).beta(0.4, 0.4), normalised(model)  # of the first image's seed
    logits = model.network(share * pixels + (1 - share) * pixels.flip(0))
    torch.testing.assert_close(loss(model), mixed_entropy(logits, share, 0.1))
    loss(model).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    torch.testing.assert_close(model(BATCH), make_model()(BATCH))  # probabilities are of the images as they are
    model, random = make_model(mixing=Mixing("cutmix", 1.0)), np.random.default_rng(11)
    pixels, share = cut(normalised(model), random.beta(1.0, 1.0), random)
    torch.testing.assert_close(loss(model), mixed_entropy(model.network(pixels), share))


def test_padding_is_the_mean_colour() -> None:
    model, small = make_model().eval(), BATCH.pixels[0, :, :16, :20]
    pixels = normalised(model)[:2]
    pixels[1] = 0
    pixels[1, :, :16, :20] = normalised(model)[0, :, :16, :20]
    found = model(ImageBatch.from_images([BATCH.pixels[0], small]))
    torch.testing.assert_close(found, model.network(pixels).softmax(dim=1))


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


def test_a_backbones_weights_include_its_tail_and_nothing_that_only_classifies() -> None:
    names = backbone_weights(nn.ModuleDict({"network": Classifier(build_backbone("resnet18"), K)}).state_dict())
    assert {name.partition(".")[0] for name in names} == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    assert backbone_weights({"backbone.conv1.weight": torch.zeros(1)}) == {}


# Mixing and erasing


def test_blend_by_hand_and_output_is_mixed_within_the_context_alone() -> None:
    assert blend(torch.tensor([[1.0], [0.0], [4.0]]), 0.75).flatten().tolist() == [1.75, 0.0, 3.25]
    layer, x = nn.Identity(), torch.tensor([[1.0], [3.0]])
    with mixed_output(layer, 0.25):
        assert layer(x).flatten().tolist() == [2.5, 1.5]
    assert torch.equal(layer(x), x)


def test_shares_and_layers_are_drawn_from_their_distributions() -> None:
    random = np.random.default_rng(0)
    shares = [Mixing("mixup", 0.4).draw_share(random) for _ in range(4000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.1)  # of Beta(a, a)
    drawn = [draw_layer(("layer1", "layer2"), random) for _ in range(3000)]
    assert [drawn.count(name) / 3000 for name in (None, "layer1", "layer2")] == pytest.approx([1 / 3] * 3, abs=0.03)
    assert draw_layer((), random) is None


def test_the_share_of_the_labels_is_that_of_the_area_and_within_the_image_the_one_drawn() -> None:
    random, pixels = np.random.default_rng(0), torch.zeros(2, 3, 20, 30)
    pixels[1] = 1
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        for _ in range(20):
            mixed, kept = cut(pixels, share, random)
            assert mixed[0].eq(0).float().mean().item() == pytest.approx(kept)
            assert mixed[1].eq(1).float().mean().item() == pytest.approx(kept)
    assert pixels[0].eq(0).all()  # its argument stays as it is
    random, areas = np.random.default_rng(0), list[int]()
    for _ in range(200):
        rows, columns = cut_box(0.75, (40, 60), random)
        areas.append((rows.stop - rows.start) * (columns.stop - columns.start))
        assert 0 <= rows.start <= rows.stop <= 40
        assert 0 <= columns.start <= columns.stop <= 60
    assert min(areas) < max(areas) == 20 * 30  # a quarter of the image; those over the border are smaller


def test_random_erasing_fills_one_rectangle_of_the_papers_sizes() -> None:
    # Zhong et al. 2017, "Random Erasing Data Augmentation", section 3.2
    erase = Augment([{"Erasing": {"scale": [0.02, 0.4], "ratio": [0.3, 3.33], "fill": "random", "p": 0.5}}])
    image, areas = np.zeros((64, 64, 3), np.uint8), list[float]()
    for seed in range(300):
        changed = erase.pixels(image, seed=(seed,)).max(axis=2) > 0
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        areas.append(len(rows) * len(columns) / 64**2)
        if len(rows):
            assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert 0.018 < areas[-1] < 0.41  # sides are whole pixels
            assert 0.25 < len(columns) / len(rows) < 4
    assert np.count_nonzero(areas) / len(areas) == pytest.approx(0.5, abs=0.08)
    assert min(area for area in areas if area) < 0.06
    assert max(areas) > 0.3


# Exits


def test_the_curve_of_exits_by_hand() -> None:
    unsure = torch.tensor([[0.1, 0.1], [0.5, 0.2], [0.9, 0.8]])
    right = torch.tensor([[True, False, False], [False, True, True], [False, False, True]])
    nobody, some, everybody = exit_curve(unsure, right, [10, 20, 40], [0.0, 0.3, 2.0])
    assert (nobody.shares, nobody.multiply_adds) == ((0, 0, 1), 40)
    assert nobody.top1 == pytest.approx(2 / 3)
    assert some.shares == pytest.approx((1 / 3, 1 / 3, 1 / 3))  # one by each: all of them right
    assert (some.top1, some.multiply_adds) == (1, pytest.approx(70 / 3))
    assert (everybody.shares, everybody.multiply_adds) == ((1, 0, 0), 10)
    assert everybody.top1 == pytest.approx(1 / 3)
    assert "<svg" in draw_exits([nobody, some, everybody])


def test_costs_are_those_of_the_layers_up_to_each_exit() -> None:
    network = BranchyNet(build_backbone("cifar_resnet20", out_features=("c0", "c1")), 10)
    first, second, last = exit_costs(network, 32)
    with torch.device("meta"):
        whole = count_multiply_adds(Classifier(build_backbone("cifar_resnet20"), 10), (32, 32))
    stage0 = 1024 * 9 * (3 * 16 + 6 * 16 * 16)
    branch0 = 1024 * 9 * 16 * 64 + 64 * 10
    stage1 = 256 * 9 * (16 * 32 + 5 * 32 * 32)
    branch1 = 256 * 9 * 32 * 64 + 64 * 10
    assert first == stage0 + branch0
    assert second == first + stage1 + branch1
    assert last == whole + branch0 + branch1

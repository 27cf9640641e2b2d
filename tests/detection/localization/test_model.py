"""Mirrors detection/localization/model.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backbones.base import Backbone, FeatureSpec, InputStats, Tail
from detection.localization.model import ClassLayers, ClassRPN, RegionClassifier
from detection.model.anchors import AnchorGenerator
from detection.model.box_coder import BoxCoder
from detection.model.matcher import Matcher
from detection.model.normalize import Normalize
from detection.model.rpn import ProposalFilter
from detection.model.sampler import BalancedSampler
from detection.padded import Targets
from detection.structures import ImageBatch, Target

MakeTarget = Callable[..., Target]
K, STRIDE, SIDE = 5, 16, 64
STATS = InputStats(mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 5.0), channel_order="rgb")
CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))


class TinyTail(Tail):
    def __init__(self) -> None:
        super().__init__(in_channels=4, out_channels=4, roi_size=4)

    def forward(self, regions: Tensor) -> Tensor:
        return regions.amax(dim=(2, 3))


class TinyBackbone(Backbone):
    """One strided convolution."""

    def __init__(self) -> None:
        super().__init__({"c5": FeatureSpec(4, STRIDE)}, STATS)
        self.conv = nn.Conv2d(3, 4, STRIDE, stride=STRIDE)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"c5": self.conv(images)}

    def tail(self) -> Tail:
        return TinyTail()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def make_rpn(*, samples: int = 8, post_nms: int = 6, **options: Any) -> ClassRPN:
    return ClassRPN(
        TinyBackbone(),
        AnchorGenerator(STRIDE, sizes=[16.0, 32.0], ratios=[1.0]),
        num_classes=K,
        channels=8,
        matcher=Matcher(0.7, 0.3, match_best=True),
        sampler=BalancedSampler(samples, 0.5),
        keep=ProposalFilter(pre_nms=100, post_nms=post_nms, nms_iou=0.7, min_size=2.0),
        allow_outside=True,
        **options,
    )


def make_images(count: int = 2) -> ImageBatch:
    return ImageBatch.from_images([torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8) for _ in range(count)])


def spread(layers: nn.Module) -> None:
    """Weights large enough for outputs that differ."""
    for parameter in layers.parameters():
        nn.init.normal_(parameter)


def cost(logit: float, wanted: float) -> float:
    """Binary cross-entropy."""
    return math.log1p(math.exp(-logit)) if wanted else math.log1p(math.exp(logit))


class TestNormalize:
    """Pixels as the backbone takes them."""

    def test_each_channel_has_its_own_mean_and_deviation(self) -> None:
        pixels = torch.tensor([12, 24, 40], dtype=torch.uint8).view(1, 3, 1, 1)
        assert Normalize(STATS)(ImageBatch(pixels, torch.tensor([[1, 1]]))).flatten().tolist() == [1.0, 1.0, 2.0]

    def test_bgr(self) -> None:
        pixels = torch.tensor([40, 24, 12], dtype=torch.uint8).view(1, 3, 1, 1)
        stats = InputStats(mean=STATS.mean, std=STATS.std, channel_order="bgr")
        assert Normalize(stats)(ImageBatch(pixels, torch.tensor([[1, 1]]))).flatten().tolist() == [1.0, 1.0, 2.0]

    def test_padding_is_zero(self) -> None:
        images = [torch.full((3, *size), 200, dtype=torch.uint8) for size in ((2, 3), (4, 1))]
        batch = Normalize(STATS)(ImageBatch.from_images(images))
        assert (batch != 0).flatten(1).sum(dim=1).tolist() == [18, 12]
        assert (batch[0, :, :2, :3] != 0).all()
        assert (batch[1, :, :4, :1] != 0).all()


class TestClassLayers:
    """Parts of the whole output."""

    cells, anchors = 6, 3

    @pytest.fixture
    def layers(self) -> ClassLayers:
        layers = ClassLayers(8, num_anchors=self.anchors, num_classes=K)
        spread(layers)
        return layers

    def test_whole_output_is_that_of_1x1_convolutions(self, layers: ClassLayers) -> None:
        hidden = torch.randn(1, 8, 2, 3)
        logits, deltas = layers(hidden[0].permute(1, 2, 0).flatten(0, 1), torch.arange(K))
        for linear, found in ((layers.classes, logits), (layers.deltas, deltas)):
            whole = nn.functional.conv2d(hidden, linear.weight[:, :, None, None], linear.bias)
            expected = whole[0].permute(1, 2, 0).reshape(found.shape)  # cell by cell, then anchor, class, coordinate
            torch.testing.assert_close(found, expected)

    def test_drawn_anchors_equal_those_of_the_whole_output(self, layers: ClassLayers) -> None:
        cells = torch.randn(self.cells, 8)
        logits, deltas = layers(cells, torch.arange(K))
        rows = torch.tensor([17, 0, 4, 4, 9, 12])
        labels = torch.tensor([0, 4, 2, 3, 3, 1])
        vectors, numbers = cells[rows // self.anchors], rows % self.anchors
        torch.testing.assert_close(layers.logits_at(vectors, numbers), logits[rows])
        torch.testing.assert_close(layers.deltas_at(vectors, numbers, labels), deltas[rows, labels])

    @pytest.mark.parametrize("asked", [[2], [4, 0], [3, 1, 2], []])
    def test_asked_classes_equal_those_of_the_whole_output(self, layers: ClassLayers, asked: list[int]) -> None:
        cells, classes = torch.randn(self.cells, 8), torch.tensor(asked, dtype=torch.int64)
        whole, parts = layers(cells, torch.arange(K)), layers(cells, classes)
        for all_classes, some in zip(whole, parts, strict=True):
            torch.testing.assert_close(some, all_classes[:, classes])

    def test_no_drawn_anchor(self, layers: ClassLayers) -> None:
        none = torch.zeros(0, dtype=torch.int64)
        assert layers.logits_at(torch.zeros(0, 8), none).shape == (0, K)
        assert layers.deltas_at(torch.zeros(0, 8), none, none).shape == (0, 4)

    def test_scores_begin_at_one_over_two_k(self) -> None:
        layers = ClassLayers(8, num_anchors=self.anchors, num_classes=K)
        logits, _ = layers(torch.zeros(1, 8), torch.arange(K))
        torch.testing.assert_close(logits.sigmoid(), torch.full((self.anchors, K), 1 / (2 * K)))


class TestRPNLosses:
    """Half of the drawn anchors are positives where there are enough."""

    def constant(self, rpn: ClassRPN, logits: Sequence[float], delta: float) -> ClassRPN:
        """The same outputs at every anchor."""
        for layer in (rpn.layers.classes, rpn.layers.deltas):
            nn.init.zeros_(layer.weight)
        with torch.no_grad():
            rpn.layers.classes.bias.copy_(torch.tensor(logits).repeat(rpn.anchors.num_anchors))
            rpn.layers.deltas.bias.fill_(delta)
        return rpn

    def test_by_hand(self, make_target: MakeTarget) -> None:
        # The object is the anchor of 32 px in the middle of four cells: every anchor of it has IoU < 0.7, the four of
        # IoU 9 / 23 are the best; the small ones inside it have IoU 1/16 ... 1/4.
        logits = [0.5, -1.0, 2.0, 0.0, -0.5]
        rpn = self.constant(make_rpn(smooth_l1_beta=1.0, box_loss_weight=3.0), logits, 0.0)
        losses = rpn(make_images(1), Targets.pad([make_target([[16, 16, 48, 48]], [2])]))
        negative = sum(cost(logit, 0) for logit in logits)
        positive = negative - cost(2.0, 0) + cost(2.0, 1)
        assert losses["rpn_class"].item() == pytest.approx((4 * positive + 4 * negative) / 8, rel=1e-5)
        # Each of the four lies 8 px off in x and in y: deltas of 1/4, no change of size.
        assert losses["rpn_box"].item() == pytest.approx(3 * 4 * 2 * 0.5 * 0.25**2 / 8, rel=1e-5)

    def test_box_loss_is_of_the_objects_own_class(self, make_target: MakeTarget) -> None:
        rpn = make_rpn()
        losses = rpn(make_images(1), Targets.pad([make_target([[16, 16, 48, 48]], [2])]))
        losses["rpn_box"].backward()
        gradient = rpn.layers.deltas.bias.grad
        assert gradient is not None
        per_class = gradient.view(-1, K, 4).abs().sum(dim=(0, 2))
        assert (per_class > 0).tolist() == [False, False, True, False, False]

    def test_class_loss_is_of_all_classes(self, make_target: MakeTarget) -> None:
        rpn = make_rpn()
        rpn(make_images(1), Targets.pad([make_target([[16, 16, 48, 48]], [2])]))["rpn_class"].backward()
        gradient = rpn.layers.classes.bias.grad
        assert gradient is not None
        assert (gradient.view(-1, K).sum(dim=0) > 0).tolist() == [True, True, False, True, True]

    def test_no_object(self, make_target: MakeTarget) -> None:
        logits = [0.5, -1.0, 2.0, 0.0, -0.5]
        losses = self.constant(make_rpn(), logits, 0.0)(make_images(2), Targets.pad([make_target([])] * 2))
        assert losses["rpn_class"].item() == pytest.approx(sum(cost(logit, 0) for logit in logits), rel=1e-5)
        assert losses["rpn_box"].item() == 0

    def test_images_do_not_mix(self, make_target: MakeTarget) -> None:
        # With every anchor drawn nothing is left to chance, and the joint loss is the mean of the two.
        rpn = make_rpn(samples=64)
        spread(rpn.layers)
        images = make_images(2)
        targets = [make_target([[0, 0, 32, 32]], [1]), make_target([[24, 24, 56, 56], [0, 0, 16, 16]], [3, 3])]
        single = [ImageBatch(images.pixels[i : i + 1], images.sizes[i : i + 1]) for i in (0, 1)]
        usable = torch.ones(1, 32, dtype=torch.bool)
        anchors, padded = rpn.anchors(4, 4)[None], [Targets.pad([target]) for target in targets]
        matches = [rpn.matcher(anchors, target, usable) for target in padded]
        matched = [int((found.positive | found.negative).sum()) for found in matches]
        joint = rpn(images, Targets.pad(targets))
        parts = [rpn(image, target) for image, target in zip(single, padded, strict=True)]
        for name, value in joint.items():
            expected = sum(n * part[name].item() for n, part in zip(matched, parts, strict=True)) / sum(matched)
            assert value.item() == pytest.approx(expected, rel=1e-4)

    def test_the_whole_output_is_never_made(self, monkeypatch: pytest.MonkeyPatch, make_target: MakeTarget) -> None:
        def refuse(*_: Any) -> None:
            raise AssertionError("the layers ran on a whole map")

        monkeypatch.setattr(ClassLayers, "forward", refuse)
        rpn = make_rpn()
        losses = rpn(make_images(1), Targets.pad([make_target([[16, 16, 48, 48]], [2])]))
        sum(losses.values(), torch.zeros(())).backward()
        assert all(parameter.grad is not None for parameter in rpn.parameters())

    def test_bfloat16(self, make_target: MakeTarget) -> None:
        rpn = make_rpn()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = rpn(make_images(1), Targets.pad([make_target([[16, 16, 48, 48]], [2])]))
        assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())


class TestPropose:
    """Boxes of the classes that are asked for."""

    @pytest.fixture
    def rpn(self) -> ClassRPN:
        rpn = make_rpn()
        spread(rpn.layers.classes)
        return rpn

    def test_each_class_has_its_own_best_boxes(self, rpn: ClassRPN) -> None:
        images, classes = make_images(2), torch.tensor([4, 1])
        hidden = rpn.hidden(images)
        both = rpn.propose(hidden, images.sizes, [classes, classes[1:]])
        alone = rpn.propose(hidden, images.sizes, [classes[:1], classes[1:]])
        assert both[0].labels.tolist() == [4] * 6 + [1] * 6
        assert torch.equal(both[0].boxes[:6], alone[0].boxes)
        assert torch.equal(both[1].boxes, alone[1].boxes)
        assert both[1].labels.tolist() == [1] * 6

    def test_are_sorted_and_inside_and_scored_by_their_class(self, rpn: ClassRPN) -> None:
        images = make_images(1)
        hidden = rpn.hidden(images)
        (found,) = rpn.propose(hidden, images.sizes, [torch.tensor([3])])
        logits, _ = rpn.layers(hidden[0].flatten(1).T, torch.tensor([3]))
        assert found.scores[0] == logits.sigmoid().max()
        assert torch.equal(found.scores, found.scores.sort(descending=True).values)
        assert found.boxes.min() >= 0
        assert found.boxes.max() <= SIDE

    def test_no_class(self, rpn: ClassRPN) -> None:
        images = make_images(1)
        (found,) = rpn.propose(rpn.hidden(images), images.sizes, [torch.zeros(0, dtype=torch.int64)])
        assert (len(found), found.boxes.shape) == (0, (0, 4))

    def test_padding_holds_no_box(self, rpn: ClassRPN) -> None:
        images = ImageBatch.from_images([torch.zeros(3, 32, 48, dtype=torch.uint8), make_images(1).pixels[0]])
        found, _ = rpn.propose(rpn.hidden(images), images.sizes, [torch.tensor([0])] * 2)
        assert found.boxes[:, 2].max() <= 48
        assert found.boxes[:, 3].max() <= 32


class TestRegionClassifier:
    """The R-CNN; each image of a batch is one region."""

    def make(self, **options: Any) -> RegionClassifier:
        return RegionClassifier(TinyBackbone(), num_classes=K, coder=CODER, **options)

    def test_losses_by_hand(self, make_target: MakeTarget) -> None:
        model = self.make(smooth_l1_beta=1.0, box_loss_weight=2.0)
        logits = [0.5, -1.0, 2.0, 0.0, -0.5]
        for layer in (model.classes, model.deltas):
            nn.init.zeros_(layer.weight)
        with torch.no_grad():
            model.classes.bias.copy_(torch.tensor(logits))
            model.deltas.bias.zero_()
        # The object is as large as the region and lies 3.2 px to its right: dx = 10 * 3.2 / 64 = 0.5.
        targets = [make_target([]), make_target([[3.2, 0, 67.2, 64]], [1]), make_target([])]
        losses = model(make_images(3), Targets.pad(targets))
        negative = sum(cost(logit, 0) for logit in logits)
        positive = negative - cost(-1.0, 0) + cost(-1.0, 1)
        assert losses["rcnn_class"].item() == pytest.approx((2 * negative + positive) / 3, rel=1e-5)
        assert losses["rcnn_box"].item() == pytest.approx(2 * 0.5 * 0.5**2 / 3, rel=1e-4)

    def test_no_positive(self, make_target: MakeTarget) -> None:
        losses = self.make()(make_images(2), Targets.pad([make_target([])] * 2))
        assert losses["rcnn_box"].item() == 0
        # Scores begin at about 1 / 2K.
        assert losses["rcnn_class"].item() == pytest.approx(-K * math.log(1 - 1 / (2 * K)), rel=0.3)

    def test_prediction_is_of_the_asked_class_and_in_the_regions_pixels(self) -> None:
        model = self.make()
        spread(model.classes)
        images, labels = make_images(2), torch.tensor([3, 0])
        regions = torch.tensor([[100.0, 40.0, 140.0, 120.0], [0.0, 0.0, 64.0, 64.0]])
        scores, boxes = model.predict(images, regions, labels)
        whole = torch.tensor([0.0, 0.0, 64.0, 64.0]).expand(2, 4)
        for label in range(K):
            _, in_region = model.predict(images, whole, torch.full((2,), label))
            rows = labels == label
            factor = (regions[:, 2:] - regions[:, :2]).repeat(1, 2) / 64
            torch.testing.assert_close(boxes[rows], (in_region * factor + regions[:, :2].repeat(1, 2))[rows])
        vectors = model.tail(model.backbone(model.normalize(images))["c5"])
        torch.testing.assert_close(scores, model.classes(vectors)[[0, 1], labels].sigmoid())

    def test_learns_where_the_object_is(self, make_target: MakeTarget) -> None:
        # Red regions show an object further left, blue ones an object of another class further down.
        pixels = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
        pixels[0, 0], pixels[1, 2] = 255, 255
        images, targets = (
            ImageBatch(pixels, torch.full((2, 2), SIDE)),
            [make_target([[-6.4, 0, 57.6, 64]], [0]), make_target([[0, 6.4, 64, 70.4]], [1])],
        )
        model = self.make(smooth_l1_beta=1.0)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(150):
            optimizer.zero_grad()
            sum(model(images, Targets.pad(targets)).values(), torch.zeros(())).backward()
            optimizer.step()
        regions = torch.tensor([[0.0, 0.0, 64.0, 64.0]] * 2)
        scores, boxes = model.predict(images, regions, torch.tensor([0, 1]))
        torch.testing.assert_close(boxes, torch.cat([target.boxes for target in targets]), atol=2.0, rtol=0)
        assert scores.min() > 0.8

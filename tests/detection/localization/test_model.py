"""Mirrors detection/localization/model.py."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backbones.base import Backbone, FeatureSpec, InputStats, Tail
from detection.localization.model import ClassLayers, ClassRPN, RegionClassifier
from detection.model.anchors import AnchorGenerator
from detection.model.box_coder import BoxCoder
from detection.model.matcher import Matcher
from detection.model.rpn import ProposalFilter
from detection.model.sampler import BalancedSampler
from detection.padded import Targets
from detection.structures import ImageBatch

K, STRIDE, SIDE = 5, 16, 64
LOGITS = [0.5, -1.0, 2.0, 0.0, -0.5]


class TinyTail(Tail):
    def forward(self, regions: Tensor) -> Tensor:
        return regions.amax(dim=(2, 3))


class TinyBackbone(Backbone):
    def __init__(self) -> None:
        stats = InputStats(mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 5.0), channel_order="rgb")
        super().__init__({"c5": FeatureSpec(4, STRIDE)}, stats)
        self.conv = nn.Conv2d(3, 4, STRIDE, stride=STRIDE)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"c5": self.conv(images)}

    def tail(self) -> Tail:
        return TinyTail(in_channels=4, out_channels=4, roi_size=4)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def make_rpn(*, samples: int = 8, **options: Any) -> ClassRPN:
    parts: Any = {"matcher": Matcher(0.7, 0.3, match_best=True), "sampler": BalancedSampler(samples, 0.5)}
    keep = ProposalFilter(pre_nms=100, post_nms=6, nms_iou=0.7, min_size=2.0)
    anchors = AnchorGenerator(STRIDE, sizes=[16.0, 32.0], ratios=[1.0])
    parts |= {"num_classes": K, "channels": 8, "keep": keep, "allow_outside": True}
    return ClassRPN(TinyBackbone(), anchors, **parts, **options)


def make_images(count: int = 2) -> ImageBatch:
    return ImageBatch.from_images([torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8) for _ in range(count)])


def spread(layers: nn.Module) -> None:
    """Weights large enough for outputs that differ."""
    for parameter in layers.parameters():
        nn.init.normal_(parameter)


def constant(layers: Any, repeats: int = 1) -> None:
    """The same logits and no deltas at every anchor or region."""
    for layer in (layers.classes, layers.deltas):
        nn.init.zeros_(layer.weight)
    layers.classes.bias.data = torch.tensor(LOGITS).repeat(repeats)
    nn.init.zeros_(layers.deltas.bias)


def cost(positive: int | None) -> float:
    """Binary cross-entropy of LOGITS, of which one is wanted."""
    return sum(math.log1p(math.exp(-logit if row == positive else logit)) for row, logit in enumerate(LOGITS))


class TestClassLayers:
    def test_drawn_anchors_and_asked_classes_equal_the_whole_output_of_1x1_convolutions(self) -> None:
        layers, hidden = ClassLayers(8, num_anchors=3, num_classes=K), torch.randn(1, 8, 2, 3)
        spread(layers)
        cells = hidden[0].permute(1, 2, 0).flatten(0, 1)
        whole = logits, deltas = layers(cells, torch.arange(K))
        for linear, found in ((layers.classes, logits), (layers.deltas, deltas)):
            expected = nn.functional.conv2d(hidden, linear.weight[:, :, None, None], linear.bias)
            # cell by cell, then anchor, class, coordinate
            torch.testing.assert_close(found, expected[0].permute(1, 2, 0).reshape(found.shape))
        for asked in ([2], [4, 0], [3, 1, 2], []):
            classes = torch.tensor(asked, dtype=torch.int64)
            torch.testing.assert_close(layers(cells, classes), tuple(part[:, classes] for part in whole))
        none = torch.zeros(0, dtype=torch.int64)
        for rows, labels in ((torch.tensor([17, 0, 4, 4, 9, 12]), torch.tensor([0, 4, 2, 3, 3, 1])), (none, none)):
            torch.testing.assert_close(layers.logits_at(cells[rows // 3], rows % 3), logits[rows])
            torch.testing.assert_close(layers.deltas_at(cells[rows // 3], rows % 3, labels), deltas[rows, labels])
        # Scores begin at 1 / 2K.
        first, _ = ClassLayers(8, num_anchors=3, num_classes=K)(torch.zeros(1, 8), torch.arange(K))
        torch.testing.assert_close(first.sigmoid(), torch.full((3, K), 1 / (2 * K)))


class TestRPNLosses:
    def test_by_hand(self, make_target) -> None:
        # The object is the anchor of 32 px in the middle of four cells: every anchor of it has IoU < 0.7, the four of
        # IoU 9 / 23 are the best; the small ones inside it have IoU 1/16 ... 1/4.
        rpn = make_rpn(smooth_l1_beta=1.0, box_loss_weight=3.0)
        constant(rpn.layers, rpn.anchors.num_anchors)
        losses = rpn(make_images(1), Targets.pad([make_target([[16, 16, 48, 48]], [2])]))
        assert losses["rpn_class"].item() == pytest.approx((4 * cost(2) + 4 * cost(None)) / 8, rel=1e-5)
        # Each of the four lies 8 px off in x and in y: deltas of 1/4, no change of size.
        assert losses["rpn_box"].item() == pytest.approx(3 * 4 * 2 * 0.5 * 0.25**2 / 8, rel=1e-5)
        losses = rpn(make_images(2), Targets.pad([make_target()] * 2))
        assert losses["rpn_class"].item() == pytest.approx(cost(None), rel=1e-5)
        assert losses["rpn_box"].item() == 0

    def test_all_classes_learn_but_boxes_of_the_own_and_nothing_whole_is_made(self, make_target, monkeypatch) -> None:
        monkeypatch.delattr(ClassLayers, "forward")
        rpn, targets = make_rpn(), Targets.pad([make_target([[16, 16, 48, 48]], [2])])
        losses = rpn(make_images(1), targets)
        classes, deltas = rpn.layers.classes.bias, rpn.layers.deltas.bias
        (box,) = torch.autograd.grad(losses["rpn_box"], deltas, retain_graph=True)
        assert (box.view(-1, K, 4).abs().sum(dim=(0, 2)) > 0).tolist() == [False, False, True, False, False]
        (of_class,) = torch.autograd.grad(losses["rpn_class"], classes, retain_graph=True)
        assert (of_class.view(-1, K).sum(dim=0) > 0).tolist() == [True, True, False, True, True]
        torch.autograd.grad(losses["rpn_class"] + losses["rpn_box"], list(rpn.parameters()))  # all have a part
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = rpn(make_images(1), targets)
        assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())

    def test_images_do_not_mix(self, make_target) -> None:
        # With every anchor drawn nothing is left to chance, and the joint loss is the mean of the two.
        rpn, images = make_rpn(samples=64), make_images(2)
        spread(rpn.layers)
        targets = [make_target([[0, 0, 32, 32]], [1]), make_target([[24, 24, 56, 56], [0, 0, 16, 16]], [3, 3])]
        joint, counts, alone = rpn(images, Targets.pad(targets)), [], []
        for row, target in enumerate(targets):
            own = Targets.pad([target])
            found = rpn.matcher(rpn.anchors(4, 4)[None], own, torch.ones(1, 32, dtype=torch.bool))
            counts.append(int((found.positive | found.negative).sum()))
            alone.append(rpn(ImageBatch(images.pixels[row : row + 1], images.sizes[row : row + 1]), own))
        for name, value in joint.items():
            expected = sum(n * part[name].item() for n, part in zip(counts, alone, strict=True)) / sum(counts)
            assert value.item() == pytest.approx(expected, rel=1e-4)


class TestPropose:
    @pytest.fixture
    def rpn(self) -> ClassRPN:
        rpn = make_rpn()
        spread(rpn.layers.classes)
        return rpn

    def test_each_class_has_its_own_best_boxes_in_the_image_and_not_in_its_padding(self, rpn) -> None:
        images, classes = make_images(2), torch.tensor([4, 1])
        hidden = rpn.hidden(images)
        both = rpn.propose(hidden, images.sizes, [classes, classes[1:]])
        alone = rpn.propose(hidden, images.sizes, [classes[:1], classes[1:]])
        assert [image.labels.tolist() for image in both] == [[4] * 6 + [1] * 6, [1] * 6]
        assert torch.equal(both[0].boxes[:6], alone[0].boxes)
        assert torch.equal(both[1].boxes, alone[1].boxes)
        logits, _ = rpn.layers(hidden[0].flatten(1).T, classes[:1])
        assert alone[0].scores[0] == logits.sigmoid().max()
        assert (alone[0].scores.diff() <= 0).all()
        none = rpn.propose(hidden, images.sizes, [classes[:0]] * 2)
        assert [image.boxes.shape for image in none] == [(0, 4)] * 2
        images = ImageBatch.from_images([torch.zeros(3, 32, 48, dtype=torch.uint8), make_images(1).pixels[0]])
        found = rpn.propose(rpn.hidden(images), images.sizes, [torch.tensor([0])] * 2)
        for image, (height, width) in zip(found, images.size_list(), strict=True):
            assert image.boxes.min() >= 0
            assert (image.boxes[:, 2:] <= torch.tensor([width, height])).all()


class TestRegionClassifier:
    def make(self, **options: Any) -> RegionClassifier:
        return RegionClassifier(TinyBackbone(), num_classes=K, coder=BoxCoder((10.0, 10.0, 5.0, 5.0)), **options)

    def test_losses_by_hand(self, make_target) -> None:
        model = self.make(smooth_l1_beta=1.0, box_loss_weight=2.0)
        # Scores begin at about 1 / 2K.
        losses = model(make_images(2), Targets.pad([make_target()] * 2))
        assert losses["rcnn_box"].item() == 0
        assert losses["rcnn_class"].item() == pytest.approx(-K * math.log(1 - 1 / (2 * K)), rel=0.3)
        constant(model)
        # The object is as large as the region and lies 3.2 px to its right: dx = 10 * 3.2 / 64 = 0.5.
        targets = [make_target(), make_target([[3.2, 0, 67.2, 64]], [1]), make_target()]
        losses = model(make_images(3), Targets.pad(targets))
        assert losses["rcnn_class"].item() == pytest.approx((2 * cost(None) + cost(1)) / 3, rel=1e-5)
        assert losses["rcnn_box"].item() == pytest.approx(2 * 0.5 * 0.5**2 / 3, rel=1e-4)

    def test_prediction_is_of_the_asked_class_and_in_the_regions_pixels(self) -> None:
        model, images, labels = self.make(), make_images(2), torch.tensor([3, 0])
        spread(model.classes)
        regions = torch.tensor([[100.0, 40.0, 140.0, 120.0], [0.0, 0.0, 64.0, 64.0]])
        scores, boxes = model.predict(images, regions, labels)
        _, in_region = model.predict(images, torch.tensor([0.0, 0.0, 64.0, 64.0]).expand(2, 4), labels)
        factor = (regions[:, 2:] - regions[:, :2]).repeat(1, 2) / 64
        torch.testing.assert_close(boxes, in_region * factor + regions[:, :2].repeat(1, 2))
        vectors = model.tail(model.backbone(model.normalize(images))["c5"])
        torch.testing.assert_close(scores, model.classes(vectors)[[0, 1], labels].sigmoid())

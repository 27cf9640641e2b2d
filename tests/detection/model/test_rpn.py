"""Mirrors detection/model/rpn.py; the order of RPNHead's output is tested in test_anchors.py."""

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.rpn import RegionProposalNetwork

from detection.model.anchors import AnchorGenerator
from detection.model.box_coder import BoxCoder
from detection.model.matcher import Matcher
from detection.model.rpn import RPN, ProposalFilter, RPNHead, places
from detection.model.sampler import BalancedSampler
from detection.padded import Targets
from detection.structures import Proposals

BETA = 1 / 9
PADDED = (96, 128)  # only rounded anchors look at it


class FixedHead(RPNHead):
    """Says the same of every feature map: zeros unless said."""

    def __init__(self, logits: Tensor, deltas: Tensor | None = None) -> None:
        super().__init__(1, channels=1, num_anchors=1)
        self.logits = nn.Parameter(logits)
        self.wanted = nn.Parameter(torch.zeros(*logits.shape, 4) if deltas is None else deltas)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits, self.wanted


def make_filter(**options: Any) -> ProposalFilter:
    return ProposalFilter(**{"pre_nms": 1000, "post_nms": 1000, "nms_iou": 0.7, "min_size": 0.0, **options})


def make_rpn(head: RPNHead, *, size: float = 16.0, samples: int = 256, **options: Any) -> RPN:
    """One square anchor per cell, stride 16."""
    parts = {"matcher": Matcher(0.7, 0.3, match_best=True), "sampler": BalancedSampler(samples, 0.5)}
    filters = {"train_filter": make_filter(), "test_filter": make_filter()}
    anchors = [AnchorGenerator(16, sizes=[size], ratios=[1.0])]
    return RPN(anchors, head, **cast(dict[str, Any], {**parts, **filters, "smooth_l1_beta": BETA, **options}))


def propose(rpn: RPN, feature: Tensor, *sizes: tuple[int, int]) -> list[Proposals]:
    return rpn([feature], torch.tensor(sizes), PADDED).ragged()


def losses_of(rpn: RPN, feature: Tensor, sizes: Any, targets: Any, seeds: Any = ()) -> tuple[list[Proposals], Any]:
    """Training proposals of each image, and the losses; the seeds are 0, 1, ... unless said."""
    drawn = torch.tensor(seeds or range(len(targets)))
    proposals, losses = rpn.losses([feature], torch.tensor(sizes), PADDED, Targets.pad(targets), drawn)
    return proposals.ragged(), losses


def gradients(losses: dict[str, Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(torch.stack(list(losses.values())).sum(), inputs, allow_unused=True)


def softplus(x: float) -> float:
    """Cross-entropy of a logit x whose label is 0; of -x whose label is 1."""
    return math.log1p(math.exp(x))


@pytest.mark.parametrize("seed", range(3))
def test_proposals_from_random_logits_and_deltas_are_torchvisions(seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, deltas = torch.randn(1, 432, generator=generator), 0.3 * torch.randn(1, 432, 4, generator=generator)
    rpn = make_rpn(FixedHead(logits, deltas), test_filter=make_filter(pre_nms=200, post_nms=50, min_size=10.0))
    rpn.anchors = nn.ModuleList([anchors := AnchorGenerator(16, sizes=[16.0, 32.0, 64.0], ratios=[0.5, 1.0, 2.0])])
    (found,) = propose(rpn, torch.zeros(1, 1, 6, 8), (90, 120))
    most: Any = {"pre_nms_top_n": {"testing": 200}, "post_nms_top_n": {"testing": 50}, "nms_thresh": 0.7}
    theirs = RegionProposalNetwork(cast(Any, None), cast(Any, None), 0.7, 0.3, 256, 0.5, **most).eval()
    theirs.min_size = 10.0
    decoded = BoxCoder().decode(deltas, anchors(6, 8))
    (boxes,), (scores,) = theirs.filter_proposals(decoded, logits.flatten(), [(90, 120)], [432])
    torch.testing.assert_close((found.boxes, found.scores.sigmoid()), (boxes, scores))


def test_the_best_of_all_levels_are_kept_whose_boxes_are_no_rivals_and_not_empty() -> None:
    boxes, sizes = torch.tensor([[[[-20.0, 0, -5, 50], [3, 3, 3, 9], [100, 0, 130, 10]]]]), torch.tensor([[100, 100]])
    (none,) = make_filter(min_size=0)(boxes, torch.zeros(1, 1, 3), sizes).ragged()
    assert (none.boxes.shape, none.scores.shape) == ((0, 4), (0,))
    # Twice the same two boxes, of IoU 0.8, and on the second level a third.
    twice, far = [[0.0, 0, 10, 10], [0, 0, 10, 8]], [50.0, 50, 60, 60]
    boxes = torch.tensor([[[*twice, [0.0] * 4], [*twice, far]]])
    for most in (2, 1000):
        logits = torch.tensor([[[0.2, 0.9, -torch.inf], [0.8, 0.3, -4.0]]])
        (kept,) = make_filter(post_nms=most)(boxes, logits, sizes).ragged()
        torch.testing.assert_close(kept.scores, torch.tensor([0.9, 0.8, -4.0])[:most])
        torch.testing.assert_close(kept.boxes, torch.tensor([twice[1], twice[0], far])[:most])


class TestLosses:
    # Three anchors side by side in an image of 16 x 48; the object is two pixels right of the first.
    SIZES, FEATURE, LOGITS = ((16, 48),), torch.zeros(1, 1, 1, 3), (0.4, -0.3, 1.1)
    OBJECT = ((2.0, 0, 18, 16),)  # IoU 14 / 18 with the first anchor, 1 / 15 with the second

    def head(self, images: int = 1) -> FixedHead:
        deltas = torch.zeros(images, 3, 4)
        deltas[:, 1:] = 100  # of negatives, which have no box loss
        return FixedHead(torch.tensor([self.LOGITS] * images), deltas)

    @pytest.mark.parametrize(
        ("objects", "ignore", "sizes", "options", "negatives", "box"),
        [
            (OBJECT, (), (16, 48), {}, (-0.4, -0.3, 1.1), (2 / 16 - BETA / 2) / 3),
            (OBJECT, (), (16, 48), {"box_loss_weight": 3.0, "smooth_l1_beta": 1.0}, (-0.4, -0.3, 1.1), 0.5 / 64),
            ((), (), (16, 48), {}, LOGITS, 0),
            (((0.0, 0, 30, 16),), (True,), (16, 48), {}, (1.1,), 0),  # in an ignored object is no negative
            (OBJECT, (), (15, 48), {}, (), 0),  # no anchor lies inside
        ],
    )
    def test_by_hand(self, objects, ignore, sizes, options, negatives, box, make_target) -> None:
        rpn = make_rpn(head := self.head(), **options)
        _, losses = losses_of(rpn, self.FEATURE, [sizes], [make_target(objects, ignore=ignore)])
        assert list(losses) == ["rpn_objectness", "rpn_box"]
        objectness = sum(map(softplus, negatives)) / max(1, len(negatives))
        assert losses["rpn_objectness"].item() == pytest.approx(objectness, rel=1e-6)
        assert losses["rpn_box"].item() == pytest.approx(box, rel=1e-6)
        logits, deltas = gradients(losses, head.logits, head.wanted)
        assert ((logits != 0).sum(), deltas.any()) == (len(negatives), box > 0)

    def test_all_sampled_anchors_of_the_batch_weigh_the_same(self, make_target) -> None:
        # In the second image, 32 pixels wide, the third anchor lies outside: five anchors in all.
        targets = [make_target(self.OBJECT), make_target()]
        _, losses = losses_of(make_rpn(self.head(2)), torch.zeros(2, 1, 1, 3), [(16, 48), (16, 32)], targets)
        objectness = softplus(-0.4) + softplus(-0.3) + softplus(1.1) + softplus(0.4) + softplus(-0.3)
        assert losses["rpn_objectness"].item() == pytest.approx(objectness / 5, rel=1e-6)
        assert losses["rpn_box"].item() == pytest.approx((2 / 16 - BETA / 2) / 5, rel=1e-6)

    def test_proposals_carry_no_gradient_and_pass_the_training_filter(self, make_target) -> None:
        head = FixedHead(torch.tensor([self.LOGITS]))
        rpn = make_rpn(head, train_filter=make_filter(post_nms=2), test_filter=make_filter(post_nms=1))
        (proposals,), _ = losses_of(rpn, self.FEATURE, self.SIZES, [make_target(self.OBJECT)])
        assert (len(proposals), len(propose(rpn, self.FEATURE, *self.SIZES)[0])) == (2, 1)
        assert not proposals.boxes.requires_grad
        assert not proposals.scores.requires_grad


def drawn_of(shape: tuple[int, int], sizes, targets, seeds, **options: Any) -> list[list[list[int]]]:
    """The cells of each image whose anchor is drawn, in maps of this shape."""
    head = FixedHead(torch.zeros(len(seeds), shape[0] * shape[1]))
    _, losses = losses_of(make_rpn(head, **options), torch.zeros(len(seeds), 1, *shape), sizes, targets, seeds)
    return [row.view(shape).nonzero().tolist() for row in gradients(losses, head.logits)[0]]


@pytest.mark.parametrize("allow_outside", [False, True])
def test_the_padding_of_a_batch_changes_no_draw(allow_outside, make_target) -> None:
    draws = []
    for shape in ((6, 8), (6, 11), (9, 8), (20, 30)):
        targets = [make_target([[30.0, 30, 50, 50]]), make_target([[0.0, 0, 16, 16]] * (shape[0] - 5))]
        sizes, options = [(96, 128), (90, 100)], {"samples": 8, "allow_outside": allow_outside}
        draws.append(drawn_of(shape, sizes, targets, [5, 6], **options)[0])
    assert len(draws[0]) == 8
    assert draws == [draws[0]] * 4


def test_a_seed_decides_which_anchors_are_drawn(make_target) -> None:
    def drawn(*seeds: int) -> list[list[list[int]]]:
        return drawn_of((6, 8), [(96, 128)] * 2, [make_target()] * 2, seeds, samples=8)

    assert drawn(3, 4) == drawn(4, 3)[::-1]
    first, second = drawn(3, 3)
    assert first == second == drawn(3, 4)[0] != drawn(3, 4)[1]


@pytest.mark.parametrize(
    ("allow_outside", "size", "side", "trained"),
    [
        (False, (48, 48), 32.0, [4]),  # anchors of 32 pixels at 8, 24 and 40: only the middle one lies inside
        (False, (47, 48), 32.0, [4]),
        (False, (39, 48), 32.0, []),
        (True, (48, 48), 32.0, list(range(9))),
        (False, (48, 48), 16.0, list(range(9))),  # the border itself is inside
    ],
)
def test_anchors_that_cross_the_border_are_not_trained_on(allow_outside, size, side, trained, make_target) -> None:
    options = {"size": side, "allow_outside": allow_outside, "matcher": Matcher(0.7, 0.5)}
    (cells,) = drawn_of((3, 3), [size], [make_target([[10.0, 10, 40, 40]])], [0], **options)
    assert [3 * row + column for row, column in cells] == trained


def test_head(make_target) -> None:
    """One row per anchor, in float32 under autocast; it starts as the paper says, and all of it learns."""
    torch.manual_seed(0)
    head = RPNHead(64, channels=128, num_anchors=9)
    for layer in (head.conv, head.objectness, head.deltas):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert layer.bias is not None
        assert not layer.bias.any()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, deltas = head(torch.rand(2, 64, 3, 5))
    assert (logits.shape, deltas.shape) == ((2, 3 * 5 * 9), (2, 3 * 5 * 9, 4))
    assert logits.dtype == deltas.dtype == torch.float32
    head, feature = RPNHead(4, channels=8, num_anchors=1), torch.rand(1, 4, 3, 3, requires_grad=True)
    _, losses = losses_of(make_rpn(head), feature, [(48, 48)], [make_target([[2.0, 0, 18, 16]])])
    assert all(gradient.any() for gradient in gradients(losses, feature, *head.parameters()))


def test_places_tell_anchors_apart_and_do_not_depend_on_the_padding() -> None:
    levels = [AnchorGenerator(stride, sizes=[stride * 8.0], ratios=[0.5, 1.0, 2.0]) for stride in (4, 8, 16)]

    def numbers(height: int, width: int) -> list[int]:
        return places(torch.cat([level(height // level.stride, width // level.stride) for level in levels])).tolist()

    large = numbers(256, 512)
    assert set(numbers(128, 160)) <= set(large)
    assert all(0 <= number < 2**31 for number in large)
    assert len(set(large)) > 0.999 * len(large)  # two of 2**31 may meet

"""Mirrors detection/model/rpn.py; the order of RPNHead's output is tested in test_anchors.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou

from detection.model.anchors import AnchorGenerator
from detection.model.box_coder import BoxCoder
from detection.model.matcher import Matcher
from detection.model.rpn import RPN, ProposalFilter, RPNHead, places
from detection.model.sampler import BalancedSampler
from detection.model.select import as_on_gpu
from detection.padded import Targets
from detection.structures import Proposals, Target

BETA = 1 / 9
PADDED = (96, 128)  # only rounded anchors look at it


class FixedHead(RPNHead):
    """Says the same of every feature map."""

    def __init__(self, logits: Tensor, deltas: Tensor) -> None:
        super().__init__(1, channels=1, num_anchors=1)
        self.logits, self.wanted = nn.Parameter(logits), nn.Parameter(deltas)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits, self.wanted


def make_target(boxes: Sequence[Sequence[float]], ignore: Sequence[bool] | None = None) -> Target:
    return Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.zeros(len(boxes), dtype=torch.int64),
        ignore=torch.tensor(ignore or [False] * len(boxes), dtype=torch.bool),
    )


def make_filter(**options: Any) -> ProposalFilter:
    return ProposalFilter(**{"pre_nms": 1000, "post_nms": 1000, "nms_iou": 0.7, "min_size": 0.0, **options})


def make_rpn(head: RPNHead, *, size: float = 16.0, samples: int = 256, **options: Any) -> RPN:
    """One square anchor per cell, stride 16."""
    return RPN(
        [AnchorGenerator(16, sizes=[size], ratios=[1.0])],
        head,
        **{
            "matcher": Matcher(0.7, 0.3, match_best=True),
            "sampler": BalancedSampler(samples, 0.5),
            "train_filter": make_filter(),
            "test_filter": make_filter(),
            "smooth_l1_beta": BETA,
            **options,
        },
    )


def sizes_of(*sizes: tuple[int, int]) -> Tensor:
    return torch.tensor(sizes)


def propose(rpn: RPN, features: Sequence[Tensor], *sizes: tuple[int, int]) -> list[Proposals]:
    """Proposals of each image at test time."""
    return rpn(features, sizes_of(*sizes), PADDED).ragged()


def losses_of(
    rpn: RPN,
    features: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    targets: Sequence[Target],
    seeds: Sequence[int] = (),
) -> tuple[list[Proposals], dict[str, Tensor]]:
    """Training proposals of each image, and the losses; the seeds are 0, 1, ... unless said."""
    drawn = torch.tensor(seeds or range(len(targets)))
    proposals, losses = rpn.losses(features, sizes_of(*sizes), PADDED, Targets.pad(targets), drawn)
    return proposals.ragged(), losses


def keep(
    kept: ProposalFilter, boxes: Tensor, logits: Tensor, size: tuple[int, int], levels: Sequence[int] = ()
) -> Proposals:
    """What is left of the ``boxes`` (M, 4) of one image; all of one level, or so many of each."""
    counts = levels or [len(boxes)]
    rows = nn.utils.rnn.pad_sequence(list(boxes.split(counts)), batch_first=True)[None]
    scores = nn.utils.rnn.pad_sequence(list(logits.split(counts)), batch_first=True, padding_value=-torch.inf)[None]
    return kept(rows, scores, sizes_of(size)).ragged()[0]


def grad_of(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def softplus(x: float) -> float:
    """Cross-entropy of a logit x whose label is 0; of -x whose label is 1."""
    return math.log1p(math.exp(x))


class TestProposals:
    """What comes out at test time, and of the filter."""

    height, width, stride = 6, 8, 16

    def propose(self, seed: int, **options: Any) -> tuple[Tensor, Tensor, RPN]:
        """Boxes and scores from random logits and deltas at the nine anchors of each cell."""
        generator = torch.Generator().manual_seed(seed)
        rows = self.height * self.width * 9
        head = FixedHead(torch.randn(1, rows, generator=generator), 0.3 * torch.randn(1, rows, 4, generator=generator))
        rpn = make_rpn(head, test_filter=make_filter(**options))
        anchors = AnchorGenerator(self.stride, sizes=[16.0, 32.0, 64.0], ratios=[0.5, 1.0, 2.0])
        rpn.anchors = nn.ModuleList([anchors])
        (proposals,) = propose(rpn, [torch.zeros(1, 1, self.height, self.width)], (90, 120))
        return proposals.boxes, proposals.scores, rpn

    @pytest.mark.parametrize("seed", range(3))
    def test_are_sorted_clipped_large_apart_and_not_too_many(self, seed: int) -> None:
        boxes, scores, _ = self.propose(seed, pre_nms=300, post_nms=40, nms_iou=0.6, min_size=12)
        assert len(boxes) == 40
        assert (scores.diff() <= 0).all()
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= 120).all()
        assert (boxes[:, 3] <= 90).all()
        assert (boxes[:, 2:] - boxes[:, :2]).min() >= 12
        assert (box_iou(boxes, boxes) - torch.eye(40)).max() <= 0.6

    @pytest.mark.parametrize("seed", range(3))
    def test_agree_with_torchvision(self, seed: int) -> None:
        options = {"pre_nms": 200, "post_nms": 50, "nms_iou": 0.7, "min_size": 10.0}
        boxes, scores, rpn = self.propose(seed, **options)
        head = cast(FixedHead, rpn.head)
        theirs = RegionProposalNetwork(
            cast(Any, None),
            cast(Any, None),
            *(0.7, 0.3, 256, 0.5),
            pre_nms_top_n={"training": 0, "testing": 200},
            post_nms_top_n={"training": 0, "testing": 50},
            nms_thresh=0.7,
        )
        theirs.min_size = 10.0
        theirs.eval()
        decoded = BoxCoder().decode(head.wanted, rpn.anchors[0](self.height, self.width)).detach()
        (their_boxes,), (their_scores,) = theirs.filter_proposals(
            decoded, head.logits.detach().flatten(), [(90, 120)], [head.logits.shape[1]]
        )
        torch.testing.assert_close(boxes, their_boxes)
        torch.testing.assert_close(scores.sigmoid(), their_scores)

    def test_only_the_best_enter_nms(self) -> None:
        head = FixedHead(torch.tensor([[0.1, 0.9, 0.5]]), torch.zeros(1, 3, 4))
        rpn = make_rpn(head, test_filter=make_filter(pre_nms=2))
        (proposals,) = propose(rpn, [torch.zeros(1, 1, 1, 3)], (16, 48))
        torch.testing.assert_close(proposals.scores, torch.tensor([0.9, 0.5]))
        torch.testing.assert_close(proposals.boxes, torch.tensor([[16.0, 0, 32, 16], [32, 0, 48, 16]]))

    def test_nms_keeps_the_better_of_two(self) -> None:
        boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 60]])  # the first two: IoU 0.8
        logits = torch.tensor([0.2, 0.9, 0.5])
        kept = keep(make_filter(nms_iou=0.7), boxes, logits, (100, 100))
        torch.testing.assert_close(kept.boxes, boxes[[1, 2]])
        assert len(keep(make_filter(nms_iou=0.85), boxes, logits, (100, 100))) == 3

    def test_shortest_side_counts_after_clipping(self) -> None:
        boxes = torch.tensor([[0.0, 0, 8, 50], [-30, 0, 7.9, 50], [60, 0, 110, 7.9], [92, 50, 200, 60]])
        kept = keep(make_filter(min_size=8), boxes, torch.tensor([4.0, 3, 2, 1]), (100, 100))
        torch.testing.assert_close(kept.boxes, torch.tensor([[0.0, 0, 8, 50], [92, 50, 100, 60]]))

    def test_empty_boxes_are_dropped_at_min_size_zero(self) -> None:
        boxes = torch.tensor([[-20.0, 0, -5, 50], [3, 3, 3, 9], [100, 0, 130, 10]])
        assert len(keep(make_filter(min_size=0), boxes, torch.zeros(3), (100, 100))) == 0

    def test_may_be_none(self) -> None:
        boxes, scores, _ = self.propose(0, min_size=1e6)
        assert boxes.shape == (0, 4)
        assert scores.shape == (0,)

    def test_each_image_has_its_own_size(self) -> None:
        head = FixedHead(torch.zeros(2, 3), torch.zeros(2, 3, 4))
        first, second = propose(make_rpn(head, size=32.0), [torch.zeros(2, 1, 1, 3)], (16, 48), (10, 20))
        assert first.boxes.amax(dim=0).tolist() == [24, 0, 48, 16]
        assert second.boxes.amax(dim=0)[2:].tolist() == [20, 10]


class TestLevels:
    """What several levels of a pyramid add."""

    def test_the_best_of_each_level_are_filled_up_to_equally_many(self) -> None:
        levels = [torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]]), torch.tensor([[0.7], [0.8]])]
        best, columns = make_filter(pre_nms=2).top(levels)
        torch.testing.assert_close(
            best, torch.tensor([[[0.9, 0.5], [0.7, -torch.inf]], [[0.3, 0.2], [0.8, -torch.inf]]])
        )
        assert columns[:, 0].tolist() == [[1, 2], [0, 1]]
        assert columns[:, 1, 0].tolist() == [3, 3]  # among the anchors of all levels
        assert ((columns >= 0) & (columns < 4)).all()

    def test_boxes_of_other_levels_are_no_rivals_and_the_best_of_all_are_kept(self) -> None:
        # Twice the same two boxes, of IoU 0.8.
        boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 60]])
        logits = torch.tensor([0.2, 0.9, 0.8, 0.3, -4.0])
        kept = keep(make_filter(nms_iou=0.7), boxes, logits, (100, 100), levels=[2, 3])
        torch.testing.assert_close(kept.scores, torch.tensor([0.9, 0.8, -4.0]))
        torch.testing.assert_close(kept.boxes, boxes[[1, 2, 4]])
        best = keep(make_filter(nms_iou=0.7, post_nms=2), boxes, logits, (100, 100), levels=[2, 3])
        torch.testing.assert_close(best.boxes, boxes[[1, 2]])

    @pytest.mark.parametrize("gpu", [False, True])
    def test_an_image_proposes_what_it_proposes_alone(self, gpu: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        corners = 90 * torch.rand(3, 4, 50, 2, generator=generator)
        boxes = torch.cat([corners, corners + 5 + 40 * torch.rand(3, 4, 50, 2, generator=generator)], dim=3)
        logits = torch.randint(0, 9, (3, 4, 50), generator=generator).float()  # ties too
        sizes, kept = torch.tensor([[100, 120], [60, 70], [5, 5]]), make_filter(min_size=8, post_nms=60)
        with as_on_gpu() if gpu else nullcontext():
            joint = kept(boxes, logits, sizes)
            alone = [kept(boxes[i : i + 1], logits[i : i + 1], sizes[i : i + 1]).ragged()[0] for i in range(3)]
        assert joint.boxes.shape[1] == 60
        for found, expected in zip(joint.ragged(), alone, strict=True):
            assert torch.equal(found.boxes, expected.boxes)
            assert torch.equal(found.scores, expected.scores)
        assert [len(image) for image in alone] == [60, len(alone[1]), 0]
        assert joint.boxes.isfinite().all()


class TestLosses:
    """Three anchors side by side in an image of 16 x 48; the object is two pixels right of the first."""

    sizes = ((16, 48),)
    features = (torch.zeros(1, 1, 1, 3),)
    target = make_target([[2.0, 0, 18, 16]])  # IoU 14 / 18 with the first anchor, 1 / 15 with the second
    logits = (0.4, -0.3, 1.1)

    def head(self, images: int = 1) -> FixedHead:
        deltas = torch.zeros(images, 3, 4)
        deltas[:, 1:] = 100  # of negatives, which have no box loss
        return FixedHead(torch.tensor([self.logits] * images), deltas)

    def test_by_hand(self) -> None:
        _, losses = losses_of(make_rpn(self.head()), self.features, self.sizes, [self.target])
        objectness = (softplus(-0.4) + softplus(-0.3) + softplus(1.1)) / 3
        assert losses["rpn_objectness"].item() == pytest.approx(objectness, rel=1e-6)
        assert losses["rpn_box"].item() == pytest.approx((2 / 16 - BETA / 2) / 3, rel=1e-6)
        assert set(losses) == {"rpn_objectness", "rpn_box"}

    def test_box_weight_and_beta(self) -> None:
        rpn = make_rpn(self.head(), box_loss_weight=3.0, smooth_l1_beta=1.0)
        _, losses = losses_of(rpn, self.features, self.sizes, [self.target])
        assert losses["rpn_box"].item() == pytest.approx(3 * 0.5 * (2 / 16) ** 2 / 3, rel=1e-6)
        objectness = (softplus(-0.4) + softplus(-0.3) + softplus(1.1)) / 3
        assert losses["rpn_objectness"].item() == pytest.approx(objectness, rel=1e-6)

    def test_all_sampled_anchors_of_the_batch_weigh_the_same(self) -> None:
        # In the second image, 32 pixels wide, the third anchor lies outside: five anchors in all.
        sizes, targets = [(16, 48), (16, 32)], [self.target, make_target([])]
        _, losses = losses_of(make_rpn(self.head(2)), [torch.zeros(2, 1, 1, 3)], sizes, targets)
        objectness = softplus(-0.4) + softplus(-0.3) + softplus(1.1) + softplus(0.4) + softplus(-0.3)
        assert losses["rpn_objectness"].item() == pytest.approx(objectness / 5, rel=1e-6)
        assert losses["rpn_box"].item() == pytest.approx((2 / 16 - BETA / 2) / 5, rel=1e-6)

    def test_sampler_draws_from_each_image(self) -> None:
        head = self.head(2)
        rpn = make_rpn(head, samples=2)  # one positive, one negative
        _, losses = losses_of(rpn, [torch.zeros(2, 1, 1, 3)], self.sizes * 2, [self.target] * 2)
        losses["rpn_objectness"].backward()
        assert (grad_of(head.logits) != 0).sum(dim=1).tolist() == [2, 2]
        assert (grad_of(head.logits)[:, 0] < 0).all()

    def test_no_objects(self) -> None:
        head = self.head()
        _, losses = losses_of(make_rpn(head), self.features, self.sizes, [make_target([])])
        assert losses["rpn_box"].item() == 0
        assert losses["rpn_objectness"].item() == pytest.approx(sum(softplus(x) for x in self.logits) / 3, rel=1e-6)
        sum(losses.values(), torch.zeros(())).backward()
        assert not grad_of(head.wanted).any()

    def test_anchors_in_ignored_objects_are_not_negative(self) -> None:
        crowd = make_target([[0.0, 0, 30, 16]], ignore=[True])
        head = self.head()
        _, losses = losses_of(make_rpn(head), self.features, self.sizes, [crowd])
        assert losses["rpn_objectness"].item() == pytest.approx(softplus(1.1), rel=1e-6)  # the third anchor only
        assert losses["rpn_box"].item() == 0

    def test_no_anchor_inside(self) -> None:
        head = self.head()
        _, losses = losses_of(make_rpn(head), self.features, [(15, 48)], [self.target])
        sum(losses.values(), torch.zeros(())).backward()
        assert [loss.item() for loss in losses.values()] == [0, 0]
        assert not grad_of(head.logits).any()

    def test_proposals_carry_no_gradient_and_pass_the_training_filter(self) -> None:
        head = FixedHead(torch.tensor([self.logits]), torch.zeros(1, 3, 4))
        rpn = make_rpn(head, train_filter=make_filter(post_nms=2), test_filter=make_filter(post_nms=1))
        (proposals,), _ = losses_of(rpn, self.features, self.sizes, [self.target])
        assert len(proposals) == 2
        assert len(propose(rpn, self.features, *self.sizes)[0]) == 1
        assert not proposals.boxes.requires_grad
        assert not proposals.scores.requires_grad

    @pytest.mark.parametrize(("sizes", "targets"), [(2, 1), (1, 2)])
    def test_as_many_sizes_as_targets(self, sizes: int, targets: int) -> None:
        with pytest.raises(RuntimeError, match=r"[Ss]ize|shape"):
            losses_of(make_rpn(self.head()), self.features, self.sizes * sizes, [self.target] * targets)


@pytest.mark.parametrize("allow_outside", [False, True])
def test_the_padding_of_a_batch_changes_no_draw(allow_outside: bool) -> None:
    drawn = []
    for height, width in ((6, 8), (6, 11), (9, 8), (20, 30)):
        head = FixedHead(torch.zeros(2, height * width), torch.zeros(2, height * width, 4))
        rpn = make_rpn(head, samples=8, allow_outside=allow_outside)
        targets = [make_target([[30.0, 30, 50, 50]]), make_target([[0.0, 0, 16, 16]] * (height - 5))]
        features, sizes = [torch.zeros(2, 1, height, width)], [(96, 128), (90, 100)]
        _, losses = losses_of(rpn, features, sizes, targets, seeds=[5, 6])
        losses["rpn_objectness"].backward()
        cells = grad_of(head.logits)[0].view(height, width)
        drawn.append(cells.nonzero().tolist())
    assert len(drawn[0]) == 8
    assert drawn == [drawn[0]] * 4


def test_a_seed_decides_which_anchors_are_drawn() -> None:
    def drawn(*seeds: int) -> list[list[int]]:
        head = FixedHead(torch.zeros(2, 48), torch.zeros(2, 48, 4))
        sizes, targets = [(96, 128)] * 2, [make_target([])] * 2
        _, losses = losses_of(make_rpn(head, samples=8), [torch.zeros(2, 1, 6, 8)], sizes, targets, seeds)
        losses["rpn_objectness"].backward()
        return [row.nonzero().flatten().tolist() for row in grad_of(head.logits)]

    assert drawn(3, 4) == drawn(4, 3)[::-1]
    first, second = drawn(3, 3)
    assert first == second == drawn(3, 4)[0] != drawn(3, 4)[1]


@pytest.mark.parametrize(
    ("allow_outside", "size", "trained"),
    [
        (False, (48, 48), [4]),  # anchors of 32 pixels at 8, 24 and 40: only the middle one lies inside
        (False, (47, 48), [4]),
        (False, (39, 48), []),
        (True, (48, 48), list(range(9))),
    ],
)
def test_anchors_that_cross_the_border_are_not_trained_on(
    allow_outside: bool, size: tuple[int, int], trained: list[int]
) -> None:
    head = FixedHead(torch.zeros(1, 9), torch.zeros(1, 9, 4))
    rpn = make_rpn(head, size=32.0, allow_outside=allow_outside, matcher=Matcher(0.7, 0.5))
    _, losses = losses_of(rpn, [torch.zeros(1, 1, 3, 3)], [size], [make_target([[10.0, 10, 40, 40]])])
    sum(losses.values(), torch.zeros(())).backward()
    assert grad_of(head.logits)[0].nonzero().flatten().tolist() == trained


def test_border_itself_is_inside() -> None:
    head = FixedHead(torch.zeros(1, 9), torch.zeros(1, 9, 4))
    rpn = make_rpn(head, size=16.0)
    _, losses = losses_of(rpn, [torch.zeros(1, 1, 3, 3)], [(48, 48)], [make_target([[32.0, 32, 48, 48]])])
    losses["rpn_objectness"].backward()
    assert grad_of(head.logits)[0, 8] < 0  # positive: more of it lowers the loss
    assert (grad_of(head.logits)[0, :8] > 0).all()


class TestHead:
    """The layers."""

    def test_starts_as_the_paper_says(self) -> None:
        torch.manual_seed(0)
        head = RPNHead(64, channels=128, num_anchors=9)
        for layer in (head.conv, head.objectness, head.deltas):
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
            assert layer.bias is not None
            assert not layer.bias.any()

    def test_one_row_per_anchor(self) -> None:
        logits, deltas = RPNHead(4, channels=6, num_anchors=3)(torch.rand(2, 4, 3, 5))
        assert logits.shape == (2, 3 * 5 * 3)
        assert deltas.shape == (2, 3 * 5 * 3, 4)

    def test_says_float32_under_autocast(self) -> None:
        head = RPNHead(4, channels=6, num_anchors=3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert [out.dtype for out in head(torch.rand(1, 4, 3, 3))] == [torch.float32] * 2

    def test_gradient_reaches_all_its_parameters_and_the_feature(self) -> None:
        torch.manual_seed(0)
        head, feature = RPNHead(4, channels=8, num_anchors=1), torch.rand(1, 4, 3, 3, requires_grad=True)
        _, losses = losses_of(make_rpn(head), [feature], [(48, 48)], [make_target([[2.0, 0, 18, 16]])])
        sum(losses.values(), torch.zeros(())).backward()
        for parameter in (*head.parameters(), feature):
            assert grad_of(parameter).any()


def test_places_tell_anchors_apart_and_do_not_depend_on_the_padding() -> None:
    levels = [AnchorGenerator(stride, sizes=[stride * 8.0], ratios=[0.5, 1.0, 2.0]) for stride in (4, 8, 16)]

    def numbers(height: int, width: int) -> list[int]:
        return places(torch.cat([level(height // level.stride, width // level.stride) for level in levels])).tolist()

    small, large = numbers(128, 160), numbers(256, 512)
    assert set(small) <= set(large)
    assert all(0 <= number < 2**31 for number in large)
    assert len(set(large)) > 0.999 * len(large)  # two of 2**31 may meet

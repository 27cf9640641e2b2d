"""Mirrors detection/model/box_stage.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detection.model.box_coder import BoxCoder
from detection.model.box_stage import BoxPredictor, BoxStage, ScoredBoxes
from detection.model.matcher import Matcher
from detection.model.pooler import RegionPooler
from detection.model.sampler import BalancedSampler
from detection.model.select import as_on_gpu
from detection.padded import Regions, Targets
from detection.structures import Proposals, Target

Box = Sequence[float]
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
LOGITS = torch.log(torch.tensor([1.0, 2.0, 3.0, 4.0]))  # probabilities 0.1, 0.2, 0.3 and, of the background, 0.4
FEATURES = (torch.ones(1, 2, 8, 8),)
SIZES = [(100, 100)]


class SpyPooler(RegionPooler):
    """Remembers which regions were asked for."""

    boxes: Tensor
    drawn: list[Tensor]  # of each image, without the padding

    def forward(self, features: Sequence[Tensor], boxes: Tensor, images: Tensor) -> Tensor:
        self.boxes = boxes
        return super().forward(features, boxes, images)


class MeanHead(nn.Module):
    """The mean of a region over its cells: two channels in and out."""

    out_channels = 2

    def forward(self, regions: Tensor) -> Tensor:
        return regions.mean(dim=(2, 3))


class FixedPredictor(BoxPredictor):
    """Says the same of every region."""

    def __init__(self, logits: Tensor, deltas: Tensor) -> None:
        super().__init__(2, num_classes=len(deltas))
        self.said = nn.Parameter(logits), nn.Parameter(deltas)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = self.said
        return logits.expand(*vectors.shape[:-1], -1), deltas.expand(*vectors.shape[:-1], -1, -1)


def make_stage(predictor: BoxPredictor, *, negative_iou_low: float = 0.0, **options: Any) -> BoxStage:
    return BoxStage(
        SpyPooler([16], 2),
        MeanHead(),
        predictor,
        **{
            "matcher": Matcher(0.5, 0.5, negative_iou_low=negative_iou_low),
            "sampler": BalancedSampler(64, 0.25),
            "coder": BoxCoder(WEIGHTS),
            **options,
        },
    )


def fixed(deltas: Tensor | None = None) -> FixedPredictor:
    return FixedPredictor(LOGITS, torch.zeros(3, 4) if deltas is None else deltas)


def make_proposals(*boxes: Box) -> Proposals:
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Proposals(boxes=rows, scores=torch.zeros(len(rows)))


def make_target(boxes: Sequence[Box], labels: Sequence[int], ignore: Sequence[bool] | None = None) -> Target:
    return Target(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        ignore=torch.tensor(ignore or [False] * len(boxes), dtype=torch.bool),
    )


def losses_of(
    stage: BoxStage,
    features: Sequence[Tensor],
    proposals: Sequence[Proposals],
    targets: Sequence[Target],
    sizes: Sequence[tuple[int, int]],
) -> dict[str, Tensor]:
    """The losses of regions drawn from proposals and ground truth."""
    given, seeds = (Regions.pad(proposals), Targets.pad(targets)), torch.arange(len(targets))
    (output,) = stage.outputs(features, *given, torch.tensor(sizes), seeds)
    assert isinstance(stage.pooler, SpyPooler)
    assert torch.equal(stage.pooler.boxes[: output.sample.valid.numel()], output.sample.boxes.flatten(0, 1))
    stage.pooler.drawn = [boxes[valid] for boxes, valid in zip(output.sample.boxes, output.sample.valid, strict=True)]
    return stage.losses(output)


def regions_of(stage: BoxStage, image: int = 0) -> set[tuple[float, ...]]:
    """What the last call pooled to learn from it."""
    assert isinstance(stage.pooler, SpyPooler)
    return {tuple(box) for box in stage.pooler.drawn[image].tolist()}


def score(
    stage: BoxStage,
    features: Sequence[Tensor],
    proposals: Sequence[Proposals],
    sizes: Sequence[tuple[int, int]],
) -> list[ScoredBoxes]:
    """Scores (R, K) and boxes (R, K, 4) of the proposals of each image."""
    scored = stage(features, Regions.pad(proposals), torch.tensor(sizes))
    return [
        ScoredBoxes(*(part[valid] for part in rows), valid[valid])
        for *rows, valid in zip(scored.scores, scored.boxes, scored.valid, strict=True)
    ]


def vectors_of(
    stage: BoxStage, features: Sequence[Tensor], boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
) -> Tensor:
    """The vectors of the regions ``boxes`` (R_i, 4) of each image."""
    counts = torch.tensor([len(image) for image in boxes])
    images = torch.arange(len(boxes)).repeat_interleave(counts)
    return stage.vectors(features, torch.cat(list(boxes)), images, torch.tensor(sizes))


NEAR, OBJECT, FAR = (10.0, 10, 30, 30), (12.0, 10, 32, 30), (70.0, 70, 90, 90)  # IoU of the first two: 9 / 11


class TestForward:
    """Scores and boxes of proposals."""

    def test_scores_are_probabilities_without_the_background(self) -> None:
        (scored,) = score(make_stage(fixed()), FEATURES, [make_proposals(NEAR, FAR)], [(100, 100)])
        torch.testing.assert_close(scored.scores, torch.tensor([[0.1, 0.2, 0.3]] * 2))

    def test_each_class_moves_the_proposal_its_own_way(self) -> None:
        deltas = torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, math.log(2) * 5, 0]])
        (scored,) = score(make_stage(fixed(deltas)), FEATURES, [make_proposals(NEAR, FAR)], [(100, 100)])
        expected = [
            [[12.0, 10, 32, 30], [10, 8, 30, 28], [0, 10, 40, 30]],
            [[72.0, 70, 92, 90], [70, 68, 90, 88], [60, 70, 100, 90]],
        ]
        torch.testing.assert_close(scored.boxes, torch.tensor(expected))

    def test_boxes_are_clipped_to_their_image(self) -> None:
        proposals = [make_proposals((10, 10, 90, 90)), make_proposals((10, 10, 90, 90))]
        first, second = score(make_stage(fixed()), [torch.ones(2, 2, 8, 8)], proposals, [(80, 100), (100, 50)])
        assert first.boxes[0, 0].tolist() == [10, 10, 90, 80]
        assert second.boxes[0, 0].tolist() == [10, 10, 50, 90]

    def test_each_image_gets_its_own_proposals(self) -> None:
        feature = torch.stack([torch.full((2, 8, 8), 1.0), torch.full((2, 8, 8), 5.0), torch.full((2, 8, 8), 9.0)])
        predictor = BoxPredictor(2, num_classes=1)
        predictor.classes.weight.data = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        proposals = [make_proposals(NEAR), make_proposals(), make_proposals(NEAR, FAR)]
        scored = score(make_stage(predictor), [feature], proposals, [(100, 100)] * 3)
        assert [len(image.scores) for image in scored] == [1, 0, 2]
        torch.testing.assert_close(scored[0].scores, torch.tensor([[1.0]]).sigmoid())
        torch.testing.assert_close(scored[2].scores, torch.tensor([[9.0], [9.0]]).sigmoid())

    def test_no_proposals(self) -> None:
        (scored,) = score(make_stage(BoxPredictor(2, num_classes=3)), FEATURES, [make_proposals()], [(100, 100)])
        assert scored.scores.shape == (0, 3)
        assert scored.boxes.shape == (0, 3, 4)


class TestLosses:
    """One object of class 1 out of 3, one region near it and one far away."""

    proposals = make_proposals(NEAR, FAR)
    target = make_target([OBJECT], [1])

    def test_by_hand(self) -> None:
        # Only class 1 may count; its deltas are right for NEAR (one tenth of its width, times 10) and 1 off for OBJECT.
        deltas = torch.full((3, 4), 1000.0)
        deltas[1] = torch.tensor([1.0, 0, 0, 0])
        losses = losses_of(make_stage(fixed(deltas)), FEATURES, [self.proposals], [self.target], SIZES)
        assert losses["box_class"].item() == pytest.approx(-(2 * math.log(0.2) + math.log(0.4)) / 3, rel=1e-6)
        assert losses["box_regression"].item() == pytest.approx(0.5 / 3, rel=1e-5)
        assert set(losses) == {"box_class", "box_regression"}

    def test_weight_and_beta(self) -> None:
        deltas = torch.zeros(3, 4)
        deltas[1, 0] = 1.0
        stage = make_stage(fixed(deltas), smooth_l1_beta=0.5, box_loss_weight=4.0)
        losses = losses_of(stage, FEATURES, [self.proposals], [self.target], SIZES)
        assert losses["box_regression"].item() == pytest.approx(4 * (1 - 0.25) / 3, rel=1e-5)

    def test_ground_truth_is_a_region_too(self) -> None:
        stage = make_stage(fixed())
        losses_of(stage, FEATURES, [self.proposals], [self.target], SIZES)
        assert regions_of(stage) == {NEAR, OBJECT, FAR}

    def test_all_regions_of_the_batch_weigh_the_same(self) -> None:
        stage = make_stage(fixed())
        proposals, targets = [self.proposals, make_proposals(FAR)], [self.target, make_target([], [])]
        losses = losses_of(stage, [torch.ones(2, 2, 8, 8)], proposals, targets, SIZES * 2)
        expected = -(2 * math.log(0.2) + 2 * math.log(0.4)) / 4
        assert losses["box_class"].item() == pytest.approx(expected, rel=1e-6)

    def test_only_the_column_of_the_label_learns(self) -> None:
        predictor = fixed(torch.full((3, 4), 0.5))
        losses_of(make_stage(predictor), FEATURES, [self.proposals], [self.target], SIZES)["box_regression"].backward()
        grad = predictor.said[1].grad
        assert grad is not None
        assert grad[1].any()
        assert not grad[[0, 2]].any()

    def test_region_takes_the_label_of_its_best_object(self) -> None:
        target = make_target([OBJECT, NEAR], [0, 2])
        losses = losses_of(make_stage(fixed()), FEATURES, [make_proposals((10.0, 10, 30.5, 30))], [target], SIZES)
        expected = -(math.log(0.1) + 2 * math.log(0.3)) / 3  # the region and the second object are of class 2
        assert losses["box_class"].item() == pytest.approx(expected, rel=1e-6)

    def test_sampler_bounds_the_positives(self) -> None:
        stage = make_stage(fixed(), sampler=BalancedSampler(4, 0.25))
        far = [(float(x), 70.0, x + 20.0, 90.0) for x in range(10)]
        losses = losses_of(stage, FEATURES, [make_proposals(NEAR, *far)], [self.target], SIZES)
        assert len(regions_of(stage)) == 4
        expected = -(math.log(0.2) + 3 * math.log(0.4)) / 4
        assert losses["box_class"].item() == pytest.approx(expected, rel=1e-6)

    def test_ignored_objects_give_neither_positives_nor_negatives(self) -> None:
        stage = make_stage(fixed())
        target = make_target([OBJECT, FAR], [1, 2], ignore=[False, True])
        inside = (72.0, 72, 88, 88)
        losses = losses_of(stage, FEATURES, [make_proposals(NEAR, FAR, inside)], [target], SIZES)
        assert regions_of(stage) == {NEAR, OBJECT}
        assert losses["box_class"].item() == pytest.approx(-math.log(0.2), rel=1e-6)

    def test_ignored_objects_are_no_regions_even_near_a_wanted_one(self) -> None:
        stage = make_stage(fixed())
        losses_of(
            stage, FEATURES, [make_proposals(FAR)], [make_target([OBJECT, NEAR], [1, 2], ignore=[False, True])], SIZES
        )
        assert regions_of(stage) == {OBJECT, FAR}

    def test_only_ignored_objects(self) -> None:
        stage = make_stage(fixed())
        losses = losses_of(stage, FEATURES, [self.proposals], [make_target([OBJECT], [1], ignore=[True])], SIZES)
        assert regions_of(stage) == {FAR}  # NEAR lies in the object by nine tenths
        assert losses["box_class"].item() == pytest.approx(-math.log(0.4), rel=1e-6)
        assert losses["box_regression"].item() == 0

    def test_regions_below_the_low_threshold_are_not_drawn(self) -> None:
        stage = make_stage(fixed(), negative_iou_low=0.1)
        poor = (12.0, 10, 32, 14)  # IoU 0.2
        losses_of(stage, FEATURES, [make_proposals(NEAR, FAR, poor)], [self.target], SIZES)
        assert regions_of(stage) == {NEAR, OBJECT, poor}

    def test_no_objects(self) -> None:
        stage = make_stage(fixed())
        losses = losses_of(stage, FEATURES, [self.proposals], [make_target([], [])], SIZES)
        assert regions_of(stage) == {NEAR, FAR}
        assert losses["box_class"].item() == pytest.approx(-math.log(0.4), rel=1e-6)
        assert losses["box_regression"].item() == 0

    def test_no_proposals(self) -> None:
        stage = make_stage(fixed())
        losses = losses_of(stage, FEATURES, [make_proposals()], [self.target], SIZES)
        assert regions_of(stage) == {OBJECT}
        assert losses["box_class"].item() == pytest.approx(-math.log(0.2), rel=1e-6)

    def test_nothing_at_all_gives_zero_with_a_gradient(self) -> None:
        predictor = BoxPredictor(2, num_classes=3)
        feature = FEATURES[0].clone().requires_grad_()
        losses = losses_of(make_stage(predictor), [feature], [make_proposals()], [make_target([], [])], SIZES)
        sum(losses.values(), torch.zeros(())).backward()
        assert [loss.item() for loss in losses.values()] == [0, 0]
        for parameter in predictor.parameters():
            assert parameter.grad is not None
            assert not parameter.grad.any()

    def test_gradient_reaches_the_feature_and_both_layers(self) -> None:
        torch.manual_seed(0)
        predictor = BoxPredictor(2, num_classes=3)
        feature = torch.rand(1, 2, 8, 8, requires_grad=True)
        losses = losses_of(make_stage(predictor), [feature], [self.proposals], [self.target], SIZES)
        sum(losses.values(), torch.zeros(())).backward()
        for parameter in (feature, *predictor.parameters()):
            assert parameter.grad is not None
            assert parameter.grad.any()


class TestDrawing:
    """Which regions are trained on."""

    def proposals(self, count: int, seed: int) -> Proposals:
        corners = 80 * torch.rand(count, 2, generator=torch.Generator().manual_seed(seed))
        return make_proposals(*torch.cat([corners, corners + 15], dim=1).tolist())

    def test_an_image_draws_the_same_whatever_is_beside_it(self) -> None:
        stage = make_stage(fixed(), sampler=BalancedSampler(16, 0.25))
        own, target = self.proposals(60, 0), make_target([OBJECT, FAR], [1, 2])
        others = [self.proposals(200, 1), self.proposals(3, 2)]
        busy = make_target([NEAR] * 20, [0] * 20)
        alone = stage.draw(Regions.pad([own]), Targets.pad([target]), torch.tensor([7]))
        assert alone.boxes.shape == (1, 16, 4)
        batch = Regions.pad([others[0], own, others[1]]), Targets.pad([busy, target, make_target([], [])])
        joint = stage.draw(*batch, torch.tensor([1, 7, 2]))
        assert joint.valid.sum(dim=1).tolist() == [16, 16, 3]
        for name in ("boxes", "labels", "objects", "goals", "positive", "valid"):
            assert torch.equal(getattr(joint, name)[1], getattr(alone, name)[0]), name

    def test_the_path_of_a_gpu_draws_the_same_and_pads_more(self) -> None:
        stage = make_stage(fixed(), sampler=BalancedSampler(64, 0.25))
        given = Regions.pad([self.proposals(5, 0), self.proposals(2, 1)]), Targets.pad([make_target([FAR], [1])] * 2)
        plain = stage.draw(*given, torch.tensor([7, 8]))
        with as_on_gpu():
            padded = stage.draw(*given, torch.tensor([7, 8]))
        assert plain.valid.shape == (2, 6)
        assert padded.valid.shape == (2, 13)  # all candidates, of which five and eight are padding
        assert torch.equal(padded.valid.sum(dim=1), plain.valid.sum(dim=1))
        for name in ("boxes", "labels", "objects", "goals", "positive"):
            for own, more, valid in zip(getattr(plain, name), getattr(padded, name), plain.valid, strict=True):
                assert torch.equal(own[valid], more[: len(own)][valid]), name

    def test_positives_come_first_and_know_their_object(self) -> None:
        target = make_target([FAR, OBJECT], [2, 1])
        sample = make_stage(fixed()).draw(
            Regions.pad([make_proposals(NEAR, (40.0, 40, 50, 50))]), Targets.pad([target]), torch.tensor([0])
        )
        assert sample.positive.tolist() == [[True, True, True, False]]
        assert sample.valid.all()
        assert sample.labels[0, 3] == 3
        for box, label, row, goal in zip(
            *(x[0, :3] for x in (sample.boxes, sample.labels, sample.objects, sample.goals)), strict=True
        ):
            assert (row.item(), label.item()) == ((0, 2) if tuple(box.tolist()) == FAR else (1, 1))
            assert torch.equal(goal, target.boxes[row])
        assert sample.first(2).boxes.shape == (1, 2, 4)
        assert torch.equal(sample.first(2).goals, sample.goals[:, :2])

    def test_labels_without_drawing_leave_padding_and_ignored_boxes_out(self) -> None:
        boxes = torch.tensor([[NEAR, FAR, (72.0, 72, 88, 88), NEAR]])
        targets = Targets.pad([make_target([OBJECT, FAR], [1, 2], ignore=[False, True])])
        sample = make_stage(fixed()).label(boxes, torch.tensor([[True, True, True, False]]), targets)
        assert sample.valid.tolist() == [[True, False, False, False]]
        assert sample.positive.tolist() == [[True, False, False, False]]
        assert sample.labels.tolist() == [[1, 3, 3, 3]]

    @pytest.mark.parametrize("giou", [False, True])
    def test_images_of_a_batch_give_the_weighted_mean_of_their_own_losses(self, giou: bool) -> None:
        torch.manual_seed(0)
        predictor = BoxPredictor(2, num_classes=3)
        nn.init.normal_(predictor.classes.weight)
        nn.init.normal_(predictor.deltas.weight)
        features = torch.rand(3, 2, 8, 8)
        stage = make_stage(predictor, sampler=BalancedSampler(1000, 1.0), use_giou=giou)  # nothing is left to chance
        proposals = [self.proposals(20, 0), self.proposals(3, 1), make_proposals(NEAR, FAR)]
        targets = [make_target([], []), make_target([FAR] * 9, [2] * 9), make_target([OBJECT], [1])]
        sizes = [(100, 100), (90, 95), (95, 90)]
        joint, sums, total = losses_of(stage, [features], proposals, targets, sizes), dict[str, float](), 0
        for row in range(3):
            own = losses_of(stage, [features[row : row + 1]], *([x[row]] for x in (proposals, targets, sizes)))
            count = len(proposals[row]) + len(targets[row])
            total += count
            sums = {name: sums.get(name, 0.0) + count * loss.item() for name, loss in own.items()}
        for name, loss in joint.items():
            assert loss.item() == pytest.approx(sums[name] / total, rel=1e-5)
            assert loss.item() > 0

    @pytest.mark.parametrize("giou", [False, True])
    def test_padding_gives_finite_losses_and_gradients(self, giou: bool) -> None:
        torch.manual_seed(0)
        predictor = BoxPredictor(2, num_classes=3)
        stage, feature = make_stage(predictor, use_giou=giou), torch.rand(2, 2, 8, 8, requires_grad=True)
        proposals, targets = (
            [make_proposals(NEAR, FAR), make_proposals()],
            [make_target([OBJECT], [1]), make_target([], [])],
        )
        with as_on_gpu():
            losses = losses_of(stage, [feature], proposals, targets, SIZES * 2)
        sum(losses.values(), torch.zeros(())).backward()
        for values in (*losses.values(), *(p.grad for p in (feature, *predictor.parameters()))):
            assert values is not None
            assert values.isfinite().all()
        assert feature.grad is not None
        assert not feature.grad[1].any()  # the second image has no region


class TestContext:
    """The vector of the whole image beside every region's; two images of different sizes."""

    features = (torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(0)),)
    sizes = ((100, 90), (60, 120))
    wholes = ((0.0, 0, 90, 100), (0.0, 0, 120, 60))

    def boxes(self, *rows: Box) -> Tensor:
        return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)

    def test_is_the_whole_image_pooled_as_a_region_beside_each_region(self) -> None:
        stage = make_stage(BoxPredictor(4, num_classes=3), context=True)
        boxes = [self.boxes(NEAR, FAR), self.boxes((20.0, 5, 110, 50))]
        vectors = vectors_of(stage, self.features, boxes, self.sizes)
        plain, whole = make_stage(fixed()), [self.boxes(box) for box in self.wholes]
        regions, contexts = (vectors_of(plain, self.features, rows, self.sizes) for rows in (boxes, whole))
        assert vectors.shape == (3, 4)
        torch.testing.assert_close(vectors, torch.cat([regions, contexts[[0, 0, 1]]], dim=1))
        assert not torch.allclose(contexts[0], contexts[1])  # the two images differ in theirs

    def test_by_hand(self) -> None:
        # Cells of 16 pixels; the image of 32 x 64 pixels has 2 x 4 of them, the rest of the feature is padding.
        feature = torch.full((1, 2, 8, 8), 100.0)
        feature[0, 0, :2, :4] = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
        feature[0, 1, :2, :4] = 1
        stage = make_stage(BoxPredictor(4, num_classes=3), context=True)
        pooled = vectors_of(stage, [feature], [self.boxes((0.0, 0, 15, 15))], [(31, 63)])
        # RoIPool counts cells inclusively, up to round(63 / 16) = 4 and round(31 / 16) = 2: five columns, three rows.
        # Of its 2 x 2 bins, only the first lies in the image: rows 0 and 1, columns 0 to 2, with the maximum 7.
        assert pooled[0, 2:].tolist() == [(7 + 100 + 100 + 100) / 4, (1 + 100 + 100 + 100) / 4]
        # The region: round(15 / 16) = 1, so 2 x 2 cells, one per bin.
        assert pooled[0, :2].tolist() == [(1 + 2 + 5 + 6) / 4, 1]

    def test_changes_nothing_if_left_out(self) -> None:
        stage, boxes = make_stage(fixed()), [self.boxes(NEAR, FAR), self.boxes()]
        expected = stage.head(stage.pooler(self.features, torch.cat(boxes), torch.tensor([0, 0])))
        assert torch.equal(vectors_of(stage, self.features, boxes, self.sizes), expected)
        assert expected.shape == (2, 2)

    @pytest.mark.parametrize("counts", [(0, 0), (0, 2), (2, 0)])
    def test_images_without_proposals(self, counts: tuple[int, int]) -> None:
        stage = make_stage(BoxPredictor(4, num_classes=3), context=True)
        proposals = [make_proposals(*[NEAR] * count) for count in counts]
        scored = score(stage, self.features, proposals, self.sizes)
        assert tuple(len(image.scores) for image in scored) == counts
        assert all(image.boxes.shape == (count, 3, 4) for image, count in zip(scored, counts, strict=True))
        alone = vectors_of(make_stage(fixed()), self.features, [self.boxes(box) for box in self.wholes], self.sizes)
        vectors = vectors_of(stage, self.features, [image.boxes for image in proposals], self.sizes)
        expected = [alone[row].expand(count, -1) for row, count in enumerate(counts)]
        torch.testing.assert_close(vectors[:, 2:], torch.cat(expected))

    def test_scores_of_a_region_depend_on_the_rest_of_its_own_image_only(self) -> None:
        torch.manual_seed(0)
        predictor = BoxPredictor(4, num_classes=3)
        proposals = [make_proposals(NEAR), make_proposals(NEAR)]
        changed = self.features[0].clone()
        changed[0, :, 5:, 5:] += 10  # far from the region, inside the first image
        for context in (True, False):
            stage = make_stage(predictor if context else fixed(), context=context)
            before, after = (score(stage, features, proposals, self.sizes) for features in (self.features, [changed]))
            assert torch.equal(before[0].scores, after[0].scores) is not context
            assert torch.equal(before[1].scores, after[1].scores)

    def test_forward_is_vectors_then_the_predictor_then_decoding(self) -> None:
        torch.manual_seed(0)
        stage = make_stage(BoxPredictor(4, num_classes=3), context=True)
        proposals = Regions.pad([make_proposals(NEAR, FAR), make_proposals(FAR)])
        boxes, sizes = proposals.boxes, torch.tensor(self.sizes)
        vectors = stage.vectors(self.features, boxes.flatten(0, 1), torch.tensor([0, 0, 1, 1]), sizes).view(2, 2, 4)
        assert torch.equal(stage.batch_vectors(self.features, boxes, sizes), vectors)
        expected = stage.decode(*stage.predictor(vectors), boxes, proposals.valid, sizes)
        found = stage(self.features, proposals, sizes)
        assert torch.equal(found.scores, expected.scores)
        assert torch.equal(found.boxes, expected.boxes)
        assert found.valid.tolist() == [[True, True], [True, False]]

    def test_gradient_reaches_both_halves_and_the_feature_outside_the_regions(self) -> None:
        torch.manual_seed(0)
        predictor = BoxPredictor(4, num_classes=3)
        stage, feature = make_stage(predictor, context=True), self.features[0].clone().requires_grad_()
        proposals, targets = [make_proposals(NEAR)] * 2, [make_target([OBJECT], [1])] * 2
        losses = losses_of(stage, [feature], proposals, targets, self.sizes)
        sum(losses.values(), torch.zeros(())).backward()
        for layer in (predictor.classes, predictor.deltas):
            assert layer.weight.grad is not None
            assert layer.weight.grad[:, :2].any()
            assert layer.weight.grad[:, 2:].any()
        assert feature.grad is not None
        assert feature.grad[0, :, 3:].any()  # below the regions, which end at y 32
        assert not feature.grad[0, :, :, 6:].any()  # beyond the image, which ends at x 90
        assert not feature.grad[1, :, 4:].any()  # and the second's, at y 60


class TestPredictor:
    """The two layers."""

    def test_four_columns_in_a_row_belong_to_a_class(self) -> None:
        predictor = BoxPredictor(2, num_classes=3)
        predictor.deltas.bias.data = torch.arange(12.0)
        nn.init.zeros_(predictor.deltas.weight)
        logits, deltas = predictor(torch.rand(5, 2))
        assert logits.shape == (5, 4)
        torch.testing.assert_close(deltas, torch.arange(12.0).reshape(1, 3, 4).expand(5, 3, 4))

    def test_starts_as_the_paper_says(self) -> None:
        torch.manual_seed(0)
        predictor = BoxPredictor(512, num_classes=20)
        assert predictor.classes.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert predictor.deltas.weight.std().item() == pytest.approx(0.001, rel=0.1)
        assert not predictor.classes.bias.any()
        assert not predictor.deltas.bias.any()

    def test_says_float32_under_autocast(self) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            said = BoxPredictor(2, num_classes=3)(torch.rand(5, 2))
        assert [part.dtype for part in said] == [torch.float32] * 2

"""Mirrors detection/model/cascade.py."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from detection.model.box_coder import BoxCoder
from detection.model.box_stage import BoxPredictor, BoxStage
from detection.model.cascade import CascadeBoxStage
from detection.model.matcher import Matcher
from detection.model.pooler import RegionPooler
from detection.model.sampler import BalancedSampler
from detection.padded import Regions, Targets
from detection.structures import Proposals, Target

FEATURES = (torch.ones(1, 2, 8, 8),)
SIZES = torch.tensor([[100, 100]])


class MeanHead(nn.Module):
    """The mean of a region over its cells."""

    out_channels = 2

    def forward(self, regions: Tensor) -> Tensor:
        return regions.mean(dim=(2, 3))


class FixedPredictor(BoxPredictor):
    """Says the same of every region."""

    def __init__(self, probabilities: Sequence[float], deltas: Sequence[float]) -> None:
        super().__init__(2, num_classes=len(probabilities) - 1, class_agnostic=True)
        self.said = nn.Parameter(torch.tensor(probabilities).log()), nn.Parameter(torch.tensor([deltas]))

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = self.said
        return logits.expand(*vectors.shape[:-1], -1), deltas.expand(*vectors.shape[:-1], -1, -1)


def make_stage(predictor: BoxPredictor, positive_iou: float = 0.5) -> BoxStage:
    return BoxStage(
        RegionPooler([16], 2),
        MeanHead(),
        predictor,
        matcher=Matcher(positive_iou, positive_iou),
        sampler=BalancedSampler(64, 0.25),
        coder=BoxCoder(),
    )


def make_proposals(*boxes: Sequence[float]) -> Proposals:
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Proposals(boxes=rows, scores=torch.zeros(len(rows)))


def make_target(box: Sequence[float]) -> Target:
    return Target(boxes=torch.tensor([box]), labels=torch.tensor([1]), ignore=torch.tensor([False]))


RIGHT = (0.25, 0.0, 0.0, 0.0)  # a quarter of the width
STILL = (0.0, 0.0, 0.0, 0.0)


def losses_of(
    cascade: CascadeBoxStage,
    proposals: Sequence[Proposals],
    targets: Sequence[Target],
    features: Sequence[Tensor] = FEATURES,
) -> dict[str, Tensor]:
    losses: dict[str, Tensor] = {}
    given, seeds = (Regions.pad(proposals), Targets.pad(targets)), torch.arange(len(targets))
    for output in cascade.outputs(features, *given, SIZES, seeds):
        losses |= output.stage.losses(output)
    return losses


def test_boxes_go_from_stage_to_stage_and_scores_are_averaged() -> None:
    first, second = FixedPredictor([0.2, 0.3, 0.5], RIGHT), FixedPredictor([0.6, 0.1, 0.3], RIGHT)
    cascade = CascadeBoxStage([make_stage(first), make_stage(second)])
    scored = cascade(FEATURES, Regions.pad([make_proposals((0, 0, 40, 40))]), SIZES)
    torch.testing.assert_close(scored.scores, torch.tensor([[[0.4, 0.2]]]))
    assert scored.boxes.tolist() == [[[[20, 0, 60, 40]]]]  # twice 10 pixels, the same for both classes
    assert scored.valid.all()
    assert cascade.num_classes == 2


def test_one_stage_is_a_plain_box_stage() -> None:
    torch.manual_seed(0)
    stage = make_stage(BoxPredictor(2, num_classes=3, class_agnostic=True))
    proposals, targets = [make_proposals((0, 0, 40, 40), (50, 50, 90, 90))], [make_target((0.0, 0, 44, 40))]
    cascade = CascadeBoxStage([stage])
    regions = Regions.pad(proposals)
    found, wanted = cascade(FEATURES, regions, SIZES), stage(FEATURES, regions, SIZES)
    torch.testing.assert_close((found.scores, found.boxes), (wanted.scores, wanted.boxes))
    (output,) = stage.outputs(FEATURES, regions, Targets.pad(targets), SIZES, torch.arange(1))
    plain, losses = stage.losses(output), losses_of(cascade, proposals, targets)
    assert {name.removesuffix("_1"): loss.item() for name, loss in losses.items()} == pytest.approx(
        {name: loss.item() for name, loss in plain.items()}
    )


@pytest.mark.parametrize(("deltas", "label"), [(RIGHT, 1), (STILL, 2)])
def test_a_later_stage_labels_the_boxes_that_it_gets(
    deltas: Sequence[float], label: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The proposal has IoU 0.6 with the object, enough for the first stage only; moved, it is the object itself.
    first, second = FixedPredictor([0.2, 0.3, 0.5], deltas), FixedPredictor([0.2, 0.3, 0.5], STILL)
    stages = [make_stage(first), make_stage(second, positive_iou=0.7)]
    targets = [make_target((10.0, 0, 50, 40))]
    sample = stages[0].label(torch.tensor([[[0.0, 0, 40, 40]]]), torch.tensor([[True]]), Targets.pad(targets))
    assert sample.labels.tolist() == [[1]]
    monkeypatch.setattr(stages[0], "draw", lambda *drawn: sample)
    losses = losses_of(CascadeBoxStage(stages), [make_proposals((0.0, 0, 40, 40))], targets)
    probability = [0.2, 0.3, 0.5][label]
    assert losses["box_class_2"].item() == pytest.approx(-torch.tensor(probability).log().item(), rel=1e-5)
    assert losses["box_regression_2"].item() == 0
    assert list(losses) == ["box_class_1", "box_regression_1", "box_class_2", "box_regression_2"]


def test_gradient_of_the_features_is_the_mean_over_stages() -> None:
    torch.manual_seed(0)
    predictor = BoxPredictor(2, num_classes=3, class_agnostic=True)
    nn.init.zeros_(predictor.deltas.weight)  # every stage sees the same boxes
    proposals, targets = [make_proposals((0, 0, 40, 40), (60, 60, 90, 90))], [make_target((0.0, 0, 40, 40))]
    grads = []
    for count in (1, 3):
        feature = torch.ones(1, 2, 8, 8, requires_grad=True)
        stages = [make_stage(predictor) for _ in range(count)]
        losses = losses_of(CascadeBoxStage(stages), proposals, targets, [feature])
        torch.stack(list(losses.values())).sum().backward()
        assert feature.grad is not None
        grads.append(feature.grad)
    assert grads[0].any()
    torch.testing.assert_close(grads[1], grads[0])


def test_no_proposals() -> None:
    cascade = CascadeBoxStage([make_stage(FixedPredictor([0.2, 0.3, 0.5], STILL)) for _ in range(2)])
    scored = cascade(FEATURES, Regions.pad([make_proposals()]), SIZES)
    assert scored.scores[scored.valid].shape == (0, 2)
    assert scored.boxes[scored.valid].shape == (0, 1, 4)


def test_a_box_that_a_stage_emptied_has_no_part_in_the_next() -> None:
    # The first stage moves it out of the image, where it is cut to a line.
    first, second = FixedPredictor([0.2, 0.3, 0.5], (9.0, 0.0, 0.0, 0.0)), FixedPredictor([0.2, 0.3, 0.5], STILL)
    cascade = CascadeBoxStage([make_stage(first), make_stage(second)])
    losses = losses_of(cascade, [make_proposals((0.0, 0, 40, 40))], [make_target((10.0, 0, 50, 40))])
    assert losses["box_class_1"] > 0
    assert losses["box_class_2"].item() == losses["box_regression_2"].item() == 0


def test_images_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(0)
    predictors = [BoxPredictor(2, num_classes=3, class_agnostic=True) for _ in range(2)]
    for predictor in predictors:
        nn.init.normal_(predictor.deltas.weight, std=0.1)
    cascade = CascadeBoxStage([make_stage(predictor) for predictor in predictors])
    features = torch.rand(2, 2, 8, 8)
    proposals = Regions.pad([make_proposals((0, 0, 40, 40), (50, 50, 90, 90)), make_proposals((5, 5, 45, 30))])
    sizes = torch.tensor([[100, 100], [60, 80]])
    joint = cascade([features], proposals, sizes)
    for row in range(2):
        own = Regions(proposals.boxes[row, None], proposals.valid[row, None], proposals.scores[row, None])
        alone = cascade([features[row, None]], own, sizes[row, None])
        torch.testing.assert_close(joint.scores[row], alone.scores[0])
        torch.testing.assert_close(joint.boxes[row], alone.boxes[0])

"""Mirrors detection/model/cascade.py."""

from typing import Any

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

FEATURES, SIZES = torch.ones(1, 2, 8, 8), torch.tensor([[100, 100]])
RIGHT, STILL = (0.25, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)  # by a quarter of the width
BOX, OTHER = (0.0, 0, 40, 40), (50.0, 50, 90, 90)


class MeanHead(nn.Module):
    """The mean of a region over its cells."""

    out_channels = 2

    def forward(self, regions: Tensor) -> Tensor:
        return regions.mean(dim=(2, 3))


def random_stage(seed: int = 0, *, std: float = 0.1) -> BoxStage:
    torch.manual_seed(seed)
    predictor = BoxPredictor(2, num_classes=3, class_agnostic=True)
    nn.init.normal_(predictor.deltas.weight, std=std)
    return make_stage(predictor)


def fixed_stage(deltas: Any, probabilities: Any = (0.2, 0.3, 0.5), positive_iou: float = 0.5) -> BoxStage:
    """Says the same of every region."""
    predictor = BoxPredictor(2, num_classes=len(probabilities) - 1, class_agnostic=True)
    for layer, values in (
        (predictor.classes, torch.tensor(probabilities).log()),
        (predictor.deltas, torch.tensor(deltas)),
    ):
        nn.init.zeros_(layer.weight)
        layer.bias.data = values
    return make_stage(predictor, positive_iou)


def make_stage(predictor: BoxPredictor, positive_iou: float = 0.5) -> BoxStage:
    drawn: Any = {"matcher": Matcher(positive_iou, positive_iou), "sampler": BalancedSampler(64, 0.25)}
    return BoxStage(RegionPooler([16], 2), MeanHead(), predictor, **drawn, coder=BoxCoder())


def losses_of(stages: list[BoxStage], proposals: Any, target: Any, features: Tensor = FEATURES) -> dict[str, Tensor]:
    given = Regions.pad([proposals]), Targets.pad([target]), SIZES, torch.arange(1)
    losses: dict[str, Tensor] = {}
    for output in CascadeBoxStage(stages).outputs([features], *given):
        losses |= output.stage.losses(output)
    return losses


def test_boxes_go_from_stage_to_stage_and_scores_are_averaged(make_proposals) -> None:
    cascade = CascadeBoxStage([fixed_stage(RIGHT), fixed_stage(RIGHT, (0.6, 0.1, 0.3))])
    scored = cascade([FEATURES], Regions.pad([make_proposals(BOX)]), SIZES)
    torch.testing.assert_close(scored.scores, torch.tensor([[[0.4, 0.2]]]))
    assert scored.boxes.tolist() == [[[[20, 0, 60, 40]]]]  # twice 10 pixels, the same for both classes
    assert (scored.valid.all(), cascade.num_classes) == (True, 2)
    nothing = cascade([FEATURES], Regions.pad([make_proposals()]), SIZES)
    assert [part[nothing.valid].shape for part in (nothing.scores, nothing.boxes)] == [(0, 2), (0, 1, 4)]


def test_one_stage_is_a_plain_box_stage(make_proposals, make_target) -> None:
    stage, proposals, target = random_stage(), make_proposals(BOX, OTHER), make_target([(0.0, 0, 44, 40)], [1])
    regions = Regions.pad([proposals])
    found, wanted = CascadeBoxStage([stage])([FEATURES], regions, SIZES), stage([FEATURES], regions, SIZES)
    torch.testing.assert_close((found.scores, found.boxes), (wanted.scores, wanted.boxes))
    (output,) = stage.outputs([FEATURES], regions, Targets.pad([target]), SIZES, torch.arange(1))
    plain, losses = stage.losses(output), losses_of([stage], proposals, target)
    torch.testing.assert_close(losses, {f"{name}_1": loss for name, loss in plain.items()})


@pytest.mark.parametrize(("deltas", "label"), [(RIGHT, 1), (STILL, 2)])
def test_a_later_stage_labels_the_boxes_that_it_gets(deltas, label, monkeypatch, make_proposals, make_target) -> None:
    # The proposal has IoU 0.6 with the object, enough for the first stage only; moved, it is the object itself.
    stages, target = [fixed_stage(deltas), fixed_stage(STILL, positive_iou=0.7)], make_target([(10.0, 0, 50, 40)], [1])
    sample = stages[0].label(torch.tensor([[BOX]]), torch.tensor([[True]]), Targets.pad([target]))
    assert sample.labels.tolist() == [[1]]
    monkeypatch.setattr(stages[0], "draw", lambda *drawn: sample)
    losses = losses_of(stages, make_proposals(BOX), target)
    expected = -torch.tensor([0.2, 0.3, 0.5])[label].log()
    torch.testing.assert_close((losses["box_class_2"], losses["box_regression_2"]), (expected, torch.tensor(0.0)))
    assert list(losses) == ["box_class_1", "box_regression_1", "box_class_2", "box_regression_2"]


def test_gradient_of_the_features_is_the_mean_over_stages(make_proposals, make_target) -> None:
    stage, gradients = random_stage(std=0.0), []  # every stage sees the same boxes
    for count in (1, 3):
        feature = FEATURES.clone().requires_grad_()
        losses = losses_of([stage] * count, make_proposals(BOX, OTHER), make_target([BOX], [1]), feature)
        gradients += torch.autograd.grad(sum(losses.values()), feature)
    assert gradients[0].any()
    torch.testing.assert_close(*gradients)


def test_a_box_that_a_stage_emptied_has_no_part_in_the_next(make_proposals, make_target) -> None:
    # The first stage moves it out of the image, where it is cut to a line.
    stages = [fixed_stage((9.0, 0.0, 0.0, 0.0)), fixed_stage(STILL)]
    losses = losses_of(stages, make_proposals(BOX), make_target([(10.0, 0, 50, 40)], [1]))
    assert losses["box_class_1"] > 0
    assert losses["box_class_2"].item() == losses["box_regression_2"].item() == 0


def test_images_of_a_batch_do_not_mix(make_proposals) -> None:
    cascade, features = CascadeBoxStage([random_stage(0), random_stage(1)]), torch.rand(2, 2, 8, 8)
    sizes, given = torch.tensor([[100, 100], [60, 80]]), [make_proposals(BOX, OTHER), make_proposals((5, 5, 45, 30))]
    joint = cascade([features], Regions.pad(given), sizes)
    for row in range(2):
        alone = cascade([features[row, None]], Regions.pad([given[row]]), sizes[row, None])
        valid = joint.valid[row]
        torch.testing.assert_close(joint.scores[row, valid], alone.scores[0])
        torch.testing.assert_close(joint.boxes[row, valid], alone.boxes[0])

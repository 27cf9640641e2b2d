"""Mirrors detection/model/box_stage.py, box_heads.py and cascade.py."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from backbones.norm import make_norm
from detection.model.box_coder import BoxCoder
from detection.model.box_heads import PART, FCHead
from detection.model.box_stage import BoxPredictor, BoxStage, RegionSample
from detection.model.cascade import CascadeBoxStage
from detection.model.matcher import Matcher
from detection.model.pooler import RegionPooler
from detection.model.sampler import BalancedSampler
from detection.model.select import as_on_gpu
from detection.padded import Regions, Targets
from detection.structures import Proposals

SIZES = [(100, 100)]
NEAR, OBJECT, FAR = (10.0, 10, 30, 30), (12.0, 10, 32, 30), (70.0, 70, 90, 90)  # IoU of the first two: 9 / 11
INSIDE, POOR = (72.0, 72, 88, 88), (12.0, 10, 32, 14)  # in FAR; IoU 0.2 with OBJECT
FIELDS = ("boxes", "labels", "objects", "goals", "positive", "valid")


class MeanHead(nn.Module):
    out_channels = 2

    def forward(self, regions: Tensor) -> Tensor:
        return regions.mean(dim=(2, 3))


def fixed(deltas: Any = ((0.0,) * 4,) * 3, probabilities: Any = (0.1, 0.2, 0.3, 0.4)) -> BoxPredictor:
    """Says the same of every region; one row of deltas is for all classes, the last probability the background's."""
    predictor = BoxPredictor(2, num_classes=len(probabilities) - 1, class_agnostic=len(deltas) == 1)
    said = torch.tensor(probabilities).log(), torch.as_tensor(deltas).flatten()
    for layer, values in zip((predictor.classes, predictor.deltas), said, strict=True):
        nn.init.zeros_(layer.weight)
        layer.bias.data = values
    return predictor


def make_stage(predictor: BoxPredictor, *, positive_iou: float = 0.5, low: float = 0.0, **options: Any) -> BoxStage:
    parts: dict[str, Any] = {"sampler": BalancedSampler(64, 0.25), "coder": BoxCoder((10.0, 10.0, 5.0, 5.0)), **options}
    matcher = Matcher(positive_iou, positive_iou, negative_iou_low=low)
    return BoxStage(RegionPooler([16], 2), MeanHead(), predictor, matcher=matcher, **parts)


def random_predictor(in_channels: int = 2) -> BoxPredictor:
    torch.manual_seed(0)
    predictor = BoxPredictor(in_channels, num_classes=3)
    nn.init.normal_(predictor.classes.weight)
    nn.init.normal_(predictor.deltas.weight)
    return predictor


def ones(images: int = 1) -> list[Tensor]:
    return [torch.ones(images, 2, 8, 8)]


def random_proposals(count: int, seed: int) -> Proposals:
    corners = 80 * torch.rand(count, 2, generator=torch.Generator().manual_seed(seed))
    return Proposals(boxes=torch.cat([corners, corners + 15], dim=1), scores=torch.zeros(count))


def learn(stage: BoxStage, features, proposals, targets, sizes: Any = SIZES) -> tuple[dict[str, Tensor], RegionSample]:
    given, seeds = (Regions.pad(proposals), Targets.pad(targets)), torch.arange(len(targets))
    (output,) = stage.outputs(features, *given, torch.tensor(sizes), seeds)
    return stage.losses(output), output.sample


def test_scores_and_boxes_by_hand(make_proposals) -> None:
    """Probabilities without the background; each class moves the proposal its own way; boxes are clipped."""
    stage = make_stage(fixed([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, math.log(2) * 5, 0]]))
    proposals, sizes = [make_proposals(NEAR, FAR), make_proposals(NEAR)], torch.tensor([[100, 100], [25, 31]])
    scored = stage(ones(2), Regions.pad(proposals), sizes)
    torch.testing.assert_close(scored.scores[0], torch.tensor([[0.1, 0.2, 0.3]] * 2))
    near = torch.tensor([[12.0, 10, 32, 30], [10, 8, 30, 28], [0, 10, 40, 30]])
    far = torch.tensor([[72.0, 70, 92, 90], [70, 68, 90, 88], [60, 70, 100, 90]])
    torch.testing.assert_close(scored.boxes[0], torch.stack([near, far]))
    torch.testing.assert_close(scored.boxes[1, 0], near.minimum(torch.tensor([31.0, 25, 31, 25])))
    assert scored.valid.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize(
    ("proposals", "objects", "low", "regions", "chances", "moved"),
    [
        ((NEAR, FAR), [(OBJECT, 1, False)], 0, {NEAR, OBJECT, FAR}, [0.2, 0.2, 0.4], 1),  # ground truth is a region too
        ((NEAR, FAR), [(OBJECT, 0, False), (NEAR, 2, False)], 0, {NEAR, OBJECT, FAR}, [0.1, 0.3, 0.3, 0.4], 0),
        ((NEAR, FAR, INSIDE), [(OBJECT, 1, False), (FAR, 2, True)], 0, {NEAR, OBJECT}, [0.2, 0.2], 1),
        ((FAR,), [(OBJECT, 1, False), (NEAR, 2, True)], 0, {OBJECT, FAR}, [0.2, 0.4], 0),
        ((NEAR, FAR), [(OBJECT, 1, True)], 0, {FAR}, [0.4], 0),  # NEAR lies in the object by nine tenths
        ((NEAR, FAR, POOR), [(OBJECT, 1, False)], 0.1, {NEAR, OBJECT, POOR}, [0.2, 0.2, 0.4], 1),
        ((NEAR, FAR), [], 0, {NEAR, FAR}, [0.4, 0.4], 0),
        ((), [(OBJECT, 1, False)], 0, {OBJECT}, [0.2], 0),
    ],
)
def test_regions_and_the_class_loss_by_hand(
    proposals, objects, low, regions, chances, moved, make_target, make_proposals
) -> None:
    boxes, labels, ignore = zip(*objects, strict=True) if objects else ((), (), ())
    stage = make_stage(fixed(), low=low)
    losses, sample = learn(stage, ones(), [make_proposals(*proposals)], [make_target(boxes, labels, ignore)])
    assert {tuple(box) for box in sample.boxes[sample.valid].tolist()} == regions
    assert list(losses) == ["box_class", "box_regression"]
    assert losses["box_class"].item() == pytest.approx(-sum(map(math.log, chances)) / len(chances), rel=1e-6)
    assert losses["box_regression"].item() == pytest.approx(0.5 * moved / len(chances))


class TestLosses:
    # Only class 1 may count; its deltas are right for NEAR (one tenth of its width, times 10) and 1 off for OBJECT.
    def test_box_loss_by_hand(self, make_target, make_proposals) -> None:
        other: Any = {"smooth_l1_beta": 0.5, "box_loss_weight": 4.0}
        for options, expected in (({}, 0.5 / 3), (other, 4 * (1 - 0.25) / 3)):
            stage = make_stage(fixed([[1000.0] * 4, [1.0, 0, 0, 0], [1000.0] * 4]), **options)
            losses, _ = learn(stage, ones(), [make_proposals(NEAR, FAR)], [make_target([OBJECT], [1])])
            assert losses["box_regression"].item() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("giou", [False, True])
    def test_a_batch_gives_the_weighted_mean_of_its_images_own_losses(self, giou, make_target, make_proposals) -> None:
        features, sizes = torch.rand(3, 2, 8, 8), [(100, 100), (90, 95), (95, 90)]
        stage = make_stage(random_predictor(), sampler=BalancedSampler(1000, 1.0), use_giou=giou)  # draws all
        proposals = [random_proposals(20, 0), random_proposals(3, 1), make_proposals(NEAR, FAR)]
        targets = [make_target(), make_target([FAR] * 9, [2] * 9), make_target([OBJECT], [1])]
        joint, _ = learn(stage, [features], proposals, targets, sizes)
        rows = zip(features.split(1), proposals, targets, sizes, strict=True)
        alone = [learn(stage, [feature], [own], [target], [size])[0] for feature, own, target, size in rows]
        for name, loss in joint.items():
            sums = [n * losses[name].item() for n, losses in zip((20, 12, 3), alone, strict=True)]
            assert loss.item() == pytest.approx(sum(sums) / 35, rel=1e-5)
            assert loss.item() > 0

    @pytest.mark.parametrize("giou", [False, True])
    def test_padding_gives_finite_losses_and_gradients(self, giou, make_target, make_proposals) -> None:
        predictor, feature = random_predictor(), torch.rand(2, 2, 8, 8, requires_grad=True)
        stage, targets = make_stage(predictor, use_giou=giou), [make_target([OBJECT], [1]), make_target()]
        with as_on_gpu():
            losses, _ = learn(stage, [feature], [make_proposals(NEAR, FAR), make_proposals()], targets, SIZES * 2)
        sum(losses.values(), torch.zeros(())).backward()
        grads: list[Any] = [parameter.grad for parameter in (feature, *predictor.parameters())]
        assert all(values.isfinite().all() for values in (*losses.values(), *grads))
        assert all(grad.any() for grad in grads)
        assert not grads[0][1].any()  # the second image has no region
        losses, _ = learn(stage, ones(), [make_proposals()], [make_target()])
        assert [loss.item() for loss in losses.values()] == [0, 0]
        none = torch.autograd.grad(sum(losses.values(), torch.zeros(())), [*predictor.parameters()])
        assert not any(grad.any() for grad in none)


class TestDrawing:
    def test_an_image_draws_the_same_whatever_is_beside_it(self, make_target) -> None:
        stage, own = make_stage(fixed(), sampler=BalancedSampler(16, 0.25)), random_proposals(60, 0)
        target, busy = make_target([OBJECT, FAR], [1, 2]), make_target([NEAR] * 20)
        alone = stage.draw(Regions.pad([own]), Targets.pad([target]), torch.tensor([7]))
        assert alone.boxes.shape == (1, 16, 4)
        proposals = Regions.pad([random_proposals(200, 1), own, random_proposals(3, 2)])
        joint = stage.draw(proposals, Targets.pad([busy, target, make_target()]), torch.tensor([1, 7, 2]))
        assert joint.valid.sum(dim=1).tolist() == [16, 16, 3]
        for name in FIELDS:
            assert torch.equal(getattr(joint, name)[1], getattr(alone, name)[0]), name

    def test_the_path_of_a_gpu_draws_the_same_and_pads_more(self, make_target) -> None:
        stage = make_stage(fixed(), sampler=BalancedSampler(64, 0.25))
        proposals = Regions.pad([random_proposals(5, 0), random_proposals(2, 1)])
        given = proposals, Targets.pad([make_target([FAR], [1])] * 2), torch.tensor([7, 8])
        plain = stage.draw(*given)
        with as_on_gpu():
            padded = stage.draw(*given)
        assert plain.valid.shape == (2, 6)
        assert padded.valid.shape == (2, 13)  # all candidates, of which five and eight are padding
        assert torch.equal(padded.valid.sum(dim=1), plain.valid.sum(dim=1))
        for name in FIELDS[:-1]:
            for own, more, valid in zip(getattr(plain, name), getattr(padded, name), plain.valid, strict=True):
                assert torch.equal(own[valid], more[: len(own)][valid]), name

    def test_positives_come_first_and_know_their_object(self, make_target, make_proposals) -> None:
        target, proposals = make_target([FAR, OBJECT], [2, 1]), make_proposals(NEAR, (40.0, 40, 50, 50))
        sample = make_stage(fixed()).draw(Regions.pad([proposals]), Targets.pad([target]), torch.tensor([0]))
        assert (sample.positive.tolist(), sample.valid.all()) == ([[True, True, True, False]], True)
        assert sample.labels[0, 3] == 3
        assert torch.equal(sample.goals[0, :3], target.boxes[sample.objects[0, :3]])
        fields = (part[0, :3].tolist() for part in (sample.boxes, sample.labels, sample.objects))
        for box, label, row in zip(*fields, strict=True):
            assert (row, label) == ((0, 2) if tuple(box) == FAR else (1, 1))
        assert torch.equal(sample.first(2).goals, sample.goals[:, :2])

    def test_labels_without_drawing_leave_padding_and_ignored_boxes_out(self, make_target) -> None:
        targets = Targets.pad([make_target([OBJECT, FAR], [1, 2], ignore=[False, True])])
        valid = torch.tensor([[True, True, True, False]])
        sample = make_stage(fixed()).label(torch.tensor([[NEAR, FAR, INSIDE, NEAR]]), valid, targets)
        assert sample.valid.tolist() == sample.positive.tolist() == [[True, False, False, False]]
        assert sample.labels.tolist() == [[1, 3, 3, 3]]


@pytest.mark.parametrize("images", [[0, 0, 1], [1, 1], [0], []])
def test_context_is_the_whole_image_pooled_as_a_region_beside_each_region(images) -> None:
    feature, sizes = torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(0)), ((100, 90), (60, 120))

    def vectors(boxes: list[Any], images: list[int], *, context: bool) -> Tensor:
        stage, rows = make_stage(BoxPredictor(4, num_classes=3), context=context), torch.tensor(boxes).float()
        return stage.vectors([feature], rows.reshape(-1, 4), torch.tensor(images).long(), torch.tensor(sizes))

    boxes = [NEAR, FAR, (20.0, 5, 110, 50)][: len(images)]
    found, plain = (vectors(boxes, images, context=context) for context in (True, False))
    contexts = vectors([(0, 0, width, height) for height, width in sizes], [0, 1], context=False)
    torch.testing.assert_close(found, torch.cat([plain, contexts[images]], dim=1))
    assert not torch.allclose(contexts[0], contexts[1])


def test_predictor() -> None:
    """Four columns in a row belong to a class; it starts as the paper says, and says float32 under autocast."""
    torch.manual_seed(0)
    predictor = BoxPredictor(512, num_classes=20)
    assert predictor.classes.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert predictor.deltas.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert not torch.cat([predictor.classes.bias, predictor.deltas.bias]).any()
    predictor.deltas.bias.data = torch.arange(80.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, deltas = predictor(torch.zeros(5, 512))
    assert (logits.shape, logits.dtype) == ((5, 21), torch.float32)
    torch.testing.assert_close(deltas, torch.arange(80.0).reshape(1, 20, 4).expand(5, 20, 4))


def test_a_head_is_torchvisions_two_layers_also_by_parts() -> None:
    torch.manual_seed(0)
    ours, theirs = FCHead(4, 3, channels=8), TwoMLPHead(4 * 3 * 3, 8)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    regions = torch.randn(2 * PART + 3, 4, 3, 3)
    with torch.no_grad():  # regions of channels last are taken by parts
        for given in (regions, regions.to(memory_format=torch.channels_last)):
            torch.testing.assert_close(ours(given), theirs(regions))


@pytest.mark.parametrize(("norm", "kind"), [("bn", nn.BatchNorm2d), ("gn", nn.GroupNorm), (None, nn.Identity)])
def test_convolutions_come_first_and_keep_the_size(norm, kind) -> None:
    head = FCHead(4, 3, convs=2, conv_channels=6, fcs=1, channels=8, norm=norm and make_norm(norm, 1e-5))
    modules: Any = list(head.modules())
    assert head.convs(torch.rand(5, 4, 3, 3)).shape == (5, 6, 3, 3)
    assert (head(torch.rand(5, 4, 3, 3)).shape, head(torch.zeros(0, 4, 3, 3)).shape) == ((5, 8), (0, 8))
    assert head.out_channels == 8
    assert [layer.in_features for layer in modules if isinstance(layer, nn.Linear)] == [54]
    # A norm takes the bias of its convolution.
    assert [layer.bias is None for layer in modules if isinstance(layer, nn.Conv2d)] == [norm is not None] * 2
    assert sum(isinstance(layer, kind) for layer in modules) == (2 if norm else 0)


# Cascades

WHITE, LARGE = torch.ones(1, 2, 8, 8), torch.tensor([[100, 100]])
RIGHT, STILL = (0.25, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)  # by a quarter of the width
BOX, OTHER = (0.0, 0, 40, 40), (50.0, 50, 90, 90)


def agnostic_stage(seed: int = 0, *, std: float = 0.1) -> BoxStage:
    torch.manual_seed(seed)
    predictor = BoxPredictor(2, num_classes=3, class_agnostic=True)
    nn.init.normal_(predictor.deltas.weight, std=std)
    return make_stage(predictor, coder=BoxCoder())


def said_stage(deltas: Any, probabilities: Any = (0.2, 0.3, 0.5), positive_iou: float = 0.5) -> BoxStage:
    return make_stage(fixed([deltas], probabilities), positive_iou=positive_iou, coder=BoxCoder())


def cascade_losses(stages: list[BoxStage], proposals: Any, target: Any, features: Tensor = WHITE) -> dict[str, Tensor]:
    given = Regions.pad([proposals]), Targets.pad([target]), LARGE, torch.arange(1)
    losses: dict[str, Tensor] = {}
    for output in CascadeBoxStage(stages).outputs([features], *given):
        losses |= output.stage.losses(output)
    return losses


def test_boxes_go_from_stage_to_stage_and_scores_are_averaged(make_proposals) -> None:
    cascade = CascadeBoxStage([said_stage(RIGHT), said_stage(RIGHT, (0.6, 0.1, 0.3))])
    scored = cascade([WHITE], Regions.pad([make_proposals(BOX)]), LARGE)
    torch.testing.assert_close(scored.scores, torch.tensor([[[0.4, 0.2]]]))
    assert scored.boxes.tolist() == [[[[20, 0, 60, 40]]]]  # twice 10 pixels, the same for both classes
    assert (scored.valid.all(), cascade.num_classes) == (True, 2)
    nothing = cascade([WHITE], Regions.pad([make_proposals()]), LARGE)
    assert [part[nothing.valid].shape for part in (nothing.scores, nothing.boxes)] == [(0, 2), (0, 1, 4)]


def test_one_stage_is_a_plain_box_stage(make_proposals, make_target) -> None:
    stage, proposals, target = agnostic_stage(), make_proposals(BOX, OTHER), make_target([(0.0, 0, 44, 40)], [1])
    regions = Regions.pad([proposals])
    found, wanted = CascadeBoxStage([stage])([WHITE], regions, LARGE), stage([WHITE], regions, LARGE)
    torch.testing.assert_close((found.scores, found.boxes), (wanted.scores, wanted.boxes))
    (output,) = stage.outputs([WHITE], regions, Targets.pad([target]), LARGE, torch.arange(1))
    plain, losses = stage.losses(output), cascade_losses([stage], proposals, target)
    torch.testing.assert_close(losses, {f"{name}_1": loss for name, loss in plain.items()})


@pytest.mark.parametrize(("deltas", "label"), [(RIGHT, 1), (STILL, 2)])
def test_a_later_stage_labels_the_boxes_that_it_gets(deltas, label, monkeypatch, make_proposals, make_target) -> None:
    # The proposal has IoU 0.6 with the object, enough for the first stage only; moved, it is the object itself.
    stages, target = [said_stage(deltas), said_stage(STILL, positive_iou=0.7)], make_target([(10.0, 0, 50, 40)], [1])
    sample = stages[0].label(torch.tensor([[BOX]]), torch.tensor([[True]]), Targets.pad([target]))
    assert sample.labels.tolist() == [[1]]
    monkeypatch.setattr(stages[0], "draw", lambda *drawn: sample)
    losses = cascade_losses(stages, make_proposals(BOX), target)
    expected = -torch.tensor([0.2, 0.3, 0.5])[label].log()
    torch.testing.assert_close((losses["box_class_2"], losses["box_regression_2"]), (expected, torch.tensor(0.0)))
    assert list(losses) == ["box_class_1", "box_regression_1", "box_class_2", "box_regression_2"]


def test_gradient_of_the_features_is_the_mean_over_stages(make_proposals, make_target) -> None:
    stage, gradients = agnostic_stage(std=0.0), []  # every stage sees the same boxes
    for count in (1, 3):
        feature = WHITE.clone().requires_grad_()
        losses = cascade_losses([stage] * count, make_proposals(BOX, OTHER), make_target([BOX], [1]), feature)
        gradients += torch.autograd.grad(sum(losses.values(), torch.zeros(())), feature)
    assert gradients[0].any()
    torch.testing.assert_close(*gradients)


def test_a_box_that_a_stage_emptied_has_no_part_in_the_next(make_proposals, make_target) -> None:
    # The first stage moves it out of the image, where it is cut to a line.
    stages = [said_stage((9.0, 0.0, 0.0, 0.0)), said_stage(STILL)]
    losses = cascade_losses(stages, make_proposals(BOX), make_target([(10.0, 0, 50, 40)], [1]))
    assert losses["box_class_1"] > 0
    assert losses["box_class_2"].item() == losses["box_regression_2"].item() == 0

"""Mirrors model/test_time/tester.py: what every method does to the scored boxes, before thresholds and NMS."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from detection.build import build_detector
from detection.config import detection as settings
from detection.model.box_stage import ScoredBoxes
from detection.model.faster_rcnn import FasterRCNN
from detection.model.postprocess import Postprocessor
from detection.model.test_time import tester  # not the class: pytest would collect it for its name
from detection.model.test_time.tester import Methods, refined_proposals
from detection.model.test_time.views import adjacent_scales, flip_boxes, flip_images, resize_images
from detection.padded import Regions
from detection.structures import Detections, ImageBatch, Proposals

CONFIG = settings.DetectionConfig(
    backbone=settings.DetectorBackboneConfig(name="resnet18", norm="gn", roi_size=2),
    anchors=settings.AnchorConfig(sizes=(16.0, 32.0)),
    rpn=settings.RPNConfig(channels=16, pre_nms_test=64, post_nms_test=12, min_size=2.0),
    # RoIPool gives regions over the same cells the same scores, and NMS of ties depends on their order.
    box=settings.BoxConfig(pool="roi_align"),
    test=settings.PostprocessConfig(score_threshold=0.0),
)
MEMBERS = {
    "plain": CONFIG,
    "context": replace(CONFIG, box=replace(CONFIG.box, context=True)),
    "vgg": replace(CONFIG, backbone=settings.DetectorBackboneConfig(name="vgg11", roi_size=1)),
}
PLAIN, ALL = Methods(), Methods(refine=True, scales=(48, 64, 96), flip=True)


def noise(height: int, width: int, *, seed: int = 0) -> Tensor:
    coarse = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(seed)) * 255
    return nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0].to(torch.uint8)


IMAGES = ImageBatch.from_images([noise(64, 80), noise(90, 56, seed=1)])
SIZES = IMAGES.size_list()


@cache
def member(kind: str) -> Any:
    """A random detector whose scores and boxes differ from region to region; no test changes it."""
    torch.manual_seed(list(MEMBERS).index(kind))
    detector = build_detector(MEMBERS[kind], 3).eval().requires_grad_(False)
    assert isinstance(detector, FasterRCNN)
    for name in ("classes", "deltas"):
        nn.init.normal_(detector.box_stage.get_parameter(f"predictor.{name}.weight"), std=0.1)
    return detector


@pytest.fixture
def detector() -> Any:
    return member("plain")


@pytest.fixture
def pair() -> list[Any]:
    return [member("plain"), member("context")]


def record(detectors: Sequence[Any], methods: Methods, images: ImageBatch = IMAGES) -> ScoredBoxes:
    tester.Tester(detectors, methods=methods, postprocess=(spy := Mock(wraps=Postprocessor())))(images)
    return spy.call_args.args[0]


def score(detectors: Sequence[Any], methods: Methods, images: ImageBatch = IMAGES) -> list[ScoredBoxes]:
    return images_of(record(detectors, methods, images))


def images_of(scored: ScoredBoxes) -> list[ScoredBoxes]:
    """The scored boxes of each image, (R, K) and (R, K, 4), without the padding."""
    rows = zip(scored.scores, scored.boxes, scored.valid, strict=True)
    return [one(scores[valid], boxes[valid]) for scores, boxes, valid in rows]


def one(scores: Any, boxes: Any) -> ScoredBoxes:
    return ScoredBoxes(scores, boxes, torch.ones(len(scores), dtype=torch.bool))


def said_of(detector: Any, features: Sequence[Tensor], proposals: Sequence[Proposals]) -> list[ScoredBoxes]:
    return images_of(detector.boxes(features, Regions.pad(proposals), IMAGES.sizes))


def flipped(boxes: Tensor, width: int) -> Tensor:
    return flip_boxes(boxes[None], torch.tensor([width]))[0]


def detect(detectors: Sequence[Any], methods: Methods = PLAIN, **options: Any) -> list[Detections]:
    postprocess = Postprocessor(**{"score_threshold": 0.0, **options})
    return tester.Tester(detectors, methods=methods, postprocess=postprocess)(IMAGES)


def propose(detector: Any, images: ImageBatch = IMAGES) -> tuple[list[Tensor], list[Proposals]]:
    features = detector.features(images)
    return features, detector.propose(features, images).ragged()


def assert_scored(found: Sequence[Any], expected: Sequence[Any], *, exact: bool = False) -> None:
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        for name, atol in (("scores", 1e-5), ("boxes", 1e-3)):
            pair = getattr(ours, name), getattr(theirs, name)
            torch.testing.assert_close(*pair, rtol=0 if exact else 1e-4, atol=0 if exact else atol)


def assert_same(found: Sequence[Detections], expected: Sequence[Detections], *, exact: bool = False) -> None:
    assert_scored(found, expected, exact=exact)
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) > 0
        assert torch.equal(ours.labels, theirs.labels)


@pytest.fixture
def propose_always(monkeypatch):
    """Makes a detector propose these boxes of each image, or of every one."""

    def always(detector: Any, *images: Tensor) -> None:
        given = [Proposals(boxes=boxes, scores=torch.zeros(len(boxes))) for boxes in images]
        count = 1 if len(given) > 1 else len(IMAGES)
        monkeypatch.setattr(detector, "propose", lambda *_: Regions.pad(given * count))

    return always


def test_no_methods_equal_the_detector_and_its_own_postprocessor_counts(pair) -> None:
    for single in pair:
        plain = tester.Tester([single], methods=PLAIN, postprocess=single.postprocess)
        assert_same(plain(IMAGES), single(IMAGES), exact=True)
        found = detect([single], max_detections=2)
        assert [len(image) for image in found] == [2, 2]
        assert_same(found, [image[:2] for image in single(IMAGES)], exact=True)
    tester.Tester([single.train() for single in pair], methods=PLAIN, postprocess=Postprocessor()).eval()
    assert not any(module.training for single in pair for module in single.modules())


class TestScales:
    @pytest.mark.parametrize("name", ["plain", "context"])
    def test_vectors_are_the_maximum_of_the_two_passes(self, name, monkeypatch, propose_always) -> None:
        monkeypatch.setattr("detection.model.test_time.views.REGION_SIDE", 32.0)  # as small as the images here
        detector, scales = member(name), (32, 64, 96, 128)
        # 32 * 64 / side in the first image, 32 * 56 / side in the second: 32 to 64, 64 to 96, 96 to 128 pixels
        rows = torch.tensor([[4.0, 4, 56, 60], [10, 20, 34, 44], [30, 8, 46, 30], [6, 5, 36, 25], [20, 30, 22, 33]])
        propose_always(detector, rows)
        lower = [[0, 1, 2, 1, 2], [0, 1, 1, 1, 2]]
        shorter = [torch.full((5,), min(size)) for size in SIZES]
        assert [adjacent_scales(rows, side, scales).tolist() for side in shorter] == lower
        passes = []  # (regions of both images, D) at every scale
        for side in scales:
            view = resize_images(IMAGES, side)
            both = zip(SIZES, view.size_list(), strict=True)
            factors = [torch.tensor([w / wide, h / high] * 2) for (high, wide), (h, w) in both]
            moved, images = torch.cat([rows * factor for factor in factors]), torch.tensor([0] * 5 + [1] * 5)
            passes.append(detector.box_stage.vectors(detector.features(view), moved, images, view.sizes))
        pairs = [torch.maximum(passes[k][row], passes[k + 1][row]) for row, k in enumerate(lower[0] + lower[1])]
        expected = torch.stack(pairs)
        assert not torch.allclose(expected, passes[1], rtol=1e-2)
        said, valid = detector.box_stage.predictor(expected.view(2, 5, -1)), torch.ones(2, 5).bool()
        scored = detector.box_stage.decode(*said, torch.stack([rows, rows]), valid, IMAGES.sizes)
        assert_scored(score([detector], Methods(scales=scales)), images_of(scored))

    def test_proposals_stay_at_the_given_scale(self, detector, monkeypatch) -> None:
        (_, expected), original, seen = propose(detector), detector.propose, []
        spy = Mock(wraps=lambda features, images: seen.append(images.size_list()) or original(features, images))
        monkeypatch.setattr(detector, "propose", spy)
        scored = score([detector], Methods(scales=(48, 96)))
        assert seen == [SIZES]
        assert [len(image.scores) for image in scored] == [len(image) for image in expected]
        # Regions of at most 90 pixels in images of 56 and more need scales above 56 * 224 / 90: the highest two.
        assert_scored(*(score([detector], Methods(scales=scales)) for scales in ((32, 48, 64), (48, 64))))

    @pytest.mark.parametrize("counts", [(0, 0), (3, 0), (0, 3)])
    def test_images_without_proposals(self, counts, detector, propose_always) -> None:
        rows = torch.tensor([[4.0, 4, 50, 60]]).expand(3, 4)
        propose_always(detector, *(rows[:count] for count in counts))
        scored = score([detector], Methods(scales=(48, 96)))
        assert [image.scores.shape for image in scored] == [(count, 3) for count in counts]
        assert [image.boxes.shape for image in scored] == [(count, 3, 4) for count in counts]


def test_flips_by_the_verbs(detector) -> None:
    feature, proposals = propose(detector)
    mirrored = [replace(p, boxes=flipped(p.boxes, width)) for p, (_, width) in zip(proposals, SIZES, strict=True)]
    plain = said_of(detector, feature, proposals)
    other = said_of(detector, detector.features(flip_images(IMAGES)), mirrored)
    both = zip(plain, other, [width for _, width in SIZES], strict=True)
    expected = [one((a.scores + b.scores) / 2, (a.boxes + flipped(b.boxes, w)) / 2) for a, b, w in both]
    assert_scored(score([detector], Methods(flip=True)), expected)
    assert not torch.allclose(expected[0].scores, plain[0].scores, atol=1e-3)


class TestRefinement:
    def test_by_the_verbs(self, detector, monkeypatch) -> None:
        feature, proposals = propose(detector)
        first = detector.boxes(feature, Regions.pad(proposals), IMAGES.sizes)
        again = images_of(detector.boxes(feature, refined_proposals(first), IMAGES.sizes))
        pairs = list(zip(images_of(first), again, strict=True))
        expected = [one(torch.cat([a.scores, b.scores]), torch.cat([a.boxes, b.boxes])) for a, b in pairs]
        assert_scored(score([detector], Methods(refine=True)), expected)
        weight = detector.box_stage.predictor.deltas.weight
        monkeypatch.setattr(weight, "data", torch.zeros_like(weight))  # the biases are zero, so the proposals stay
        assert_same(detect([detector], Methods(refine=True)), detect([detector]))

    def test_best_class_moves_the_box_and_empty_boxes_are_no_proposals(self) -> None:
        boxes = torch.arange(24.0).reshape(1, 3, 2, 4) + torch.tensor([0.0, 0, 50, 50])
        scores = torch.tensor([[[0.2, 0.7], [0.5, 0.1], [0.05, 0.06]]])  # the background may be the best of all
        (found,) = refined_proposals(ScoredBoxes(scores, boxes, torch.ones(1, 3, dtype=torch.bool))).ragged()
        assert found.boxes.tolist() == [[4, 5, 56, 57], [8, 9, 60, 61], [20, 21, 72, 73]]
        torch.testing.assert_close(found.scores, torch.tensor([0.7, 0.5, 0.06]))
        boxes = torch.tensor([[[[5.0, 5, 5, 9]], [[5, 5, 9, 9]], [[5, 5, 9, 5]], [[1, 1, 2, 2]]]])
        scores, valid = torch.tensor([[[0.9], [0.8], [0.7], [0.6]]]), torch.tensor([[True, True, True, False]])
        (found,) = refined_proposals(ScoredBoxes(scores, boxes, valid)).ragged()
        assert (found.boxes.tolist(), found.scores.tolist()) == ([[5, 5, 9, 9]], pytest.approx([0.8]))
        (found,) = refined_proposals(ScoredBoxes(scores[:, :0], boxes[:, :0], valid[:, :0])).ragged()
        assert (found.boxes.shape, found.scores.shape) == ((0, 4), (0,))


class TestEnsemble:
    @pytest.mark.parametrize("methods", [PLAIN, ALL], ids=["plain", "all"])
    def test_twice_the_same_model_is_the_model(self, detector, methods) -> None:
        # Every proposal is there twice, so the scored boxes are the model's twice over, per pass; NMS then removes the
        # second of each pair, whose IoU with the first is 1, and voting counts every box twice.
        single, double = (record([detector] * count, methods) for count in (1, 2))
        for once, twice in zip(images_of(single), images_of(double), strict=True):
            passes = 2 if methods.refine else 1
            assert len(twice.scores) == 2 * len(once.scores) > 0
            for ours, theirs in zip(twice.scores.chunk(passes), once.scores.chunk(passes), strict=True):
                torch.testing.assert_close(ours, theirs.repeat(2, 1), rtol=1e-4, atol=1e-5)
            for ours, theirs in zip(twice.boxes.chunk(passes), once.boxes.chunk(passes), strict=True):
                torch.testing.assert_close(ours, theirs.repeat(2, 1, 1), rtol=1e-4, atol=1e-3)
        for vote_iou in (None, 0.5):
            kept = Postprocessor(score_threshold=0.0, vote_iou=vote_iou)
            assert_same(kept(double).ragged(), kept(single).ragged())

    def test_different_backbones_by_the_verbs(self) -> None:
        members = [member(name) for name in MEMBERS]
        features, proposals = zip(*map(propose, members), strict=True)
        images = list(zip(*proposals, strict=True))
        union = [Proposals(torch.cat([p.boxes for p in own]), torch.cat([p.scores for p in own])) for own in images]
        said = [said_of(own, feature, union) for own, feature in zip(members, features, strict=True)]
        each = list(zip(*said, strict=True))
        expected = [one(sum(m.scores for m in own) / 3, sum(m.boxes for m in own) / 3) for own in each]
        assert_scored(score(members, PLAIN), expected)
        assert not torch.allclose(said[0][0].scores, said[2][0].scores, atol=1e-2)


@pytest.mark.parametrize("half", [False, True])
def test_all_methods_of_an_ensemble_give_finite_sorted_boxes_in_their_image(half, pair, monkeypatch) -> None:
    before = IMAGES.pixels.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        detections = detect(pair, ALL, vote_iou=0.5)
    for found, (height, width) in zip(detections, SIZES, strict=True):
        assert 0 < len(found) <= 100
        assert found.boxes.dtype == found.scores.dtype == torch.float32
        assert found.boxes.isfinite().all()
        assert found.scores.isfinite().all()
        assert (found.scores.diff() <= 0).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert found.boxes.min() >= 0
        assert (found.boxes[:, 2:] <= torch.tensor([width, height]) + 1e-3).all()  # the mean of boxes is rounded
    assert torch.equal(IMAGES.pixels, before)
    for single in pair:
        monkeypatch.setattr(single.rpn.test_filter, "min_size", 1e6)
    assert [image.boxes.shape for image in detect(pair, ALL, vote_iou=0.5)] == [(0, 4), (0, 4)]

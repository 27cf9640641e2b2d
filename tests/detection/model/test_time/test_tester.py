"""Mirrors model/test_time/tester.py: what every method does to the scored boxes, before thresholds and NMS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detection.build import build_detector
from detection.config.detection import (
    AnchorConfig,
    BoxConfig,
    DetectionConfig,
    DetectorBackboneConfig,
    PostprocessConfig,
    RPNConfig,
)
from detection.model.box_stage import BoxStage, ScoredBoxes
from detection.model.faster_rcnn import FasterRCNN
from detection.model.postprocess import Postprocessor
from detection.model.test_time import tester  # not the class: pytest would collect it for its name
from detection.model.test_time.tester import Methods, merge_scored, refined_proposals
from detection.model.test_time.views import adjacent_scales, flip_boxes, flip_images, resize_images
from detection.padded import Found, Regions
from detection.structures import Detections, ImageBatch, Proposals

CLASSES = 3
CONFIG = DetectionConfig(
    backbone=DetectorBackboneConfig(name="resnet18", norm="gn", roi_size=2),
    anchors=AnchorConfig(sizes=(16.0, 32.0)),
    rpn=RPNConfig(channels=16, pre_nms_test=64, post_nms_test=12, min_size=2.0),
    # RoIPool gives regions over the same cells the same scores, and NMS of ties depends on their order.
    box=BoxConfig(pool="roi_align"),
    test=PostprocessConfig(score_threshold=0.0),
)
ALL = Methods(refine=True, scales=(48, 64, 96), flip=True)


def noise(height: int, width: int, *, seed: int = 0) -> Tensor:
    coarse = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(seed)) * 255
    return nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0].to(torch.uint8)


IMAGES = ImageBatch.from_images([noise(64, 80), noise(90, 56, seed=1)])


def seeded(seed: int = 0, **box: Any) -> FasterRCNN:
    return with_opinions(replace(CONFIG, box=replace(CONFIG.box, **box)), seed)


def with_opinions(config: DetectionConfig, seed: int) -> FasterRCNN:
    """A random detector whose scores and boxes differ from region to region."""
    torch.manual_seed(seed)
    detector = build_detector(config, CLASSES).eval().requires_grad_(False)
    assert isinstance(detector, FasterRCNN)
    nn.init.normal_(stage_of(detector).predictor.classes.weight, std=0.1)
    nn.init.normal_(stage_of(detector).predictor.deltas.weight, std=0.1)
    return detector


@pytest.fixture(scope="module")
def detector() -> FasterRCNN:
    return seeded()


@pytest.fixture(scope="module")
def contextual() -> FasterRCNN:
    return seeded(1, context=True)


@pytest.fixture(scope="module")
def vgg() -> FasterRCNN:
    return with_opinions(replace(CONFIG, backbone=DetectorBackboneConfig(name="vgg11", roi_size=1)), 2)


@dataclass(frozen=True)
class Recorder(Postprocessor):
    """Remembers what it was given."""

    seen: list[ScoredBoxes] = field(default_factory=list)

    def __call__(self, scored: ScoredBoxes) -> Found:
        self.seen.append(scored)
        return super().__call__(scored)


def score(detectors: Sequence[FasterRCNN], methods: Methods, images: ImageBatch = IMAGES) -> list[ScoredBoxes]:
    """The scored boxes of each image that a Tester hands to its postprocessor."""
    recorder = Recorder()
    tester.Tester(detectors, methods=methods, postprocess=recorder)(images)
    (scored,) = recorder.seen
    return images_of(scored)


def images_of(scored: ScoredBoxes) -> list[ScoredBoxes]:
    """The scored boxes of each image, (R, K) and (R, K, 4), without the padding."""
    rows = zip(scored.scores, scored.boxes, scored.valid, strict=True)
    return [ScoredBoxes(scores[valid], boxes[valid], valid[valid]) for scores, boxes, valid in rows]


def said_of(detector: FasterRCNN, features: Sequence[Tensor], proposals: Sequence[Proposals]) -> list[ScoredBoxes]:
    """Scores and boxes of the proposals of each of IMAGES."""
    return images_of(detector.boxes(features, Regions.pad(proposals), IMAGES.sizes))


def one(scores: Tensor, boxes: Tensor) -> ScoredBoxes:
    """Scores and boxes of one image, none of them padding."""
    return ScoredBoxes(scores, boxes, torch.ones(len(scores), dtype=torch.bool))


def flipped(boxes: Tensor, width: int) -> Tensor:
    """The boxes of one image, mirrored."""
    return flip_boxes(boxes[None], torch.tensor([width]))[0]


SIZES = IMAGES.size_list()


PLAIN = Methods()


def detect(detectors: Sequence[FasterRCNN], methods: Methods = PLAIN, **options: Any) -> list[Detections]:
    postprocess = Postprocessor(**{"score_threshold": 0.0, **options})
    return tester.Tester(detectors, methods=methods, postprocess=postprocess)(IMAGES)


def stage_of(detector: FasterRCNN) -> BoxStage:
    assert isinstance(detector.box_stage, BoxStage)
    return detector.box_stage


def propose(detector: FasterRCNN, images: ImageBatch = IMAGES) -> tuple[list[Tensor], list[Proposals]]:
    features = detector.features(images)
    return features, detector.propose(features, images).ragged()


def assert_scored(found: Sequence[ScoredBoxes], expected: Sequence[ScoredBoxes], *, exact: bool = False) -> None:
    tolerance: dict[str, Any] = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-3}
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.scores, theirs.scores, **{**tolerance, "atol": tolerance["atol"] / 100})
        torch.testing.assert_close(ours.boxes, theirs.boxes, **tolerance)


def assert_same(found: Sequence[Detections], expected: Sequence[Detections], *, exact: bool = False) -> None:
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == len(theirs) > 0
        assert torch.equal(ours.labels, theirs.labels)
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-5)
        torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-3)


def propose_always(monkeypatch: pytest.MonkeyPatch, detector: FasterRCNN, *boxes: Sequence[float]) -> None:
    """Makes ``detector`` propose ``boxes`` in every image."""
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    proposals = Proposals(boxes=rows, scores=torch.zeros(len(rows)))
    monkeypatch.setattr(detector, "propose", lambda features, images: Regions.pad([proposals] * len(images)))


class TestNoMethods:
    """A plain test."""

    def test_equals_the_detector(self, detector: FasterRCNN) -> None:
        plain = tester.Tester([detector], methods=Methods(), postprocess=detector.postprocess)
        assert_same(plain(IMAGES), detector(IMAGES), exact=True)

    def test_equals_the_detector_with_context(self, contextual: FasterRCNN) -> None:
        plain = tester.Tester([contextual], methods=Methods(), postprocess=contextual.postprocess)
        assert_same(plain(IMAGES), contextual(IMAGES), exact=True)

    def test_own_postprocessor_counts(self, detector: FasterRCNN) -> None:
        found = detect([detector], max_detections=2)
        assert [len(image) for image in found] == [2, 2]
        assert_same(found, [image[:2] for image in detector(IMAGES)], exact=True)

    def test_mode_reaches_the_detectors(self) -> None:
        detectors = [nn.Module.train(seeded()), seeded(1)]
        tester.Tester(detectors, methods=Methods(), postprocess=Postprocessor()).eval()
        assert not any(module.training for member in detectors for module in member.modules())


class TestScales:
    """The box stage at two scales per region; the RPN at the given one."""

    @pytest.mark.parametrize("name", ["detector", "contextual"])
    def test_vectors_are_the_maximum_of_the_two_passes(
        self, name: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
    ) -> None:
        monkeypatch.setattr("detection.model.test_time.views.REGION_SIDE", 32.0)  # as small as the images here
        detector: FasterRCNN = request.getfixturevalue(name)
        scales = (32, 64, 96, 128)
        # 32 * 64 / side in the first image, 32 * 56 / side in the second: 32 to 64, 64 to 96, 96 to 128 pixels
        rows = [[4.0, 4, 56, 60], [10, 20, 34, 44], [30, 8, 46, 30], [6, 5, 36, 25], [20, 30, 22, 33]]
        propose_always(monkeypatch, detector, *rows)
        lower = [[0, 1, 2, 1, 2], [0, 1, 1, 1, 2]]
        boxes = [torch.tensor(rows)] * 2
        shorter = [torch.full((5,), min(size)) for size in SIZES]
        assert [adjacent_scales(b, s, scales).tolist() for b, s in zip(boxes, shorter, strict=True)] == lower

        passes = []  # (regions of both images, D) at every scale
        for side in scales:
            view = resize_images(IMAGES, side)
            moved = [
                box * torch.tensor([w / width, h / height, w / width, h / height])
                for box, (height, width), (h, w) in zip(boxes, SIZES, view.size_list(), strict=True)
            ]
            images = torch.tensor([0] * 5 + [1] * 5)
            passes.append(stage_of(detector).vectors(detector.features(view), torch.cat(moved), images, view.sizes))
        expected = torch.stack(
            [torch.maximum(passes[k][row], passes[k + 1][row]) for row, k in enumerate(lower[0] + lower[1])]
        )
        assert not torch.allclose(expected, passes[1], rtol=1e-2)
        said, valid = stage_of(detector).predictor(expected.view(2, 5, -1)), torch.ones(2, 5, dtype=torch.bool)
        scored = stage_of(detector).decode(*said, torch.stack(boxes), valid, IMAGES.sizes)
        assert_scored(score([detector], Methods(scales=scales)), images_of(scored))

    def test_views_as_large_as_the_image_are_the_plain_test(self, detector: FasterRCNN) -> None:
        images = ImageBatch.from_images([noise(64, 80), noise(96, 64)])
        for name in ("scores", "boxes"):
            plain, scaled = (score([detector], Methods(scales=scales), images) for scales in ((), (64, 64)))
            for ours, theirs in zip(scaled, plain, strict=True):
                assert torch.equal(getattr(ours, name), getattr(theirs, name))

    def test_proposals_stay_at_the_given_scale(self, detector: FasterRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
        _, expected = propose(detector)
        seen: list[list[tuple[int, int]]] = []
        original = detector.propose

        def spy(features: Sequence[Tensor], images: ImageBatch) -> Regions:
            seen.append(images.size_list())
            return original(features, images)

        monkeypatch.setattr(detector, "propose", spy)
        scored = score([detector], Methods(scales=(48, 96)))
        assert seen == [SIZES]
        assert [len(image.scores) for image in scored] == [len(image) for image in expected]

    def test_scale_that_no_region_needs_changes_nothing(self, detector: FasterRCNN) -> None:
        # Regions of at most 90 pixels in images of 56 and more need scales above 56 * 224 / 90: the highest two.
        both = [score([detector], Methods(scales=scales)) for scales in ((32, 48, 64), (48, 64))]
        assert_scored(*both)

    def test_no_proposals(self, detector: FasterRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
        propose_always(monkeypatch, detector)
        for scored in score([detector], Methods(scales=(48, 96))):
            assert scored.scores.shape == (0, CLASSES)
            assert scored.boxes.shape == (0, CLASSES, 4)

    def test_one_image_without_proposals(self, detector: FasterRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
        _, (first, second) = propose(detector)
        for kept in ([first, second[:0]], [first[:0], second]):
            monkeypatch.setattr(detector, "propose", lambda features, images, kept=kept: Regions.pad(kept))
            scored = score([detector], Methods(scales=(48, 96)))
            assert [len(image.scores) for image in scored] == [len(image) for image in kept]


class TestFlip:
    """The mean of both sides, each image mirrored within its own width."""

    def test_by_the_verbs(self, detector: FasterRCNN) -> None:
        feature, proposals = propose(detector)
        plain = said_of(detector, feature, proposals)
        mirrored = [
            replace(image, boxes=flipped(image.boxes, width))
            for image, (_, width) in zip(proposals, SIZES, strict=True)
        ]
        other = said_of(detector, detector.features(flip_images(IMAGES)), mirrored)
        expected = [
            one((a.scores + b.scores) / 2, (a.boxes + flipped(b.boxes, width)) / 2)
            for a, b, (_, width) in zip(plain, other, SIZES, strict=True)
        ]
        assert_scored(score([detector], Methods(flip=True)), expected)
        assert not torch.allclose(expected[0].scores, plain[0].scores, atol=1e-3)

    def test_symmetric_image_scores_a_central_region_as_before(
        self, detector: FasterRCNN, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        half = noise(64, 40)
        images = ImageBatch.from_images([torch.cat([half, half.flip(-1)], dim=-1)])
        propose_always(monkeypatch, detector, [20, 10, 60, 50], [0, 0, 80, 64])
        (plain,), (both,) = (score([detector], Methods(flip=flip), images) for flip in (False, True))
        torch.testing.assert_close(both.scores, plain.scores)
        torch.testing.assert_close(both.boxes, (plain.boxes + flipped(plain.boxes, 80)) / 2)

    def test_mirrored_images_give_mirrored_boxes(self, detector: FasterRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = torch.tensor([[4.0, 4, 50, 60], [10, 20, 34, 44]])
        images = ImageBatch.from_images([noise(64, 80)])
        methods = Methods(flip=True, scales=(48, 96))
        propose_always(monkeypatch, detector, *rows.tolist())
        (forth,) = score([detector], methods, images)
        propose_always(monkeypatch, detector, *flipped(rows, 80).tolist())
        (back,) = score([detector], methods, flip_images(images))
        assert_scored([one(back.scores, flipped(back.boxes, 80))], [forth])

    def test_images_as_large_as_each_other_do_not_mix(self, detector: FasterRCNN) -> None:
        image = noise(64, 80)
        batched = score([detector], Methods(flip=True), ImageBatch.from_images([image, image.flip(-1)]))
        (alone,) = score([detector], Methods(flip=True), ImageBatch.from_images([image]))
        assert_scored(batched[:1], [alone])


class TestRefinement:
    """A second pass from the boxes of the first."""

    def test_by_the_verbs(self, detector: FasterRCNN) -> None:
        feature, proposals = propose(detector)
        first = detector.boxes(feature, Regions.pad(proposals), IMAGES.sizes)
        again = images_of(detector.boxes(feature, refined_proposals(first), IMAGES.sizes))
        expected = [
            one(torch.cat([a.scores, b.scores]), torch.cat([a.boxes, b.boxes]))
            for a, b in zip(images_of(first), again, strict=True)
        ]
        assert_scored(score([detector], Methods(refine=True)), expected)

    def test_zero_deltas_only_repeat_the_proposals(self) -> None:
        detector = seeded()
        nn.init.zeros_(stage_of(detector).predictor.deltas.weight)  # the biases start at zero
        plain, refined = (score([detector], Methods(refine=refine)) for refine in (False, True))
        for once, twice in zip(plain, refined, strict=True):
            count = len(once.scores)
            assert len(twice.scores) == 2 * count > 0
            halves = [one(twice.scores[rows], twice.boxes[rows]) for rows in (slice(count), slice(count, None))]
            assert_scored(halves, [once, once])
        assert_same(detect([detector], Methods(refine=True)), detect([detector]))

    def test_best_class_moves_the_box(self) -> None:
        boxes = torch.arange(24.0).reshape(3, 2, 4)
        boxes[..., 2:] += 50
        scores = torch.tensor([[0.2, 0.7], [0.5, 0.1], [0.05, 0.06]])  # the background may be the best of all
        valid = torch.ones(1, 3, dtype=torch.bool)
        (found,) = refined_proposals(ScoredBoxes(scores[None], boxes[None], valid)).ragged()
        assert found.boxes.tolist() == [[4, 5, 56, 57], [8, 9, 60, 61], [20, 21, 72, 73]]
        torch.testing.assert_close(found.scores, torch.tensor([0.7, 0.5, 0.06]))

    def test_empty_boxes_are_no_proposals(self) -> None:
        boxes = torch.tensor([[[5.0, 5, 5, 9]], [[5, 5, 9, 9]], [[5, 5, 9, 5]], [[1, 1, 2, 2]]])
        scores, valid = torch.tensor([[[0.9], [0.8], [0.7], [0.6]]]), torch.tensor([[True, True, True, False]])
        (found,) = refined_proposals(ScoredBoxes(scores, boxes[None], valid)).ragged()
        assert found.boxes.tolist() == [[5, 5, 9, 9]]
        assert found.scores.tolist() == pytest.approx([0.8])

    def test_nothing_to_refine(self) -> None:
        nothing = ScoredBoxes(torch.zeros(1, 0, 3), torch.zeros(1, 0, 3, 4), torch.zeros(1, 0, dtype=torch.bool))
        (found,) = refined_proposals(nothing).ragged()
        assert found.boxes.shape == (0, 4)
        assert found.scores.shape == (0,)


class TestEnsemble:
    """The union of the proposals, the mean of scores and boxes."""

    @pytest.mark.parametrize("methods", [Methods(), ALL], ids=["plain", "all"])
    def test_twice_the_same_model_is_the_model(self, detector: FasterRCNN, methods: Methods) -> None:
        # Every proposal is there twice, so the scored boxes are the model's twice over, per pass; NMS then removes the
        # second of each pair, whose IoU with the first is 1, and voting counts every box twice.
        single, double = score([detector], methods), score([detector, detector], methods)
        for once, twice in zip(single, double, strict=True):
            passes = 2 if methods.refine else 1
            assert len(twice.scores) == 2 * len(once.scores) > 0
            for ours, theirs in zip(twice.scores.chunk(passes), once.scores.chunk(passes), strict=True):
                torch.testing.assert_close(ours, theirs.repeat(2, 1), rtol=1e-4, atol=1e-5)
            for ours, theirs in zip(twice.boxes.chunk(passes), once.boxes.chunk(passes), strict=True):
                torch.testing.assert_close(ours, theirs.repeat(2, 1, 1), rtol=1e-4, atol=1e-3)
        for vote_iou in (None, 0.5):
            found = detect([detector, detector], methods, vote_iou=vote_iou)
            assert_same(found, detect([detector], methods, vote_iou=vote_iou))

    def test_different_backbones_by_the_verbs(
        self, detector: FasterRCNN, contextual: FasterRCNN, vgg: FasterRCNN
    ) -> None:
        members = [detector, contextual, vgg]
        features, proposals = zip(*(propose(member) for member in members), strict=True)
        union = [
            Proposals(
                boxes=torch.cat([image.boxes for image in images]), scores=torch.cat([image.scores for image in images])
            )
            for images in zip(*proposals, strict=True)
        ]
        said = [said_of(member, feature, union) for member, feature in zip(members, features, strict=True)]
        expected = [
            one(sum(m.scores for m in image) / 3, sum(m.boxes for m in image) / 3)  # pyright: ignore[reportArgumentType]  # no sum is empty
            for image in zip(*said, strict=True)
        ]
        assert_scored(score(members, Methods()), expected)
        assert not torch.allclose(said[0][0].scores, said[2][0].scores, atol=1e-2)

    def test_order_of_the_members_does_not_matter(self, detector: FasterRCNN, contextual: FasterRCNN) -> None:
        forth, back = (score(members, Methods()) for members in ([detector, contextual], [contextual, detector]))
        counts = [
            len(image) for image in propose(contextual)[1]
        ]  # these proposals come first in one, last in the other
        moved = [
            one(image.scores.roll(-count, dims=0), image.boxes.roll(-count, dims=0))
            for image, count in zip(back, counts, strict=True)
        ]
        assert_scored(forth, moved)
        assert_same(detect([detector, contextual]), detect([contextual, detector]))

    def test_merge_by_hand(self) -> None:
        members = [
            one(torch.tensor([[0.2, 0.6]]), torch.tensor([[[0.0, 0, 10, 10], [2, 2, 4, 4]]])),
            one(torch.tensor([[0.4, 0.0]]), torch.tensor([[[2.0, 4, 20, 30], [2, 2, 4, 4]]])),
        ]
        merged = merge_scored(members)
        torch.testing.assert_close(merged.scores, torch.tensor([[0.3, 0.3]]))
        assert merged.boxes.tolist() == [[[1, 2, 15, 20], [2, 2, 4, 4]]]

    def test_member_without_proposals_still_scores(
        self, detector: FasterRCNN, contextual: FasterRCNN, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, proposals = propose(detector)
        propose_always(monkeypatch, contextual)
        scored = score([detector, contextual], Methods())
        assert [len(image.scores) for image in scored] == [len(image) for image in proposals]
        assert not torch.allclose(scored[0].scores, score([detector], Methods())[0].scores, atol=1e-3)


class TestAllTogether:
    """Every method over an ensemble of two, one of them with context, on two images of different sizes."""

    def test_detections_are_finite_sorted_and_in_their_image(
        self, detector: FasterRCNN, contextual: FasterRCNN
    ) -> None:
        for found, (height, width) in zip(detect([detector, contextual], ALL, vote_iou=0.5), SIZES, strict=True):
            assert 0 < len(found) <= 100
            assert found.boxes.isfinite().all()
            assert found.scores.isfinite().all()
            assert (found.scores.diff() <= 0).all()
            assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
            assert found.boxes.min() >= 0
            assert (found.boxes[:, 2:] <= torch.tensor([width, height]) + 1e-3).all()  # the mean of boxes is rounded

    def test_no_proposals(self, detector: FasterRCNN, contextual: FasterRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
        for member in (detector, contextual):
            monkeypatch.setattr(member.rpn.test_filter, "min_size", 1e6)
        found = detect([detector, contextual], ALL, vote_iou=0.5)
        assert [image.boxes.shape for image in found] == [(0, 4), (0, 4)]

    def test_no_detections(self, detector: FasterRCNN, contextual: FasterRCNN) -> None:
        found = detect([detector, contextual], ALL, vote_iou=0.5, score_threshold=1.0)
        assert [image.boxes.shape for image in found] == [(0, 4), (0, 4)]

    def test_bfloat16(self, detector: FasterRCNN, contextual: FasterRCNN) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = detect([detector, contextual], ALL, vote_iou=0.5)
        for image in found:
            assert len(image)
            assert image.boxes.dtype == image.scores.dtype == torch.float32
            assert image.boxes.isfinite().all()

    def test_images_stay(self, detector: FasterRCNN) -> None:
        before = IMAGES.pixels.clone()
        detect([detector], ALL)
        assert torch.equal(IMAGES.pixels, before)

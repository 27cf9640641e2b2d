"""Mirrors detection/model/panoptic_fpn.py, panoptic_merge.py and detection/build_panoptic.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detection.build import build_detector, judged_fields
from detection.build_panoptic import build_merge, label_rows, with_stuff
from detection.build_tester import build_tester
from detection.config import detection as settings
from detection.data.label_maps import LabelMaps
from detection.data.packed_strings import PackedStrings
from detection.engine.checkpoint import Checkpoint
from detection.engine.transfer import load_initial_weights
from detection.masks import encode
from detection.model.panoptic_fpn import stuff_labels
from detection.model.panoptic_merge import Merging
from detection.model.semantic import pixel_loss
from detection.padded import Targets
from detection.structures import VOID, ImageBatch

CONFIG = settings.DetectionConfig(
    architecture="panoptic_fpn",
    backbone=settings.DetectorBackboneConfig(name="resnet18", norm="bn", fpn=True, fpn_channels=16),
    anchors=settings.AnchorConfig(sizes=(16.0, 32.0, 64.0, 128.0, 256.0)),
    box=settings.BoxConfig(head="fc", head_fcs=1, head_channels=16, pool="roi_align"),
    mask=settings.MaskConfig(convs=1, channels=8),
    semantic=settings.SemanticConfig(channels=32, loss_weight=0.5),
    panoptic=settings.PanopticConfig(stuff=("sky", "grass")),
)
SIZES = [(64, 96), (80, 64)]


def build(config: settings.DetectionConfig = CONFIG) -> Any:
    torch.manual_seed(0)
    return build_detector(config, 2, pretrained=False)


@pytest.fixture
def detector() -> Any:
    return build()


@pytest.fixture
def batch(make_masked) -> tuple[ImageBatch, Targets]:
    generator, targets = torch.Generator().manual_seed(0), []
    images = [torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in SIZES]
    for number, size in enumerate(SIZES):
        target = make_masked((8, 8, 48, 40), labels=[number], size=size)
        label_map = torch.full(size, 2, dtype=torch.uint8)
        label_map[target.masks[0]], label_map[-8:] = number, VOID
        targets.append(replace(target, label_map=label_map))
    return ImageBatch.from_images(images, seeds=(1, 2)), Targets.pad(targets)


def test_labels_of_stuff_make_things_one_class_and_are_those_of_the_data_set() -> None:
    labels = torch.tensor([0, 1, 2, 3, VOID], dtype=torch.uint8)
    assert stuff_labels(labels, 2).tolist() == [0, 0, 1, 2, VOID]
    assert stuff_labels(labels, 0).tolist() == [1, 2, 3, 4, VOID]
    assert stuff_labels(torch.tensor([132, 79], dtype=torch.uint8), 80).tolist() == [53, 0]
    files, segments = PackedStrings.pack([""]), PackedStrings.pack(["[]"])
    maps = LabelMaps(class_names=("cat", "dog", "sky"), files=files, values={}, num_things=2, segments=segments)
    empty = replace(CONFIG, panoptic=settings.PanopticConfig())
    assert with_stuff(empty, maps).panoptic.stuff == ("sky",)
    assert with_stuff(empty, None) == empty
    for config, own, match in ((CONFIG, maps, "grass"), (empty, replace(maps, segments=None), "coco_panoptic")):
        with pytest.raises(ValueError, match=match):
            with_stuff(config, own)
    with pytest.raises(ValueError, match=r"panoptic\.stuff"):
        build(empty)


def test_losses_are_mask_r_cnns_and_half_of_the_pixels(detector, batch) -> None:
    images, targets = batch
    losses = {name: loss.item() for name, loss in detector.eval()(images, targets).items()}
    mask_rcnn = build(replace(CONFIG, architecture="mask_rcnn")).eval()
    mask_rcnn.load_state_dict(detector.state_dict(), strict=False)
    alone = {name: loss.item() for name, loss in mask_rcnn(images, targets).items()}
    logits = detector.label_stage.head(detector.features(images))
    assert logits.shape[1] == 3
    collapsed = replace(targets, label_maps=stuff_labels(targets.label_maps, 2))
    whole = pixel_loss(logits, collapsed, detector.normalize.padded(images))
    assert losses == {**alone, "semantic": pytest.approx(0.5 * whole.item())}


def test_every_trained_parameter_has_a_gradient_unless_its_part_is_fixed(detector, batch) -> None:
    images, targets = batch
    torch.stack(list(detector.train()(images, targets).values())).sum().backward()
    without = [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert not [name for name in without if "label_stage" in name or "lateral" in name]
    detector.fix(["box_stage"])
    assert not {"semantic", "mask"} & set(detector(images, targets))


def test_scores_are_of_each_image_without_padding(detector, batch) -> None:
    for tester in (detector.eval(), build_tester(CONFIG.test, [detector]).eval()):
        with torch.inference_mode():
            found = tester(batch[0])
        assert [tuple(image.label_scores.shape) for image in found] == [(3, *size) for size in SIZES]
        assert all(image.masks is not None for image in found)


def test_what_it_lacks_is_refused(detector, batch) -> None:
    images, targets = batch
    with pytest.raises(ValueError, match="label maps"):
        detector(images, replace(targets, label_maps=None))
    with pytest.raises(ValueError, match="panoptic"):
        build_tester(CONFIG.test, [detector, detector])
    for fpn in ({"fpn": False}, {"fpn": True, "fpn_coarse": "p5"}):
        with pytest.raises(ValueError, match=r"backbone\.fpn"):
            replace(CONFIG, backbone=replace(CONFIG.backbone, **fpn))


def test_rows_of_stuff_go_with_their_names(detector) -> None:
    other = build(replace(CONFIG, panoptic=settings.PanopticConfig(stuff=("snow", "grass"))))
    row = "label_stage.head.classes.weight"
    torch.nn.init.normal_(other.state_dict()[row])
    start = other.state_dict()[row].clone()
    there = Checkpoint(Path("there"), detector.state_dict(), CONFIG, ("cat", "dog"), 0)
    load_initial_weights(other, there, ("cat", "dog"), {}, row_names=label_rows(CONFIG))
    theirs = detector.state_dict()[row]
    assert torch.equal(other.state_dict()[row], torch.stack([theirs[0], start[1], theirs[2]]))


def by_pixels(found: list[Any], label_map: Any, rule: Merging) -> list[list[int]]:
    """The paper's rule on sets of pixels: (label, pixels) of each segment, in their order."""
    taken, segments = set[int](), list[list[int]]()
    for score, label, mask in sorted(found, key=lambda item: -item[0]):
        pixels = set(np.flatnonzero(mask).tolist())
        if score < rule.instance_score or not pixels or len(pixels & taken) / len(pixels) > rule.overlap:
            continue
        segments += [[label, *sorted(pixels - taken)]] if pixels - taken else []
        taken |= pixels
    for stuff in range(1, int(label_map.max(initial=0)) + 1):
        pixels = set(np.flatnonzero(label_map == stuff).tolist()) - taken
        if pixels and len(pixels) >= rule.stuff_area:
            segments.append([rule.num_things + stuff - 1, *sorted(pixels)])
    return segments


def test_merging_is_as_the_config_says_and_the_rule_pixel_by_pixel() -> None:
    own = settings.PanopticConfig(stuff=("sky",), instance_score=0.3, overlap=0.2, stuff_area=7)
    merge: Any = build_merge(replace(CONFIG, panoptic=own), 5)
    assert (merge.num_things, merge.instance_score, merge.overlap, merge.stuff_area) == (5, 0.3, 0.2, 7)
    assert build_merge(replace(CONFIG, architecture="mask_rcnn"), 5) is None
    assert judged_fields(CONFIG) == ("masks", "label_maps", "panoptic")
    # Also with shares, scores and areas exactly at their limits, and without any object
    generator = np.random.default_rng(0)
    for _ in range(300):
        overlap, area = float(generator.choice([0.25, 0.5, 0.75, 1.0])), int(generator.integers(1, 30))
        rule, objects = Merging(num_things=4, instance_score=0.5, overlap=overlap, stuff_area=area), list[Any]()
        for score in generator.permutation(20)[: generator.integers(0, 8)] / 20:
            top, left, height, width = generator.integers(0, 9, 4)
            mask = np.zeros((9, 11), np.bool_)
            mask[top : top + height, left : left + width] = True
            objects.append((float(score), int(generator.integers(4)), mask))
        label_map = generator.integers(0, 3, (9, 11)).astype(np.uint8)
        scores, labels = np.array([own[0] for own in objects]), np.array([own[1] for own in objects], np.int64)
        found = rule(scores, labels, tuple(encode(mask) for _, _, mask in objects), label_map)
        got = [[s.label, *np.flatnonzero(found.ids == s.id).tolist()] for s in found.found]
        assert got == by_pixels(objects, label_map, rule)
        assert set(np.unique(found.ids).tolist()) <= {0, *(s.id for s in found.found)}

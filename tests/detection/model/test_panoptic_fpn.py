"""Mirrors detection/model/panoptic_fpn.py and detection/build_panoptic.py: the network as its config builds it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detection.build import build_detector, judged_fields
from detection.build_panoptic import build_merge, label_rows, with_stuff
from detection.build_tester import build_tester
from detection.config.detection import (
    AnchorConfig,
    BoxConfig,
    DetectionConfig,
    DetectorBackboneConfig,
    MaskConfig,
    PanopticConfig,
    SemanticConfig,
)
from detection.data.label_maps import LabelMaps
from detection.data.packed_strings import PackedStrings
from detection.engine.checkpoint import Checkpoint
from detection.engine.transfer import load_initial_weights
from detection.model.faster_rcnn import FasterRCNN
from detection.model.panoptic_fpn import stuff_labels
from detection.model.semantic import pixel_loss
from detection.padded import Targets
from detection.structures import VOID, ImageBatch, Target

CONFIG = DetectionConfig(
    architecture="panoptic_fpn",
    backbone=DetectorBackboneConfig(name="resnet18", norm="bn", fpn=True, fpn_channels=16),
    anchors=AnchorConfig(sizes=(16.0, 32.0, 64.0, 128.0, 256.0)),
    box=BoxConfig(head="fc", head_fcs=1, head_channels=16, pool="roi_align"),
    mask=MaskConfig(convs=1, channels=8),
    semantic=SemanticConfig(channels=32, loss_weight=0.5),
    panoptic=PanopticConfig(stuff=("sky", "grass")),
)


@pytest.fixture
def detector() -> FasterRCNN:
    """Of two things and two kinds of stuff."""
    torch.manual_seed(0)
    built = build_detector(CONFIG, 2, pretrained=False)
    assert isinstance(built, FasterRCNN)
    return built


def batch() -> tuple[ImageBatch, Targets]:
    """Two images of different sizes with an object each."""
    generator = torch.Generator().manual_seed(0)
    sizes, targets = [(64, 96), (80, 64)], list[Target]()
    images = [torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    for number, size in enumerate(sizes):
        mask = torch.zeros(1, *size, dtype=torch.bool)
        mask[0, 8:40, 8:48] = True
        label_map = torch.full(size, 2, dtype=torch.uint8)
        label_map[mask[0]], label_map[-8:] = number, VOID
        targets.append(
            Target(
                torch.tensor([[8.0, 8, 48, 40]]),
                torch.tensor([number]),
                torch.tensor([False]),
                masks=mask,
                label_map=label_map,
            )
        )
    return ImageBatch.from_images(images, seeds=(1, 2)), Targets.pad(targets)


class TestStuffLabels:
    def test_things_are_one_class_and_void_stays(self) -> None:
        labels = torch.tensor([0, 1, 2, 3, VOID], dtype=torch.uint8)
        assert stuff_labels(labels, 2).tolist() == [0, 0, 1, 2, VOID]
        assert stuff_labels(labels, 0).tolist() == [1, 2, 3, 4, VOID]
        assert stuff_labels(torch.tensor([132, 79], dtype=torch.uint8), 80).tolist() == [53, 0]


class TestPanopticFPN:
    def test_losses_are_mask_r_cnns_and_half_of_the_pixels(self, detector: FasterRCNN) -> None:
        images, targets = batch()
        losses = detector.eval()(images, targets)
        torch.manual_seed(0)
        mask_rcnn = build_detector(replace(CONFIG, architecture="mask_rcnn"), 2, pretrained=False).eval()
        mask_rcnn.load_state_dict(detector.state_dict(), strict=False)
        alone = mask_rcnn(images, targets)
        assert {name: float(loss.detach()) for name, loss in alone.items()} == {
            name: float(loss.detach()) for name, loss in losses.items() if name != "semantic"
        }
        assert detector.label_stage is not None
        assert targets.label_maps is not None
        collapsed = replace(targets, label_maps=stuff_labels(targets.label_maps, 2))
        logits = detector.label_stage.head(detector.features(images))
        assert logits.shape[1] == 3
        whole = pixel_loss(logits, collapsed, detector.normalize.padded(images))
        assert float(losses["semantic"].detach()) == pytest.approx(0.5 * float(whole.detach()))

    def test_every_trained_parameter_has_a_gradient(self, detector: FasterRCNN) -> None:
        images, targets = batch()
        total: Tensor = torch.stack(list(detector.train()(images, targets).values())).sum()
        total.backward()
        without = [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]
        assert not [name for name in without if "label_stage" in name or "lateral" in name]

    def test_targets_without_label_maps_are_refused(self, detector: FasterRCNN) -> None:
        images, targets = batch()
        with pytest.raises(ValueError, match="label maps"):
            detector(images, replace(targets, label_maps=None))

    def test_scores_are_of_each_image_without_padding(self, detector: FasterRCNN) -> None:
        images, _ = batch()
        for tester in (detector.eval(), build_tester(CONFIG.test, [detector]).eval()):
            with torch.inference_mode():
                found = tester(images)
            assert [tuple(image.label_scores.shape) for image in found] == [(3, 64, 96), (3, 80, 64)]
            assert all(image.masks is not None for image in found)

    def test_an_ensemble_is_refused(self, detector: FasterRCNN) -> None:
        with pytest.raises(ValueError, match="panoptic"):
            build_tester(CONFIG.test, [detector, detector])

    def test_a_part_that_is_fixed_has_no_loss(self, detector: FasterRCNN) -> None:
        detector.fix(["box_stage"])
        images, targets = batch()
        assert not {"semantic", "mask"} & set(detector(images, targets))


class TestConfig:
    def test_stuff_is_that_of_the_data_set(self) -> None:
        maps = LabelMaps(
            class_names=("cat", "dog", "sky"),
            files=PackedStrings.pack([""]),
            values={},
            num_things=2,
            segments=PackedStrings.pack(["[]"]),
        )
        empty = replace(CONFIG, panoptic=PanopticConfig())
        assert with_stuff(empty, maps).panoptic.stuff == ("sky",)
        assert with_stuff(empty, None) == empty
        with pytest.raises(ValueError, match="grass"):
            with_stuff(CONFIG, maps)
        with pytest.raises(ValueError, match="coco_panoptic"):
            with_stuff(empty, replace(maps, segments=None))
        with pytest.raises(ValueError, match=r"panoptic\.stuff"):
            build_detector(empty, 2, pretrained=False)

    def test_rows_of_stuff_go_with_their_names(self, detector: FasterRCNN) -> None:
        own = replace(CONFIG, panoptic=PanopticConfig(stuff=("snow", "grass")))
        other = build_detector(own, 2, pretrained=False)
        row = "label_stage.head.classes.weight"
        start = other.state_dict()[row].clone()
        there = Checkpoint(Path("there"), detector.state_dict(), CONFIG, ("cat", "dog"), 0)
        load_initial_weights(other, there, ("cat", "dog"), {}, row_names=label_rows(CONFIG))
        carried, theirs = other.state_dict()[row], detector.state_dict()[row]
        assert [bool((carried[k] == theirs[k]).all()) for k in range(3)] == [True, False, True]
        assert torch.equal(carried[1], start[1])

    def test_merging_is_as_the_config_says(self) -> None:
        own = PanopticConfig(stuff=("sky",), instance_score=0.3, overlap=0.2, stuff_area=7)
        merge = build_merge(replace(CONFIG, panoptic=own), 5)
        assert merge is not None
        assert (merge.num_things, merge.instance_score, merge.overlap, merge.stuff_area) == (5, 0.3, 0.2, 7)
        assert build_merge(replace(CONFIG, architecture="mask_rcnn"), 5) is None
        assert judged_fields(CONFIG) == ("masks", "label_maps", "panoptic")

    @pytest.mark.parametrize("fpn", [{"fpn": False}, {"fpn": True, "fpn_coarse": "p5"}])
    def test_another_trunk_is_refused(self, fpn: dict[str, object]) -> None:
        with pytest.raises(ValueError, match=r"backbone\.fpn"):
            replace(CONFIG, backbone=replace(CONFIG.backbone, **fpn))

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from detection.boxes import iou
from detection.build import build_detector
from detection.config.detection import AnchorConfig, DetectionConfig
from detection.config.load import parse_config
from detection.data.index import AnnotationIndex
from detection.model.anchors import AnchorGenerator
from detection.tasks.anchor_reach import reach_of_config, reach_of_suggested, suggest

SINGLE = AnchorConfig(sizes=(16.0, 40.0), ratios=(0.5, 2.0))
PYRAMID = AnchorConfig(sizes=(8.0, 16.0, 32.0, 64.0, 128.0), ratios=(0.5, 1.0))


def config(anchors: AnchorConfig, *, fpn: bool) -> DetectionConfig:
    text = f"backbone: {{name: resnet18, fpn: {fpn}}}\nbox: {{head: {'fc' if fpn else 'tail'}}}\n"
    return replace(parse_config(DetectionConfig, text + "data: {shorter_side: 128, longer_side: 160}"), anchors=anchors)


@pytest.fixture
def index(make_index) -> AnnotationIndex:
    rng = np.random.default_rng(0)
    corners, sides = rng.uniform((8, 8), (40, 30), (30, 2)), rng.uniform(4, 24, (30, 2))
    boxes = np.concatenate([corners, corners + sides], axis=1).tolist()
    return make_index([[(tuple(box), 0, False) for box in boxes]], sizes=[(64, 80)])


@pytest.mark.parametrize(("anchors", "fpn"), [(SINGLE, False), (PYRAMID, True)])
def test_the_best_anchor_is_the_best_of_the_whole_grid(index, anchors, fpn) -> None:
    made = config(anchors, fpn=fpn)
    reach: Any = reach_of_config(index, made, "c")
    detector = build_detector(made, 2, pretrained=False)
    grids = [module for module in detector.modules() if isinstance(module, AnchorGenerator)]
    every = torch.cat([grid(-(-128 // grid.stride), -(-160 // grid.stride)) for grid in grids])
    expected = iou(index.boxes * 2, every).amax(dim=1).numpy()
    assert reach.ious == pytest.approx(expected, abs=1e-5)
    assert len(reach.anchors) == sum(grid.num_anchors for grid in grids)


def test_suggested_anchors_have_as_many_sizes_as_the_config_and_reach_more(index) -> None:
    made = config(AnchorConfig(), fpn=False)
    suggested = suggest(index, made)
    values = {choice.key: choice.value for choice in suggested}
    assert len(values["anchors.sizes"]) == 3
    own: Any = reach_of_config(index, made, "c")
    fitting = reach_of_suggested(index, suggested, made)
    assert fitting.missed(0.5).sum() < own.missed(0.5).sum() == len(own.ious) == 30


def test_several_sizes_a_level_are_of_their_level_and_without_anchors_nothing_is_suggested(index, make_index) -> None:
    several = replace(PYRAMID, sizes=tuple(8.0 * 2 ** (number / 2) for number in range(10)))
    dense = replace(config(several, fpn=True), architecture="retinanet")
    dense = replace(dense, backbone=replace(dense.backbone, fpn_coarse="p5"))
    reach: Any = reach_of_config(index, dense, "c")
    assert len(reach.anchors) == 10 * 2
    (sizes,) = (choice.value for choice in suggest(index, dense) if choice.key == "anchors.sizes")
    assert len(sizes) == 5
    assert sizes[0] >= 16  # two cells of p3
    points = replace(dense, architecture="fcos")
    assert reach_of_config(index, points, "c") is None
    assert suggest(index, points) == []
    assert suggest(make_index([])) == suggest(make_index([[]])) == []  # without an object

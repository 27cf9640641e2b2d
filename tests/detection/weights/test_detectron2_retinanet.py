"""Mirrors weights/detectron2_retinanet.py: the RetinaNets of Detectron2's zoo, by their names and shapes.

Names, shapes and the forward pass are written down here by Detectron2's source, independently of the code under test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses
from torchvision.ops import batched_nms, clip_boxes_to_image

from detection.build import build_detector
from detection.structures import ImageBatch
from detection.weights.detectron2 import convert_detectron2
from detection.weights.detectron2_settings import settings_of
from detection.weights.origin import _class_names
from detection.weights.to_detectron2 import to_detectron2

Shapes = dict[str, tuple[int, ...]]
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
CLASSES = ("cat", "dog", "cow")
ANCHORS = 9
NORM = ("weight", "bias", "running_mean", "running_var")


def retinanet_shapes(depth: int, classes: int) -> Shapes:
    shapes = Shapes()

    def add(name: str, *shape: int, normalised: bool = False) -> None:
        parts = [f"norm.{part}" for part in NORM] if normalised else ["bias"]
        shapes.update({f"{name}.weight": shape, **{f"{name}.{part}": shape[:1] for part in parts}})

    body = "backbone.bottom_up"
    add(f"{body}.stem.conv1", 64, 3, 7, 7, normalised=True)
    for number, blocks in enumerate(BLOCKS[depth], start=2):
        inner, outer = 16 * 2**number, 64 * 2**number
        for block in range(blocks):
            place, entering = f"{body}.res{number}.{block}", outer if block else 64 if number == 2 else outer // 2
            if not block:
                add(f"{place}.shortcut", outer, entering, 1, 1, normalised=True)
            add(f"{place}.conv1", inner, entering, 1, 1, normalised=True)
            add(f"{place}.conv2", inner, inner, 3, 3, normalised=True)
            add(f"{place}.conv3", outer, inner, 1, 1, normalised=True)
    for number in (3, 4, 5):
        add(f"backbone.fpn_lateral{number}", 256, 64 * 2**number, 1, 1)
        add(f"backbone.fpn_output{number}", 256, 256, 3, 3)
    add("backbone.top_block.p6", 256, 2048, 3, 3)
    for name in ("backbone.top_block.p7", *(f"head.{net}_subnet.{i}" for net in ("cls", "bbox") for i in (0, 2, 4, 6))):
        add(name, 256, 256, 3, 3)
    add("head.cls_score", ANCHORS * classes, 256, 3, 3)
    add("head.bbox_pred", ANCHORS * 4, 256, 3, 3)
    return shapes


def constant_state(depth: int = 50, classes: int = len(CLASSES)) -> dict[str, Tensor]:
    """Every tensor repeats a number of its own."""
    shapes = retinanet_shapes(depth, classes)
    return {name: torch.tensor(i / 1000).expand(shape) for i, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize("depth", [50, 101])
def test_the_zoo_s_tensors_all_have_a_place(depth) -> None:
    state = constant_state(depth, classes=80)
    config, converted = convert_detectron2(state, class_names=_class_names(state, "detectron2"))
    assert (config.architecture, config.backbone.name) == ("retinanet", f"resnet{depth}")
    backbone = config.backbone
    assert (backbone.fpn_coarse, backbone.stride_in, backbone.weights_source) == ("c5", "1x1", "msra")
    assert len(converted) == len(state) + 1
    assert converted["head.scale.positives"].item() == 100  # which Detectron2 begins with, and does not save
    for theirs, ours in (
        ("backbone.fpn_lateral3.weight", "backbone.lateral.c3.0.weight"),
        ("backbone.top_block.p7.bias", "backbone.coarse.p7.0.bias"),
        ("head.cls_subnet.6.weight", "head.class_tower.3.0.weight"),
        ("head.bbox_subnet.2.bias", "head.box_tower.1.0.bias"),
        ("head.bbox_pred.weight", "head.deltas.weight"),
    ):
        assert converted[ours].unique() == state[theirs].unique()


def test_settings_are_the_zoo_s_and_are_replaced() -> None:
    config, _ = convert_detectron2(constant_state(), class_names=CLASSES)
    assert config.anchors.sizes[:4] == pytest.approx((32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3), 64))
    assert (config.anchors.offset, config.anchors.rounded, config.dense.clip_first) == (0, False, False)
    assert (config.dense.normalizer, config.dense.smooth_l1_beta) == ("running", 0)
    settings: dict[str, Any] = settings_of(config)
    assert settings["MODEL.ANCHOR_GENERATOR.SIZES"][1] == pytest.approx([64, 64 * 2 ** (1 / 3), 64 * 2 ** (2 / 3)])
    changed = settings | {
        "MODEL.META_ARCHITECTURE": "RetinaNet",
        "MODEL.RETINANET.SCORE_THRESH_TEST": 0.3,
        "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 77,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.9,  # a RetinaNet has none
        "MODEL.ANCHOR_GENERATOR.SIZES": [[size, size + 1, size + 2] for size in (10, 20, 40, 80, 160)],
    }
    own, _ = convert_detectron2(constant_state(), class_names=CLASSES, settings=changed)
    assert (own.test.score_threshold, own.dense.pre_nms, own.test.nms_iou) == (0.3, 77, 0.5)
    assert own.anchors.sizes[:4] == (10, 11, 12, 20)


def test_it_goes_back_with_the_same_bits_and_settings_or_is_refused() -> None:
    state = constant_state() | {"head.cls_score.bias": torch.arange(float(ANCHORS * len(CLASSES)))}
    config, converted = convert_detectron2(state, class_names=CLASSES)
    back, settings = to_detectron2(config, CLASSES, converted)
    assert set(back) == set(state)
    assert all(back[name].equal(value) for name, value in state.items())
    assert (settings["MODEL.META_ARCHITECTURE"], settings["MODEL.RETINANET.NUM_CLASSES"]) == ("RetinaNet", 3)
    assert convert_detectron2(back, class_names=CLASSES, settings=settings)[0] == config
    for changed, key in (
        (replace(config, backbone=replace(config.backbone, fpn_coarse="p5")), r"backbone\.fpn_coarse p5"),
        (replace(config, dense=replace(config.dense, clip_first=True)), r"dense\.clip_first is True"),
        (replace(config, architecture="fcos"), "architecture fcos"),
    ):
        with pytest.raises(ValueError, match=key):
            to_detectron2(changed, CLASSES, converted)
    for setting, value, message in (  # without a place here
        ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "'RetinaNet' and cannot be changed"),
        ("MODEL.RETINANET.BBOX_REG_WEIGHTS", [10.0, 10.0, 5.0, 5.0], "BBOX_REG_WEIGHTS"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_detectron2(constant_state(), class_names=CLASSES, settings={setting: value})


@pytest.fixture
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def drawn_head() -> dict[str, Tensor]:
    """A state whose head has random values under which outputs spread; the trunk is constant."""
    generator = torch.Generator().manual_seed(0)
    state = {name: value.double() for name, value in constant_state().items()}
    for name, value in state.items():
        if name.startswith("head."):
            fan_in = value[0].numel() if value.ndim == 4 else 100
            state[name] = torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5
    state["head.bbox_pred.weight"] = state["head.bbox_pred.weight"] * 0.3
    return state


def zoo_head(state: Mapping[str, Tensor], subnet: str, output: str, level: Tensor, width: int) -> Tensor:
    """Outputs (H * W * A, ``width``) of a level (1, C, H, W)."""
    for layer in (0, 2, 4, 6):
        name = f"head.{subnet}.{layer}"
        level = F.relu(F.conv2d(level, state[f"{name}.weight"], state[f"{name}.bias"], padding=1))
    level = F.conv2d(level, state[f"head.{output}.weight"], state[f"head.{output}.bias"], padding=1)
    return level.view(-1, width, *level.shape[2:]).permute(2, 3, 0, 1).reshape(-1, width)


def zoo_anchors(number: int, height: int, width: int) -> Tensor:
    """Of level ``number`` (3 to 7), all of a cell together, by size and then by ratio."""
    cell = []
    for third in range(3):
        for ratio in (0.5, 1.0, 2.0):
            size = 4 * 2**number * 2 ** (third / 3)
            w = (size**2 / ratio) ** 0.5
            cell.append([-w / 2, -w * ratio / 2, w / 2, w * ratio / 2])
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4) * 2**number
    return (shifts + torch.tensor(cell)).reshape(-1, 4)


def zoo_detections(state: Mapping[str, Tensor], levels: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Boxes, scores and labels of one image."""
    found = []
    for number, level in enumerate(levels, start=3):
        scores = zoo_head(state, "cls_subnet", "cls_score", level, len(CLASSES)).flatten().sigmoid()
        best = scores.argsort(descending=True)[:1000]
        best = best[scores[best] > 0.05]
        rows, labels = best // len(CLASSES), best % len(CLASSES)
        deltas = zoo_head(state, "bbox_subnet", "bbox_pred", level, 4)[rows]
        x1, y1, x2, y2 = zoo_anchors(number, level.shape[2], level.shape[3])[rows].unbind(1)
        x, y = (x1 + x2) / 2 + deltas[:, 0] * (x2 - x1), (y1 + y2) / 2 + deltas[:, 1] * (y2 - y1)
        w, h = (x2 - x1) * deltas[:, 2].exp() / 2, (y2 - y1) * deltas[:, 3].exp() / 2
        found.append((torch.stack([x - w, y - h, x + w, y + h], dim=1), scores[best], labels))
    boxes, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    kept = batched_nms(boxes, scores, labels, 0.5)[:100]
    return clip_boxes_to_image(boxes[kept], size), scores[kept], labels[kept]


@torch.no_grad()
def test_boxes_and_scores_are_detectron2_s(double_precision, monkeypatch) -> None:
    """From the feature maps on: clipped after NMS, anchors that are not rounded."""
    state = drawn_head()
    config, weights = convert_detectron2(state, class_names=CLASSES)
    detector = build_detector(config, len(CLASSES), pretrained=False).eval()
    detector.load_state_dict(weights)
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(1, 256, *size, generator=generator) for size in ((12, 16), (6, 8), (3, 4), (2, 2), (1, 1))]
    monkeypatch.setattr(detector, "features", lambda images: levels)
    (found,) = detector(ImageBatch.from_images([torch.zeros(3, 96, 128, dtype=torch.uint8)]))
    boxes, scores, labels = zoo_detections(state, levels, (96, 128))
    filled = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # ours drops the others before the best 100 are taken
    count = int(filled.sum())
    assert count >= 50
    assert found.labels[:count].equal(labels[filled])
    torch.testing.assert_close(found.scores[:count], scores[filled], rtol=0, atol=1e-9)
    torch.testing.assert_close(found.boxes[:count], boxes[filled], rtol=0, atol=1e-4)  # cells are float32 in anchors

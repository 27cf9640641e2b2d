"""Mirrors detection/export/operators.py and rows.py.

Operators translated to ONNX give in ONNX Runtime and OpenVINO what PyTorch gives; graphs that compute only the rows
that count give what those of fixed shapes give, and take images without any.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from backbones.deformable import DeformableConv
from detection.export.files import read_for_openvino
from detection.export.operators import OPSET, shorten_sorts, translations
from detection.export.rows import keep_counted_rows
from detection.model.keypoint_stage import KeypointHead, KeypointStage
from detection.model.mask_stage import MaskHead, MaskStage
from detection.model.pooler import RegionPooler
from detection.model.select import as_on_gpu, nms, select_top
from detection.padded import Found

NUM_CLASSES = 3


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


@pytest.fixture
def run(tmp_path) -> Callable[..., Iterator[list[np.ndarray]]]:
    """Exports a function and runs it in ONNX Runtime, then in OpenVINO."""

    def export_and_run(function: Callable[..., Any], *inputs: Tensor) -> Iterator[list[np.ndarray]]:
        onnxruntime, openvino = pytest.importorskip("onnxruntime"), pytest.importorskip("openvino")
        pytest.importorskip("onnxscript")
        path, exported = tmp_path / "function.onnx", torch.export.export(Function(function), inputs)
        options = {"opset_version": OPSET, "custom_translation_table": dict(translations(NUM_CLASSES))}
        program: Any = torch.onnx.export(exported, dynamo=True, verbose=False, **options)
        shorten_sorts(program.model)
        program.save(path)
        arrays = [values.numpy() for values in inputs]
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        yield session.run(None, {given.name: x for given, x in zip(session.get_inputs(), arrays, strict=True)})
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        found = openvino.Core().compile_model(read_for_openvino(path), "CPU", settings)(arrays)
        yield [found[place] for place in range(len(found))]

    return export_and_run


def boxes_and_scores(count: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Dense boxes of two groups, with many equal scores, equal boxes, and some that do not count."""
    generator = torch.Generator().manual_seed(0)
    corners = (torch.rand(2, count, 2, generator=generator) * 20).round()
    sides = 5 + (torch.rand(2, count, 2, generator=generator) * 10).round()
    scores = (torch.rand(2, count, generator=generator) * 8).round() / 8
    scores[:, ::7] = -torch.inf
    classes = torch.randint(NUM_CLASSES, (2, count), generator=generator)
    return torch.cat([corners, corners + sides], dim=2), scores, classes


@pytest.mark.parametrize("iou", [0.5, pytest.param(0.7, marks=pytest.mark.slow)])
def test_nms_of_classes_keeps_what_ours_keeps(iou: float, run) -> None:
    inputs = boxes_and_scores()
    expected = nms(*inputs, iou, 60)
    assert 0 < int((expected > -torch.inf).sum()) < int((inputs[1] > -torch.inf).sum())
    for (found,) in run(lambda boxes, scores, classes: nms(boxes, scores, classes, iou, 60), *inputs):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_nms_without_classes_or_candidates(run) -> None:
    boxes, scores, _ = boxes_and_scores()
    scores[1] = -torch.inf
    for (found,) in run(lambda boxes, scores: nms(boxes, scores, None, 0.7, 60), boxes, scores):
        np.testing.assert_array_equal(found, nms(boxes, scores, None, 0.7, 60))


def test_ties_go_by_position(run) -> None:
    scores = (torch.rand(2, 300, generator=torch.Generator().manual_seed(0)) * 4).round()
    for found in run(lambda scores: select_top(scores, 100), scores):
        for own, expected in zip(found, select_top(scores, 100), strict=True):
            np.testing.assert_array_equal(own, expected)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(2, True), (2, False), (0, True), None], ids=str)
def test_regions_are_pooled(options, run) -> None:
    """Over the border, tiny and empty ones, of two images; by RoIAlign with these options, or RoIPool."""

    def pool(feature: Tensor, regions: Tensor) -> Tensor:
        return roi_align(feature, regions, 7, 0.25, *options) if options else roi_pool(feature, regions, 7, 0.25)

    feature = torch.rand(2, 4, 12, 16, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0, 0, 64, 48], [3.3, 2.1, 30.9, 40.2], [60, 40, 64, 48], [10, 10, 10, 10], [5, 5, 6, 7.5]])
    regions = torch.cat([torch.tensor([0.0, 1, 0, 1, 1])[:, None], boxes], dim=1)
    if options and options[0] == 0:  # without a sample in an empty region, a runtime may give NaN
        regions = regions[regions[:, 3] > regions[:, 1]]
    for (found,) in run(pool, feature, regions):
        tolerance: Any = {"rtol": 1e-4, "atol": 1e-5} if options else {"rtol": 1e-6, "atol": 1e-6}
        np.testing.assert_allclose(found, pool(feature, regions), **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_convolution(run, groups: int, modulated: bool) -> None:
    torch.manual_seed(0)
    layer = DeformableConv(4, 6, 3, 2, 2, groups, modulated=modulated).requires_grad_(False)
    layer.offset.weight.normal_(std=0.3)  # moves of some cells, over the border too
    feature = torch.randn(2, 4, 11, 14)
    for (found,) in run(layer, feature):
        np.testing.assert_allclose(found, layer(feature), rtol=1e-4, atol=1e-5)


# Rows that count

STRIDES = 4, 8, 16
SIDES = 6.0, 250.0, 600.0  # pixels of boxes of each level


def make_levels(images: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(images, 3, 256 // stride, 320 // stride, generator=generator) for stride in STRIDES]


def make_found(sides: tuple[float, ...], counts: tuple[int, ...]) -> Found:
    """Rows of boxes of ``sides``, of which the first ``counts`` of each image are valid."""
    generator = torch.Generator().manual_seed(1)
    corners = 40 * torch.rand(len(counts), len(sides), 2, generator=generator)
    boxes = torch.cat([corners, corners + torch.tensor(sides)[:, None]], dim=2)
    valid = torch.arange(len(sides)) < torch.tensor(counts)[:, None]
    labels = torch.arange(valid.numel()).view_as(valid) % 2
    return Found(boxes, valid, torch.rand(valid.shape, generator=generator), labels)


@pytest.mark.parametrize("kind", ["roi_align", "roi_pool"])
@pytest.mark.parametrize("sides", [SIDES, SIDES[:1]])
def test_regions_are_pooled_as_with_fixed_shapes(sides: tuple[float, ...], kind) -> None:
    holder = nn.ModuleList([RegionPooler(STRIDES, 7, kind=kind)])
    boxes, images = make_found(sides, (1, 1)).boxes.flatten(0, 1), torch.arange(2).repeat_interleave(len(sides))
    with as_on_gpu():
        expected = holder[0](make_levels(), boxes, images)
        keep_counted_rows(holder)
        assert torch.equal(holder[0](make_levels(), boxes, images), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masks", "keypoints"])
@pytest.mark.parametrize("counts", [(0, 0), (2, 3)])
@torch.no_grad()
def test_masks_and_keypoints_are_those_of_detections_in_every_runtime(counts: tuple[int, ...], kind: str, run) -> None:
    torch.manual_seed(0)
    pooler, heads = RegionPooler(STRIDES, 4, kind="roi_align"), nn.ModuleList()
    if kind == "masks":
        heads.append(MaskStage(pooler, MaskHead(3, num_classes=2, convs=1)))
    else:
        heads.append(KeypointStage(pooler, KeypointHead(3, num_keypoints=2, convs=1, channels=4)))
    levels, found = make_levels(), make_found(SIDES, counts)
    expected = torch.where(found.valid[..., None, None], getattr(heads[0](levels, found), kind), 0.0)
    keep_counted_rows(heads)

    def compute(boxes: Tensor, valid: Tensor, labels: Tensor, *levels: Tensor) -> Tensor:
        return getattr(heads[0](levels, replace(found, boxes=boxes, valid=valid, labels=labels)), kind)

    torch.testing.assert_close(compute(found.boxes, found.valid, found.labels, *levels), expected)
    for (own,) in run(compute, found.boxes, found.valid, found.labels, *levels):
        np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-5 if kind == "masks" else 1e-3)

"""Steps and tests of every family are one graph for torch.compile and torch.export, and give what eager gives.

So do the files that they are exported to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from detection.build import build_detector
from detection.config.detection import (
    AnchorConfig,
    BoxConfig,
    DenseConfig,
    DetectionConfig,
    DetectorBackboneConfig,
    KeypointConfig,
    MaskConfig,
    MNCConfig,
    PanopticConfig,
    PointConfig,
    PostprocessConfig,
    RPNConfig,
    SemanticConfig,
)
from detection.config.load import load_config
from detection.engine.checkpoint import Checkpoint
from detection.export.facts import ExportFormat, describe_export
from detection.export.graph import DetectorGraph
from detection.export.operators import TENSORRT_LACKS
from detection.export.proof import agreement
from detection.export.runtime import Exported, Framed, open_exported
from detection.export.write import write_export
from detection.model.faster_rcnn import FasterRCNN
from detection.model.mnc import MNC
from detection.model.one_stage import OneStage
from detection.model.retinanet import RetinaNetHead
from detection.model.select import as_on_gpu
from detection.padded import Targets
from detection.predictor import Predictor
from detection.structures import VOID, ImageBatch, Target

ROOT = Path(__file__).parents[1]
NUM_CLASSES = 5
TRUNK = DetectorBackboneConfig(name="resnet18", weights=None)
C4 = DetectionConfig(backbone=TRUNK, anchors=AnchorConfig(sizes=(16.0, 32.0, 64.0)))
FPN = DetectionConfig(
    backbone=replace(TRUNK, fpn=True, fpn_channels=32),
    anchors=replace(C4.anchors, sizes=(16.0, 32.0, 64.0, 128.0, 256.0)),
    box=BoxConfig(head="fc", head_channels=64, pool="roi_align", class_agnostic=False),
)
FAMILIES: dict[str, DetectionConfig] = {
    "C4": C4,
    "DC5": replace(C4, backbone=replace(TRUNK, dilate_c5=True), box=replace(FPN.box, head_channels=32)),
    "FPN": FPN,
    "Mask": replace(FPN, architecture="mask_rcnn", mask=MaskConfig(convs=1, channels=16)),
    "PointRend": replace(
        FPN,
        architecture="pointrend_rcnn",
        mask=MaskConfig(pool_size=6, channels=16),
        point=PointConfig(coarse_side=3, fc_channels=32, channels=16, train_points=20, steps=3, test_points=40),
    ),
    "MNC": replace(
        C4,
        architecture="mnc",
        backbone=replace(TRUNK, roi_size=4),
        rpn=RPNConfig(post_nms_test=150),
        test=PostprocessConfig(nms_iou=0.6),
        box=BoxConfig(pool="roi_align", samples_per_image=16),
        # A region at the limit of votes votes or not by rounding: at 0.45 no overlap is within 5e-5, at 0.5 one is.
        mnc=MNCConfig(pool_size=8, mask_side=10, mask_channels=16, vote_iou=0.45),
    ),
    "Panoptic": replace(
        FPN,
        architecture="panoptic_fpn",
        mask=MaskConfig(convs=1, channels=16),
        semantic=SemanticConfig(channels=32),
        panoptic=PanopticConfig(stuff=("sky", "grass")),
    ),
    "Keypoint": replace(
        FPN, architecture="keypoint_rcnn", keypoint=KeypointConfig(names=("head", "hand", "foot"), convs=1, channels=16)
    ),
    "Cascade": replace(FPN, architecture="cascade_rcnn", box=replace(FPN.box, class_agnostic=True)),
    "RetinaNet": replace(
        FPN, architecture="retinanet", dense=DenseConfig(convs=1, norm="gn", loss="giou", normalizer="running")
    ),
    "Deformable": replace(
        FPN, backbone=replace(FPN.backbone, name="resnet50", deform=("c3", "c5"), deform_modulated=True)
    ),
    "FCOS": replace(
        FPN,
        architecture="fcos",
        backbone=replace(FPN.backbone, fpn_coarse="c5"),
        dense=DenseConfig(convs=1, normalizer="batch", clip_first=False),
    ),
}
every_family = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name == "Mask" else pytest.mark.slow) for name in FAMILIES]
)


def make_model(config: DetectionConfig, classes: int = NUM_CLASSES) -> FasterRCNN | OneStage | MNC:
    """A detector with random weights that finds more than 50 objects in an image."""
    torch.manual_seed(0)
    model = build_detector(config, classes, pretrained=False)
    assert isinstance(model, FasterRCNN | OneStage | MNC)
    for name, values in model.named_buffers():
        if name.endswith(("bn2.weight", "bn3.weight")):
            values.fill_(0.2)  # else random residual branches add up to infinity
    for name, values in model.named_parameters():
        if name.endswith("offset.weight"):
            nn.init.normal_(values, std=0.02)  # moves of about a cell
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features == classes + 1:
            nn.init.normal_(module.weight, std=1.0)
    if isinstance(model, MNC):
        # Both looks at a region are candidates of NMS. Deltas of nearly zero would leave them nearly the same box with
        # nearly the same score, and which of the two is kept to rounding; masks of 0.5 everywhere would always agree.
        nn.init.normal_(model.box_stage.predictor.deltas.weight, std=0.3)
        nn.init.normal_(model.box_stage.layers.mask.weight, std=1.0)
    if isinstance(model, OneStage):
        # Sigmoids that all end at 1 would leave the order to rounding; FCOS multiplies them by its centerness.
        nn.init.normal_(model.head.classes.weight, std=0.1 if isinstance(model.head, RetinaNetHead) else 1.0)
    return model


def make_batch(images: int = 2) -> tuple[ImageBatch, Targets]:
    """Smooth images of 96 x 128 with three objects each, which are rectangles with two corners and an unknown place."""
    generator = torch.Generator().manual_seed(0)
    coarse = 255 * torch.rand(images, 3, 6, 8, generator=generator)
    pixels = F.interpolate(coarse, size=(96, 128), mode="bicubic").clamp(0, 255).to(torch.uint8)
    targets = []
    for _ in range(images):
        corners = torch.rand(3, 2, generator=generator) * 50
        boxes = torch.cat([corners, corners + 20 + 20 * torch.rand(3, 2, generator=generator)], dim=1)
        masks = torch.zeros(3, 96, 128, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
            mask[y1:y2, x1:x2] = True
        points = torch.stack([boxes[:, :2], boxes[:, 2:], torch.zeros(3, 2)], dim=1)
        keypoints = torch.cat([points, torch.tensor([2.0, 1.0, 0.0]).view(1, 3, 1).expand(3, -1, -1)], dim=2)
        ignore = torch.tensor([False, False, True])
        label_map = torch.arange(8, dtype=torch.uint8).repeat_interleave(16).expand(96, 128).where(~masks.any(0), 0)
        label_map = label_map.where(label_map < NUM_CLASSES + 2, VOID)
        targets.append(Target(boxes, torch.tensor([0, 1, 2]), ignore, masks, keypoints, label_map))
    return ImageBatch.from_images(list(pixels), seeds=range(images)), Targets.pad(targets)


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    """Graphs of one test do not fill the memory of the next."""
    yield
    torch.compiler.reset()


def losses_and_gradients(
    model: nn.Module, call: Callable[..., dict[str, Tensor]], *inputs: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    losses = call(*inputs)
    torch.stack(list(losses.values())).sum().backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(model: nn.Module, backend: str) -> None:
    inputs, before = make_batch(), {name: value.clone() for name, value in model.state_dict().items()}
    expected, gradients = losses_and_gradients(model.train(), model, *inputs)
    moved = {name: value.clone() for name, value in model.named_buffers()}
    model.load_state_dict(before)
    compiled = torch.compile(model, fullgraph=True, backend=backend)  # fullgraph: a break is an error
    found, own = losses_and_gradients(model, compiled, *inputs)
    for name, value in model.named_buffers():
        torch.testing.assert_close(value, moved[name], rtol=1e-5, atol=1e-6)
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, rtol=1e-5, atol=1e-7)
    assert own.keys() == gradients.keys() != set()
    for name, gradient in gradients.items():
        nothing = 1e-6 if name.endswith("maps.bias") else 1e-9  # a softmax over a map does not see its bias
        assert (own[name] - gradient).norm() <= 1e-5 * gradient.norm() + nothing, name


@torch.no_grad()
def assert_same_test(model: FasterRCNN | OneStage | MNC, backend: str) -> None:
    images, _ = make_batch()
    with as_on_gpu():  # as the graph, it leaves the padding where it is
        expected = model.eval().detect(images)
    assert int(expected.valid.sum(dim=1).min()) >= 50
    found = torch.compile(model.detect, fullgraph=True, backend=backend)(images)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.labels, expected.labels)
    if expected.masks is not None:
        torch.testing.assert_close(found.masks, expected.masks, rtol=1e-4, atol=1e-5)
    if expected.label_scores is not None:
        torch.testing.assert_close(found.label_scores, expected.label_scores, rtol=1e-4, atol=1e-4)
    if expected.keypoints is not None:
        assert found.keypoints is not None
        apart = (found.keypoints[..., :2] - expected.keypoints[..., :2]).norm(dim=-1)[expected.valid]
        assert (apart > 1).double().mean() <= 0.01  # of maxima of equal height


@every_family
def test_a_step_is_one_graph(family: str) -> None:
    assert_same_step(make_model(FAMILIES[family]), "aot_eager")


class Inference(nn.Module):
    """A test with tensors in and out."""

    def __init__(self, model: FasterRCNN | OneStage | MNC) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        found = self.model.detect(ImageBatch(pixels, sizes))
        parts = (found.masks, found.keypoints, found.label_scores)
        further = [values for values in parts if values is not None]
        return found.boxes, found.scores, found.labels, found.valid, *further


@pytest.mark.slow
@every_family
@torch.no_grad()
def test_a_test_is_one_graph_that_exports(family: str) -> None:
    model = make_model(FAMILIES[family])
    assert_same_test(model, "aot_eager")
    images, _ = make_batch()
    inputs = images.pixels, images.sizes
    program = torch.export.export(Inference(model.eval()), inputs)
    with as_on_gpu():
        expected = Inference(model)(*inputs)
    for found, own in zip(program.module()(*inputs), expected, strict=True):
        if own.shape[-1] == 3:  # keypoints, of which a few have maxima of equal height
            apart = (own - found)[expected[3]][..., :2].norm(dim=-1)
            assert (apart > 1).double().mean() <= 0.01
        else:
            torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-3)


@pytest.mark.compiler
@pytest.mark.timeout(1500)
def test_resnet50_fpn_by_inductor() -> None:
    config = load_config(
        DetectionConfig, ROOT / "configs/coco/modern/faster_rcnn_r50_fpn_1x.yaml", ["backbone.weights=null"]
    )
    model = make_model(config, classes=80)
    assert_same_step(model, "inductor")
    assert_same_test(model, "inductor")


def export(
    model: FasterRCNN | OneStage | MNC, config: DetectionConfig, folder: Path, format: ExportFormat, batch: int
) -> Exported:
    checkpoint = Checkpoint(Path("0000000.safetensors"), model.state_dict(), config, tuple("abcde"), iteration=0)
    facts = describe_export(
        checkpoint, model, format=format, precision="fp32", size=(96, 128), batch=batch, licence="none"
    )
    write_export(model, folder, facts)
    exported = open_exported(folder)
    assert (exported.facts.run, exported.facts.licence) == (facts.run, "none")
    exported.check_run(checkpoint)
    return exported


@torch.no_grad()
def assert_same_file(family: str, folder: Path, format: ExportFormat, batch: int) -> None:
    model = make_model(FAMILIES[family]).eval()
    exported, graph = export(model, FAMILIES[family], folder, format, batch), DetectorGraph(model)
    eager = Framed(
        lambda *call: [part.numpy() for part in graph(*call)],
        size=(96, 128),
        batch=batch,
        outputs=exported.outputs,
        num_labels=exported.num_labels,
    )
    pixels = make_batch(3)[0].pixels
    for images in (ImageBatch.from_images(list(pixels)), ImageBatch.from_images([pixels[0, :, :61, :97]])):
        found = agreement(eager(images), exported(images))  # whatever order equal scores came in
        assert found.detections >= 50 * found.images
        assert found.unmatched == 0
        assert found.box <= 2e-3, found
        assert found.score <= 1e-4, found
        assert (found.mask or 0) <= 1e-3, found
        assert (found.keypoint or 0) <= 0.02, found
        assert (found.keypoint is not None) == (family == "Keypoint")


@pytest.mark.slow
def test_an_onnx_file_finds_what_eager_finds(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    assert_same_file("FPN", tmp_path, "onnx", batch=2)
    model = onnx.load(tmp_path / "model.onnx")
    assert {entry.domain for entry in model.opset_import if entry.version} == {""}
    assert {node.op_type for node in model.graph.node}.isdisjoint(TENSORRT_LACKS)
    assert Predictor.load(tmp_path).class_names == tuple("abcde")
    weights = sum(values.numel() for values in make_model(FPN).state_dict().values())
    assert (tmp_path / "model.onnx").stat().st_size < 1.1 * 4 * weights  # nothing is there twice


@pytest.mark.compiler
@pytest.mark.parametrize("format", ["torch", "onnx", "openvino"])
@every_family
def test_files_of_every_family_find_what_eager_finds(family: str, format: ExportFormat, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    assert_same_file(family, tmp_path, format, batch=1 if format == "torch" else 3)

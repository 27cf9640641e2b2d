"""Steps and tests of every family are one graph for torch.compile and torch.export, and give what eager gives.

So do the files that they are exported to.
"""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F  # noqa: N812  # the name that torch's own documentation uses

from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.config.load import build_dataclass, load_config
from detection.engine.checkpoint import Checkpoint
from detection.engine.operators import count_operators
from detection.export.facts import describe_export
from detection.export.graph import DetectorGraph, capture, output_names
from detection.export.operators import TENSORRT_LACKS
from detection.export.proof import agreement
from detection.export.runtime import Framed, open_exported
from detection.export.write import write_export
from detection.model.mnc import MNC
from detection.model.one_stage import OneStage
from detection.model.retinanet import RetinaNetHead
from detection.model.select import as_on_gpu
from detection.model.semantic import SemanticNetwork
from detection.padded import Targets
from detection.predictor import Predictor
from detection.structures import VOID, ImageBatch, Target

ROOT = Path(__file__).parents[1]
SIZE, NAMES = (96, 128), tuple("abcde")
# Sections are those of the family named first, with changes.
FAMILIES_YAML = """
C4: [null, {backbone: {name: resnet18, weights: null}, anchors: {sizes: [16, 32, 64]}}]
FPN: [C4, {backbone: {fpn: true, fpn_channels: 32}, anchors: {sizes: [16, 32, 64, 128, 256]}, box: {head: fc,
  head_channels: 64, pool: roi_align, class_agnostic: false}}]
DC5: [C4, {backbone: {dilate_c5: true}, box: {head: fc, head_channels: 32, pool: roi_align, class_agnostic: false}}]
Mask: [FPN, {architecture: mask_rcnn, mask: {convs: 1, channels: 16}}]
PointRend: [FPN, {architecture: pointrend_rcnn, mask: {pool_size: 6, channels: 16}, point: {coarse_side: 3,
  fc_channels: 32, channels: 16, train_points: 20, steps: 3, test_points: 40}}]
# A region at the limit of votes votes or not by rounding: at 0.45 no overlap is within 5e-5, at 0.5 one is.
MNC: [C4, {architecture: mnc, backbone: {roi_size: 4}, rpn: {post_nms_test: 150}, test: {nms_iou: 0.6}, box: {
  pool: roi_align, samples_per_image: 16}, mnc: {pool_size: 8, mask_side: 10, mask_channels: 16, vote_iou: 0.45}}]
Panoptic: [Mask, {architecture: panoptic_fpn, semantic: {channels: 32}, panoptic: {stuff: [sky, grass]}}]
Keypoint: [FPN, {architecture: keypoint_rcnn, keypoint: {names: [head, hand, foot], convs: 1, channels: 16}}]
Cascade: [FPN, {architecture: cascade_rcnn, box: {class_agnostic: true}}]
RetinaNet: [FPN, {architecture: retinanet, dense: {convs: 1, norm: gn, loss: giou, normalizer: running}}]
Deformable: [FPN, {backbone: {name: resnet50, deform: [c3, c5], deform_modulated: true}}]
FCOS: [FPN, {architecture: fcos, backbone: {fpn_coarse: c5}, dense: {convs: 1, normalizer: batch, clip_first: false}}]
FCN: [null, {architecture: fcn, backbone: {name: resnet18, norm: bn, output_stride: 8}, semantic: {channels: 16,
  dropout: 0}, solver: {best_metric: null}}]
DeepLabV3: [FCN, {architecture: deeplabv3}]
SemanticFPN: [FCN, {architecture: semantic_fpn, backbone: {output_stride: null, fpn: true, fpn_channels: 32}}]
"""


def read_families():
    trees: dict[str | None, dict[str, Any]] = {None: {}}
    for name, (base, changes) in yaml.safe_load(FAMILIES_YAML).items():
        tree = trees[base]
        changed = {key: {**tree.get(key, {}), **new} if isinstance(new, dict) else new for key, new in changes.items()}
        trees[name] = tree | changed
    return {str(name): build_dataclass(DetectionConfig, tree) for name, tree in trees.items() if name}


FAMILIES = read_families()
LABELS = ("FCN", "DeepLabV3", "SemanticFPN")


def each_of(*names, quick: str = ""):
    slow = {name: [] if name == quick else pytest.mark.slow for name in names}
    return pytest.mark.parametrize("family", [pytest.param(name, marks=marks) for name, marks in slow.items()])


def make_model(config, classes: int = len(NAMES)) -> Any:
    """A model with random weights; a detector finds more than 50 objects in an image."""
    torch.manual_seed(0)
    model = build_detector(config, classes, pretrained=False)
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


def make_batch(images: int = 2):
    """Smooth images of 96 x 128 with three objects each, which are rectangles with two corners and an unknown place."""
    generator = torch.Generator().manual_seed(0)
    coarse = 255 * torch.rand(images, 3, 6, 8, generator=generator)
    pixels = F.interpolate(coarse, size=SIZE, mode="bicubic").clamp(0, 255).to(torch.uint8)
    targets = []
    for _ in range(images):
        corners = torch.rand(3, 2, generator=generator) * 50
        boxes = torch.cat([corners, corners + 20 + 20 * torch.rand(3, 2, generator=generator)], dim=1)
        masks = torch.zeros(3, *SIZE, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
            mask[y1:y2, x1:x2] = True
        points = torch.stack([boxes[:, :2], boxes[:, 2:], torch.zeros(3, 2)], dim=1)
        keypoints = torch.cat([points, torch.tensor([2.0, 1.0, 0.0]).view(1, 3, 1).expand(3, -1, -1)], dim=2)
        ignore = torch.tensor([False, False, True])
        label_map = torch.arange(8, dtype=torch.uint8).repeat_interleave(16).expand(SIZE).where(~masks.any(0), 0)
        label_map = label_map.where(label_map < len(NAMES) + 2, VOID)
        targets.append(Target(boxes, torch.tensor([0, 1, 2]), ignore, masks, keypoints, label_map))
    return ImageBatch.from_images(list(pixels), seeds=range(images)), Targets.pad(targets)


def make_label_batch(images: int = 2):
    """Images of noise, the last of which is smaller, with label maps of noise and void."""
    generator, none = torch.Generator().manual_seed(0), torch.zeros(0, dtype=torch.int64)
    sizes = [SIZE] * (images - 1) + [(61, 97)]
    pixels = [torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    labels = torch.tensor([*range(5), VOID], dtype=torch.uint8)
    maps = [labels[torch.randint(6, size, generator=generator)] for size in sizes]
    targets = [Target(torch.zeros(0, 4), none, none.bool(), label_map=label_map) for label_map in maps]
    return ImageBatch.from_images(pixels), Targets.pad(targets)


@pytest.fixture(autouse=True)
def forget_graphs():
    """Graphs of one test do not fill the memory of the next."""
    yield
    torch.compiler.reset()


def take_step(model, call, *inputs):
    """Losses, gradients and buffers."""
    model.zero_grad(set_to_none=True)
    losses = call(*inputs)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return [losses, gradients, {name: value.clone() for name, value in model.named_buffers()}]


def assert_same_step(model, backend, *, rounding: float = 1e-4) -> None:
    """Compares with the compiled step; gradients of label maps may differ by the share ``rounding``."""
    labels = isinstance(model, SemanticNetwork)
    inputs = make_label_batch() if labels else make_batch()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    expected, gradients, moved = take_step(model.train(), model, *inputs)
    model.load_state_dict(start)  # statistics of batch normalisation move
    compiled = torch.compile(model, fullgraph=True, backend=backend)  # fullgraph: a break is an error
    found, own, buffers = take_step(model, compiled, *inputs)
    if not labels:
        torch.testing.assert_close(buffers, moved, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert own.keys() == gradients.keys() != set()
    largest = max(gradient.norm() for gradient in gradients.values())
    for name, gradient in gradients.items():
        nothing = 1e-6 if name.endswith("maps.bias") else 1e-9  # a softmax over a map does not see its bias
        allowed = rounding * gradient.norm() + 1e-6 * largest if labels else 1e-5 * gradient.norm() + nothing
        assert (own[name] - gradient).norm() <= allowed, name


@torch.no_grad()
def assert_same_test(model, backend) -> None:
    images, _ = make_batch()
    with as_on_gpu():  # as the graph, it leaves the padding where it is
        expected = model.eval().detect(images)
    assert int(expected.valid.sum(dim=1).min()) >= 50
    found = torch.compile(model.detect, fullgraph=True, backend=backend)(images)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.masks, expected.masks, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.label_scores, expected.label_scores, rtol=1e-4, atol=1e-4)
    if expected.keypoints is not None:
        assert_same_places(found.keypoints[expected.valid], expected.keypoints[expected.valid])


def assert_same_places(found, expected) -> None:
    """But for a few maxima of equal height."""
    assert ((found - expected)[..., :2].norm(dim=-1) > 1).double().mean() <= 0.01


@each_of(*FAMILIES, quick="Mask")
def test_a_step_is_one_graph(family) -> None:
    assert_same_step(make_model(FAMILIES[family]), "aot_eager")


class Inference(nn.Module):
    """A test with tensors in and out."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels, sizes):
        found = self.model.detect(ImageBatch(pixels, sizes))
        parts = (found.masks, found.keypoints, found.label_scores)
        further = [values for values in parts if values is not None]
        return found.boxes, found.scores, found.labels, found.valid, *further


@each_of(*(name for name in FAMILIES if name not in LABELS))
@torch.no_grad()
def test_a_test_is_one_graph_that_exports(family) -> None:
    model = make_model(FAMILIES[family])
    assert_same_test(model, "aot_eager")
    images, _ = make_batch()
    inputs = images.pixels, images.sizes
    program = torch.export.export(Inference(model.eval()), inputs)
    with as_on_gpu():
        expected = Inference(model)(*inputs)
    for found, own in zip(program.module()(*inputs), expected, strict=True):
        if own.shape[-1] == 3:  # keypoints
            assert_same_places(found[expected[3]], own[expected[3]])
        else:
            torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-3)


@each_of(*LABELS)
@torch.no_grad()
def test_labelling_is_one_graph_that_exports(family) -> None:
    model, (images, _) = make_model(FAMILIES[family]).eval(), make_label_batch()
    own = model.detect(images).label_scores.argmax(dim=1)
    (found,) = capture(model, size=SIZE, batch=2, half=False).module()(images.pixels, images.sizes)
    assert (found.dtype, found.shape) == (torch.uint8, (2, *SIZE))
    assert output_names(FAMILIES[family]) == ("label_map",)
    assert found[1, 61:].eq(VOID).all()
    assert found[1, :, 97:].eq(VOID).all()
    assert (found[0] != own[0]).double().mean() < 1e-3
    assert (found[1, :61, :97] != own[1, :61, :97]).double().mean() < 1e-3


@each_of(*LABELS, quick="FCN")
def test_operators_do_not_grow_with_the_images_and_wait_for_no_device(family) -> None:
    model = make_model(FAMILIES[family]).train()
    few, many = (count_operators(partial(take_step, model, model, *make_label_batch(images))) for images in (2, 4))
    assert few.operators == many.operators
    assert many.waits == 0, many.names


@pytest.mark.compiler
@pytest.mark.timeout(1500)
def test_steps_and_tests_by_inductor() -> None:
    file = ROOT / "configs/coco/modern/faster_rcnn_r50_fpn_1x.yaml"
    model = make_model(load_config(DetectionConfig, file, ["backbone.weights=null"]), classes=80)
    assert_same_step(model, "inductor")
    assert_same_test(model, "inductor")
    # It adds in another order; batch normalisation over 24 cells makes of that 2e-3 of the first layer's gradient.
    assert_same_step(make_model(FAMILIES["SemanticFPN"]), "inductor", rounding=1e-2)


@torch.no_grad()
def assert_same_file(family, folder, format, batch) -> None:
    model = make_model(FAMILIES[family]).eval()
    checkpoint = Checkpoint(Path("0000000.safetensors"), model.state_dict(), FAMILIES[family], NAMES, iteration=0)
    facts = describe_export(checkpoint, model, format=format, precision="fp32", size=SIZE, batch=batch, licence="none")
    write_export(model, folder, facts)
    exported, graph = open_exported(folder), DetectorGraph(model)
    assert (exported.facts.run, exported.facts.licence) == (facts.run, "none")
    exported.check_run(checkpoint)
    frame: Any = {"size": SIZE, "batch": batch, "outputs": exported.outputs, "num_labels": exported.num_labels}
    eager = Framed(lambda *inputs: [part.numpy() for part in graph(*inputs)], **frame)
    if family in LABELS:
        images, _ = make_label_batch(3)
        found = exported(images)
        assert [image.label_scores.shape for image in found if image.label_scores is not None][2] == (5, 61, 97)
        same: Any = agreement(eager(images), found)
        assert same.unmatched == same.pixels < 1e-3
        return
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
def test_an_onnx_file_finds_what_eager_finds(tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    (tmp_path / "labels").mkdir()
    assert_same_file("FCN", tmp_path / "labels", "onnx", batch=2)
    assert_same_file("FPN", tmp_path, "onnx", batch=2)
    model = onnx.load(tmp_path / "model.onnx")
    assert {entry.domain for entry in model.opset_import if entry.version} == {""}
    assert {node.op_type for node in model.graph.node}.isdisjoint(TENSORRT_LACKS)
    assert Predictor.load(tmp_path).class_names == NAMES
    weights = sum(values.numel() for values in make_model(FAMILIES["FPN"]).state_dict().values())
    assert (tmp_path / "model.onnx").stat().st_size < 1.1 * 4 * weights  # nothing is there twice


@pytest.mark.compiler
@pytest.mark.parametrize("format", ["torch", "onnx", "openvino"])
@pytest.mark.parametrize("family", FAMILIES)
def test_files_of_every_family_find_what_eager_finds(family, format, tmp_path) -> None:
    pytest.importorskip("openvino")
    assert_same_file(family, tmp_path, format, batch=2 if family in LABELS else 1 if format == "torch" else 3)

"""What a GPU must not change: tiny detectors on CUDA against the CPU.

Like `make gpu`, which runs these tests, they need torch, torchvision and numpy alone.
"""

import pytest
import torch
from torch import nn
from torch.backends import cudnn
from torchvision.ops import box_iou

from backbones.deformable import DeformableConv
from backbones.resnet import ResNet
from detection.model.anchors import AnchorGenerator
from detection.model.box_coder import BoxCoder
from detection.model.box_stage import BoxPredictor, BoxStage
from detection.model.faster_rcnn import FasterRCNN
from detection.model.heat_maps import find_peaks
from detection.model.matcher import Matcher
from detection.model.pooler import RegionPooler
from detection.model.postprocess import Postprocessor
from detection.model.rpn import RPN, ProposalFilter, RPNHead
from detection.model.sampler import BalancedSampler
from detection.model.select import hash32
from detection.padded import Regions, Targets
from detection.structures import Detections, ImageBatch, Proposals, Target

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
pytestmark = [pytest.mark.gpu, NO_GPU]

DEVICE, CPU = torch.device("cuda"), torch.device("cpu")
ALL = 100_000  # more samples than there are anchors and proposals: then no draw depends on the device


@pytest.fixture(autouse=True)
def whole_precision():
    """Convolutions in float32 instead of TF32, whose 10 bits would hide mistakes."""
    with cudnn.flags(enabled=True, allow_tf32=False):
        yield


def make_batch():
    """Two images of different sizes, made by arithmetic, with two objects and one."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(80), indexing="ij")
    image = torch.stack([2 * x + y, 3 * y, (x * y) % 256]).clamp(0, 255).to(torch.uint8)
    images = ImageBatch.from_images([image, image[:, :48, :64].flip(2)])
    targets = [make_target([[8, 8, 40, 40], [40, 20, 72, 52]], [1, 2]), make_target([[4, 12, 30, 40]], [0])]
    return images, Targets.pad(targets)


def make_target(boxes, labels):
    return Target(torch.tensor(boxes), torch.tensor(labels), torch.zeros(len(boxes), dtype=torch.bool))


def make_detector(device):
    """A C4 detector with class scores far enough apart to have an order that rounding does not change."""
    torch.manual_seed(0)
    backbone = ResNet(18, norm="gn", roi_size=4)
    (spec,), tail = backbone.specs.values(), backbone.tail()
    rpn = RPN(
        [AnchorGenerator(spec.stride, sizes=(16.0, 32.0), ratios=(0.5, 1.0, 2.0))],
        RPNHead(spec.channels, channels=32, num_anchors=6),
        matcher=Matcher(0.7, 0.3, match_best=True),
        sampler=BalancedSampler(ALL, 0.5),
        # An NMS that keeps all, else scores that are nearly equal would decide.
        train_filter=ProposalFilter(pre_nms=ALL, post_nms=20_000, nms_iou=1.0, min_size=2.0),
        test_filter=ProposalFilter(pre_nms=64, post_nms=16, nms_iou=1.0, min_size=2.0),
        allow_outside=True,
    )
    box_stage = BoxStage(
        RegionPooler([spec.stride], tail.roi_size, kind="roi_align"),  # RoIPool rounds, and a hair makes a pixel
        tail,
        BoxPredictor(tail.out_channels, num_classes=3),
        matcher=Matcher(0.5, 0.5),
        sampler=BalancedSampler(ALL, 0.25),
        coder=BoxCoder((10.0, 10.0, 5.0, 5.0)),
    )
    nn.init.normal_(box_stage.predictor.classes.weight, std=0.5)
    kept = Postprocessor(score_threshold=0.1, nms_iou=0.3, max_detections=ALL)
    return FasterRCNN(backbone, rpn, box_stage, postprocess=kept).to(device)


def take_steps(detector, device, steps: int = 2):
    """Takes ``steps`` steps of SGD; returns the losses of each."""
    images, targets = make_batch()
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.001, momentum=0.9)
    found: list[dict[str, float]] = []
    for _ in range(steps):
        losses = detector.train()(images.to(device), targets.to(device))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        found.append({name: loss.item() for name, loss in losses.items()})
    return found


def test_steps_equal_those_of_the_cpu_and_compiled_ones_eager_ones() -> None:
    cpu, gpu, compiled = make_detector(CPU), make_detector(DEVICE), make_detector(DEVICE)
    start = {name: tensor.clone() for name, tensor in cpu.state_dict().items()}
    expected, found = take_steps(cpu, CPU), take_steps(gpu, DEVICE)
    assert len(expected[0]) == 4
    compiled.compile(fullgraph=True, dynamic=False)
    for ours, theirs in (*zip(found, expected, strict=True), *zip(take_steps(compiled, DEVICE), found, strict=True)):
        assert ours == pytest.approx(theirs, rel=2e-3)
    after = gpu.state_dict()
    for name, tensor in cpu.state_dict().items():
        moved = (tensor - start[name]).norm()
        assert (after[name].cpu() - tensor).norm() <= 0.02 * moved + 1e-6, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_lower_precision_finds_finite_boxes_in_float32(dtype) -> None:
    detector = make_detector(DEVICE).eval()
    with torch.autocast("cuda", dtype=dtype):
        found = detector(make_batch()[0].to(DEVICE))
    for image in found:
        assert len(image)
        assert image.boxes.dtype == image.scores.dtype == torch.float32
        assert image.boxes.isfinite().all()
        assert image.scores.isfinite().all()


@torch.no_grad()
def test_detections_equal_those_of_the_cpu() -> None:
    boxes = torch.tensor([[4.0, 4, 36, 40], [0, 16, 24, 44], [20, 8, 60, 44], [30, 20, 64, 48]])
    regions = Regions.pad([Proposals(boxes=boxes, scores=torch.zeros(4))] * 2)
    (images, _), cpu, gpu = make_batch(), make_detector(CPU).eval(), make_detector(DEVICE).eval()
    given = gpu(images.to(DEVICE), None, regions.to(DEVICE))
    for ours, theirs in zip(given, cpu(images, None, regions), strict=True):
        assert len(theirs)
        assert ours.boxes.device.type == "cuda"
        moved = ours.to("cpu")
        assert torch.equal(moved.labels, theirs.labels)
        torch.testing.assert_close(moved.scores, theirs.scores, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(moved.boxes, theirs.boxes, atol=0.05, rtol=0)
    for ours, theirs in zip(gpu(images.to(DEVICE)), cpu(images), strict=True):
        moved = ours.to("cpu")
        assert len(theirs)
        # Proposals whose logits are nearly equal may change places, and with them who suppresses whom.
        assert abs(len(moved) - len(theirs)) <= 0.1 * len(theirs)
        same = (box_iou(theirs.boxes, moved.boxes) > 0.99) & (theirs.labels[:, None] == moved.labels)
        close = (theirs.scores[:, None] - moved.scores).abs() < 2e-3
        assert (same & close).any(dim=1).float().mean() >= 0.9


def test_detections_moved_to_the_cpu_hold_their_values_at_once() -> None:
    # A copy that does not wait would give whatever lay in that memory while the GPU is still busy.
    busy = torch.rand(2048, 2048, device=DEVICE)
    for _ in range(200):
        busy = (busy @ busy).remainder(1.0)
    found = Detections(boxes=busy[:, :4] + 1, scores=busy[:, 4] + 1, labels=torch.arange(1, 2049, device=DEVICE))
    moved = found.to("cpu")
    at_once = [tensor.clone() for tensor in (moved.boxes, moved.scores, moved.labels)]
    torch.cuda.synchronize()
    for early, tensor in zip(at_once, (found.boxes, found.scores, found.labels), strict=True):
        assert torch.equal(early, tensor.cpu())


def test_the_gpu_draws_what_the_cpu_draws() -> None:
    states = torch.tensor([1, 0, 0, -1]).repeat(2, 100)

    def draw(device):
        numbers = hash32(torch.tensor([5, 6], device=device), torch.arange(400, device=device), 1)
        return BalancedSampler(64, 0.25)((states == 1).to(device), (states == 0).to(device), numbers)

    ours, theirs, again = draw(DEVICE), draw(CPU), draw(DEVICE)
    for name in ("columns", "positive", "valid"):
        assert torch.equal(getattr(ours, name).cpu(), getattr(theirs, name))
        assert torch.equal(getattr(ours, name), getattr(again, name))
    assert not torch.equal(ours.columns[0], ours.columns[1])


def test_keypoints_are_where_a_cpu_finds_them() -> None:
    noise = torch.randn(20, 17, 28, 28, generator=torch.Generator().manual_seed(0))
    maps = nn.functional.interpolate(noise, scale_factor=2.0, mode="bilinear")
    corners = 200 * torch.rand(20, 2, generator=torch.Generator().manual_seed(1))
    boxes = torch.cat([corners, corners + torch.linspace(5, 600, 20)[:, None] * torch.tensor([1.0, 0.5])], dim=1)
    expected = find_peaks(maps, boxes, longest=800)
    found = find_peaks(maps.to(DEVICE), boxes.to(DEVICE), longest=800).to(CPU)
    apart = (found[..., :2] - expected[..., :2]).norm(dim=-1)
    assert (apart > 1).double().mean() <= 0.01  # of maxima of equal height
    torch.testing.assert_close(found[..., 2], expected[..., 2], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_convolutions_and_their_gradients_are_those_of_the_cpu(modulated) -> None:
    torch.manual_seed(0)
    layer = DeformableConv(8, 8, 3, 2, groups=2, modulated=modulated)
    nn.init.normal_(layer.offset.weight, std=0.2)
    x, found = torch.randn(2, 8, 17, 23), []
    for device in (CPU, DEVICE):
        own, entering = layer.to(device), x.to(device).requires_grad_()
        output = own(entering)
        wanted = [entering, own.weight, own.offset.weight]
        gradients = torch.autograd.grad(output.square().sum(), wanted)
        found.append([value.detach().cpu() for value in (output, *gradients)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)

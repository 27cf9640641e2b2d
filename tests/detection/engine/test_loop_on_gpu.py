"""Mirrors detection/engine/loop.py on CUDA: steps of a run against the CPU's."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.backends import cudnn

from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.config.load import parse_config
from detection.config.sections import SolverConfig
from detection.data.dataset import Batch
from detection.engine.feed import Feed
from detection.engine.loop import TrainState, step
from detection.engine.optim import build_optimizer
from detection.engine.signals import StopRequest
from detection.padded import Targets
from detection.structures import ImageBatch, Target

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")]

DEVICE = torch.device("cuda")
ALL = 100_000  # more samples than there are anchors and proposals: then no draw depends on the device
# An IoU of 1 keeps all proposals, else scores that are nearly equal would decide; RoIPool would round.
CONFIG = parse_config(
    DetectionConfig,
    f"""
backbone: {{name: resnet18, norm: gn, freeze_at: 0, roi_size: 4}}
anchors: {{sizes: [16, 32]}}
rpn: {{channels: 32, allow_outside: true, samples_per_image: {ALL}, pre_nms_train: {ALL}, pre_nms_test: 64,
      post_nms_train: 20000, post_nms_test: 16, nms_iou: 1.0, min_size: 2}}
box: {{samples_per_image: {ALL}, pool: roi_align}}
test: {{score_threshold: 0.1, max_detections: {ALL}}}
""",
)


@pytest.fixture(autouse=True)
def whole_precision() -> Iterator[None]:
    """Convolutions in float32 instead of TF32, whose 10 bits would hide mistakes."""
    with cudnn.flags(enabled=True, allow_tf32=False):
        yield


def make_batch() -> Batch:
    """Two images of different sizes, made by arithmetic, with two objects and one."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(80), indexing="ij")
    image = torch.stack([2 * x + y, 3 * y, (x * y) % 256]).clamp(0, 255).to(torch.uint8)
    images = ImageBatch.from_images([image, image[:, :48, :64].flip(2)])
    targets = [make_target([[8, 8, 40, 40], [40, 20, 72, 52]], [1, 2]), make_target([[4, 12, 30, 40]], [0])]
    return Batch(images, Targets.pad(targets), (0, 1), ("a.jpg", "b.jpg"))


def make_target(boxes: list[list[float]], labels: list[int]) -> Target:
    return Target(boxes=torch.tensor(boxes), labels=torch.tensor(labels), ignore=torch.zeros(len(boxes)).bool())


def make_state(device: torch.device, precision: str = "fp32") -> TrainState:
    """Class scores far enough apart to have an order that rounding does not change."""
    torch.manual_seed(0)
    detector = build_detector(CONFIG, 3)
    nn.init.normal_(detector.get_parameter("box_stage.predictor.classes.weight"), std=0.5)
    scaler = GradScaler(device.type, enabled=precision == "fp16")
    return TrainState(detector.to(device), build_optimizer(detector, SolverConfig()), scaler)


def take_steps(state: TrainState, device: torch.device, *, steps: int = 2, **solver: Any) -> list[dict[str, float]]:
    """Takes ``steps`` steps on batches on the CPU, as loaders give them; the losses of each."""
    config = SolverConfig(**solver)
    feed = Feed(repeat(make_batch()), parts=config.accumulate, steps=steps, stop=StopRequest())
    feed.begin()
    state.model.train()
    return [step(state, state.model, feed, config, device) for _ in range(steps)]


def cpu_weights(state: TrainState) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in state.model.state_dict().items()}


def test_train_steps_equal_those_of_the_cpu() -> None:
    cpu, gpu = make_state(torch.device("cpu")), make_state(DEVICE)
    start = cpu_weights(cpu)
    expected, found = take_steps(cpu, torch.device("cpu")), take_steps(gpu, DEVICE)
    assert len(expected[0]) == 4
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3)
    after, wanted = cpu_weights(gpu), cpu_weights(cpu)
    for name, tensor in wanted.items():
        moved = (tensor - start[name]).norm()
        assert (after[name] - tensor).norm() <= 0.02 * moved + 1e-6, name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_stays_finite(precision: str) -> None:
    state = make_state(DEVICE, precision)
    losses = take_steps(state, DEVICE, precision=precision, steps=8, clip_norm=5.0)
    start, after = cpu_weights(make_state(torch.device("cpu"))), cpu_weights(state)
    assert len(losses) == 8
    assert all(torch.tensor(list(values.values())).isfinite().all() for values in losses)
    assert all(tensor.isfinite().all() and tensor.dtype == torch.float32 for tensor in after.values())
    assert any(not torch.equal(tensor, start[name]) for name, tensor in after.items())
    with torch.no_grad(), torch.autocast("cuda", dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[precision]):
        found = state.model.eval()(make_batch().images.to(DEVICE))
    for image in found:
        assert image.boxes.dtype == image.scores.dtype == torch.float32
        assert image.boxes.isfinite().all()
        assert image.scores.isfinite().all()


def test_a_batch_in_pinned_memory_arrives_whole() -> None:
    batch = make_batch()
    moved = batch.pin_memory().to(DEVICE)
    assert torch.equal(moved.images.pixels.cpu(), batch.images.pixels)
    assert torch.equal(moved.images.sizes.cpu(), batch.images.sizes)
    for name in ("boxes", "labels", "ignore", "valid"):
        assert torch.equal(getattr(moved.targets, name).cpu(), getattr(batch.targets, name))


def test_random_state_of_the_gpu_comes_back() -> None:
    state = make_state(DEVICE)
    saved = state.state_dict()
    drawn = torch.rand(3, device=DEVICE)
    state.load_state_dict(saved)
    assert torch.equal(torch.rand(3, device=DEVICE), drawn)

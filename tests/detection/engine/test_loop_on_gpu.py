"""Mirrors detection/engine/loop.py on CUDA; tests/test_gpu.py holds a GPU's steps to the CPU's."""

from itertools import repeat

import pytest
import torch
from torch.amp.grad_scaler import GradScaler

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
from detection.structures import ImageBatch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")]
DEVICE = torch.device("cuda")
CONFIG = """
backbone: {name: resnet18, norm: gn, freeze_at: 0, roi_size: 4}
anchors: {sizes: [16, 32]}
rpn: {channels: 32, post_nms_test: 16, min_size: 2}
test: {score_threshold: 0.1}
"""


@pytest.fixture
def batch(make_target) -> Batch:
    """Two images of different sizes, made by arithmetic, with two objects and one."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(80), indexing="ij")
    image = torch.stack([2 * x + y, 3 * y, (x * y) % 256]).clamp(0, 255).to(torch.uint8)
    images = ImageBatch.from_images([image, image[:, :48, :64].flip(2)])
    targets = [make_target([[8, 8, 40, 40], [40, 20, 72, 52]], [1, 2]), make_target([[4, 12, 30, 40]], [0])]
    return Batch(images, Targets.pad(targets), (0, 1), ("a.jpg", "b.jpg"))


def make_state(precision: str = "fp32") -> TrainState:
    torch.manual_seed(0)
    detector = build_detector(parse_config(DetectionConfig, CONFIG), 3).to(DEVICE)
    scaler = GradScaler("cuda", enabled=precision == "fp16")
    return TrainState(detector, build_optimizer(detector, SolverConfig()), scaler)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_stays_finite(batch, precision) -> None:
    state, config = make_state(precision), SolverConfig(precision=precision, clip_norm=5.0)
    start = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    feed = Feed(repeat(batch), parts=1, steps=8, stop=StopRequest())  # batches on the CPU, as loaders give them
    feed.begin()
    state.model.train()
    losses = [step(state, state.model, feed, config, DEVICE) for _ in range(8)]
    assert all(torch.tensor(list(values.values())).isfinite().all() for values in losses)
    after = state.model.state_dict()
    assert all(tensor.isfinite().all() and tensor.dtype == torch.float32 for tensor in after.values())
    assert any(not torch.equal(tensor, start[name]) for name, tensor in after.items())


def test_a_batch_in_pinned_memory_arrives_whole(batch) -> None:
    moved = batch.pin_memory().to(DEVICE)
    assert torch.equal(moved.images.pixels.cpu(), batch.images.pixels)
    assert torch.equal(moved.images.sizes.cpu(), batch.images.sizes)
    for name in ("boxes", "labels", "ignore", "valid"):
        assert torch.equal(getattr(moved.targets, name).cpu(), getattr(batch.targets, name))


def test_the_random_state_of_the_gpu_comes_back() -> None:
    state = make_state()
    saved = state.state_dict()
    drawn = torch.rand(3, device=DEVICE)
    state.load_state_dict(saved)
    assert torch.equal(torch.rand(3, device=DEVICE), drawn)

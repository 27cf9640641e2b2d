"""Time a Faster R-CNN ResNet-50 FPN against torchvision's, with the same weights, in one process.

Prints seconds per image of a test, seconds per training step, and how much memory each adds, ours and theirs, and the
ratios.  The two take turns, so that a busy machine slows both.

examples:
  python tools/benchmark.py
  python tools/benchmark.py --sides 320 --repeats 20
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d

from detection.build import build_detector
from detection.model.architecture import Architecture
from detection.structures import ImageBatch, Target
from detection.weights.torchvision import convert_torchvision

NUM_CLASSES = 80


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--sides", type=int, nargs="+", default=[320, 800], help="shorter sides, pixels")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def make_pair(device: str) -> tuple[FasterRCNN, Architecture]:
    """torchvision's detector, as it comes with ImageNet weights but with random ones, and ours with the same."""
    torch.manual_seed(0)
    body = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3)
    theirs = FasterRCNN(body, NUM_CLASSES + 1, _skip_resize=True)
    for name, values in theirs.named_buffers():
        if name.endswith("bn3.weight"):
            values.fill_(0.2)  # else random residual branches add up to infinity
    nn.init.normal_(
        theirs.get_parameter("roi_heads.box_predictor.cls_score.weight"), std=1.0
    )  # else no score passes the threshold
    names = tuple(f"class {number}" for number in range(NUM_CLASSES))
    config, state = convert_torchvision(theirs.state_dict(), class_names=names, norm_eps=1e-5)
    ours = build_detector(config, NUM_CLASSES)
    ours.load_state_dict(state)
    counts = [sum(p.requires_grad for p in model.parameters()) for model in (theirs, ours)]
    assert counts[0] == counts[1], f"both must train the same layers, got {counts} tensors"
    return theirs.to(device), ours.to(device)


def make_images(side: int, count: int) -> tuple[list[Tensor], list[Target]]:
    """Smooth random images (3, H, W) uint8 of 3:4 with ten objects each."""
    generator = torch.Generator().manual_seed(side)
    size = side, side * 4 // 3
    coarse = 255 * torch.rand(count, 3, size[0] // 16, size[1] // 16, generator=generator)
    images = nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 255).to(torch.uint8)
    targets = []
    for _ in range(count):
        corners = torch.rand(10, 2, generator=generator) * torch.tensor([size[1] * 0.6, size[0] * 0.6])
        sides = (0.1 + 0.3 * torch.rand(10, 2, generator=generator)) * side
        boxes = torch.cat([corners, corners + sides], dim=1)
        labels = torch.randint(NUM_CLASSES, (10,), generator=generator)
        targets.append(Target(boxes, labels, torch.zeros(10, dtype=torch.bool)))
    return list(images), targets


def take_images_of(theirs: FasterRCNN, side: int) -> None:
    """Makes torchvision's detector test images of this shorter side as they are; its _skip_resize is for training."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    theirs.transform = GeneralizedRCNNTransform(side, 2 * side, mean, std, _skip_resize=True)


def inference_calls(theirs: FasterRCNN, ours: Architecture, side: int, device: str) -> tuple[Callable[[], None], ...]:
    """One test of one image by each."""
    theirs.eval()
    ours.eval()
    (image,), _ = make_images(side, 1)
    take_images_of(theirs, side)

    def call_theirs() -> None:
        with torch.inference_mode():
            theirs([image.to(device).float() / 255])

    def call_ours() -> None:
        with torch.inference_mode():
            ours(ImageBatch.from_images([image]).to(device))

    return call_theirs, call_ours


def training_calls(theirs: FasterRCNN, ours: Architecture, side: int, device: str) -> tuple[Callable[[], None], ...]:
    """One step on two images by each."""
    theirs.train()
    ours.train()
    images, targets = make_images(side, 2)
    optimizers = [torch.optim.SGD((p for p in m.parameters() if p.requires_grad), lr=0.0) for m in (theirs, ours)]
    their_targets = [{"boxes": t.boxes.to(device), "labels": t.labels.to(device) + 1} for t in targets]
    our_targets = [target.to(device) for target in targets]

    def step(losses: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    def call_theirs() -> None:
        step(theirs([image.to(device).float() / 255 for image in images], their_targets), optimizers[0])

    def call_ours() -> None:
        step(ours(ImageBatch.from_images(images).to(device), our_targets), optimizers[1])

    return call_theirs, call_ours


def seconds_of(call: Callable[[], None], device: str) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def memory_of(call: Callable[[], None], device: str) -> float:
    """GiB of tensors that one call needs at its peak, beyond what was there."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    profiler: Any = profiled.profiler
    changes = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns()))) / 2**30


def compare(calls: tuple[Callable[[], None], ...], repeats: int, device: str) -> str:
    """A row of the table: medians of both and their ratios."""
    for call in calls:
        call()  # the first call allocates and chooses kernels
    rounds = [[seconds_of(call, device) for call in calls] for _ in range(repeats)]
    their_time, our_time = (statistics.median(times) for times in zip(*rounds, strict=True))
    ratio = statistics.median(ours / theirs for theirs, ours in rounds)
    their_memory, our_memory = (memory_of(call, device) for call in calls)
    memory = f"{our_memory:8.2f} {their_memory:8.2f} {our_memory / their_memory:6.2f}"
    return f"{our_time:8.3f} {their_time:8.3f} {ratio:6.2f}   {memory}"


def main() -> None:
    args = parse_args()
    theirs, ours = make_pair(args.device)
    print(f"{args.device}, {torch.get_num_threads()} threads; medians of {args.repeats} calls in turn")
    print(f"{'':22}{'ours s':>8} {'theirs s':>8} {'ratio':>6}   {'GiB':>8} {'theirs':>8} {'ratio':>6}")
    for side in args.sides:
        for name, make in (("test, 1 image", inference_calls), ("step, 2 images", training_calls)):
            print(f"{side:4} px {name:14} {compare(make(theirs, ours, side, args.device), args.repeats, args.device)}")


if __name__ == "__main__":
    main()

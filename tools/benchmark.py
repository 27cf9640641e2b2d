"""Time a Faster R-CNN ResNet-50 FPN against torchvision's, with the same weights, in one process.

Prints seconds per image of a test, seconds per training step, and how much memory each adds, ours and theirs, and the
ratios.  The two take turns, so that a busy machine slows both.

With --counts, counts the operators that a step (forward, losses and backward, in float32, without the optimizer) and a
test dispatch instead, and how often a GPU would wait in them: five detectors at 1, 2 and 8 images.  It takes the way of
a GPU on any device, and small images and few regions: the counts of fixed shapes do not depend on them.

examples:
  python tools/benchmark.py
  python tools/benchmark.py --sides 320 --repeats 20
  python tools/benchmark.py --counts --json counts.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops import boxes as torchvision_boxes

from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.engine.operators import Counts, count_operators
from detection.files import write_text
from detection.model.architecture import Architecture
from detection.model.select import as_on_gpu
from detection.padded import Targets
from detection.structures import ImageBatch, Target
from detection.weights.torchvision import convert_torchvision

NUM_CLASSES = 80

# Name in the counts -> config whose detector is counted, and torchvision's class where it has it.
CONFIGS = Path(__file__).parents[1] / "configs" / "coco" / "modern"
MODELS = {
    "R50-FPN": "faster_rcnn_r50_fpn_1x",
    "Mask": "mask_rcnn_r50_fpn_1x",
    "C4": "faster_rcnn_r50_c4_1x",
    "DC5": "faster_rcnn_r50_dc5_1x",
    "Cascade": "cascade_rcnn_r50_fpn_1x",
}
THEIRS = {"R50-FPN": FasterRCNN, "Mask": MaskRCNN}
IMAGES = (1, 2, 8)
SMALL_SIDE = 96  # pixels
FEW = ("backbone.weights=null", "box.samples_per_image=8", "rpn.post_nms_test=8", "test.max_detections=8")
Calls = tuple[Callable[[], Any], Callable[[], Any]]
Rows = dict[str, dict[str, Counts]]  # "step" | "test" -> number of images -> counts
GPU_NMS = 100_000  # coordinates up to which torchvision's NMS of all classes is one call on a GPU; 4,000 on a CPU


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--sides", type=int, nargs="+", default=[320, 800], help="shorter sides, pixels")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each (default: %(default)s)")
    parser.add_argument("--counts", action="store_true", help="count operators and waits instead of timing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where --counts writes its figures too")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def make_pair(device: str) -> tuple[FasterRCNN, Architecture]:
    """torchvision's detector, as it comes with ImageNet weights but with random ones, and ours with the same."""
    torch.manual_seed(0)
    body = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3)
    theirs = FasterRCNN(body, NUM_CLASSES + 1, _skip_resize=True)
    calm(theirs)
    names = tuple(f"class {number}" for number in range(NUM_CLASSES))
    config, state = convert_torchvision(theirs.state_dict(), class_names=names, norm_eps=1e-5)
    ours = build_detector(config, NUM_CLASSES)
    ours.load_state_dict(state)
    counts = [sum(p.requires_grad for p in model.parameters()) for model in (theirs, ours)]
    assert counts[0] == counts[1], f"both must train the same layers, got {counts} tensors"
    return theirs.to(device), ours.to(device)


def calm(model: nn.Module, spread: float = 1.0) -> None:
    """Makes random weights find something: features stay finite, and scores pass the threshold.

    ``spread`` is the standard deviation of the class layer's weights.
    """
    for name, values in model.named_buffers():
        if name.endswith("bn3.weight"):
            values.fill_(0.2)  # else random residual branches add up to infinity
    for name, parameter in model.named_parameters():
        if name.endswith(("box_predictor.cls_score.weight", "predictor.classes.weight")):
            nn.init.normal_(parameter, std=spread)


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
        masks = torch.zeros(10, *size, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
            mask[y1:y2, x1:x2] = True
        targets.append(Target(boxes, labels, torch.zeros(10, dtype=torch.bool), masks))
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


@contextmanager
def torchvision_on_gpu() -> Iterator[None]:
    """Lets torchvision choose its NMS as it does on a GPU."""
    one_by_one, at_once = torchvision_boxes._batched_nms_vanilla, torchvision_boxes._batched_nms_coordinate_trick

    def choose(boxes: Tensor, *others: Any) -> Tensor:
        return (one_by_one if boxes.numel() > GPU_NMS else at_once)(boxes, *others)

    with mock.patch.object(torchvision_boxes, "_batched_nms_vanilla", choose):
        yield


def count_ours(name: str) -> Rows:
    """Returns the counts of our detector."""
    torch.manual_seed(0)
    model = build_detector(load_config(DetectionConfig, CONFIGS / f"{MODELS[name]}.yaml", FEW), NUM_CLASSES)
    calm(model)

    def calls(images: int) -> Calls:
        pictures, targets = make_images(SMALL_SIDE, images)
        batch, padded = ImageBatch.from_images(pictures, seeds=range(images)), Targets.pad(targets)
        return lambda: model(batch, padded), lambda: model(batch)

    return count_rows(model, calls, as_on_gpu)


def count_theirs(name: str) -> Rows:
    """Returns the counts of torchvision's detector."""
    torch.manual_seed(0)
    body = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3)
    few = {"box_batch_size_per_image": 8, "rpn_post_nms_top_n_test": 8, "box_detections_per_img": 8}
    model = THEIRS[name](body, NUM_CLASSES + 1, _skip_resize=True, **few)
    calm(model)
    take_images_of(model, SMALL_SIDE)

    def calls(images: int) -> Calls:
        pictures, targets = make_images(SMALL_SIDE, images)
        pixels = [picture.float() / 255 for picture in pictures]
        wanted = [{"boxes": t.boxes, "labels": t.labels + 1, "masks": t.masks} for t in targets]
        return lambda: model(pixels, wanted), lambda: model(pixels)

    return count_rows(model, calls, torchvision_on_gpu)


def count_rows(
    model: nn.Module, calls: Callable[[int], Calls], path: Callable[[], AbstractContextManager[None]]
) -> Rows:
    """Returns the counts of a step and of a test; ``calls`` gives what makes losses and what finds objects.

    ``path`` makes the context under which it takes the way of a GPU on any device.
    """
    rows: Rows = {"step": {}, "test": {}}
    for images in (IMAGES[0], *IMAGES):  # the first goes twice, the second time with what is kept between steps
        losses, find = calls(images)

        def step(losses: Callable[[], Any] = losses) -> None:
            torch.stack(list(losses().values())).sum().backward()

        model.train().zero_grad(set_to_none=True)
        rows["step"][str(images)] = count_operators(step, path=path())
        model.eval()
        with torch.no_grad():
            rows["test"][str(images)] = count_operators(find, path=path())
    return rows


def count_all() -> dict[str, dict[str, dict[str, dict[str, dict[str, int]]]]]:
    """Returns {"ours" | "torchvision": {model: {"step" | "test": {images: {"operators": n, "waits": n}}}}}."""
    print(f"{'operators / waits':25}" + "".join(f"{f'{n} images':>13}" for n in IMAGES))
    found = {}
    for side, names, count in (("ours", MODELS, count_ours), ("torchvision", THEIRS, count_theirs)):
        found[side] = {}
        for name in names:
            found[side][name] = {}
            for kind, row in count(name).items():
                cells = "".join(f"{f'{counts.operators} / {counts.waits}':>13}" for counts in row.values())
                print(f"{side:12}{name:8}{kind:5}{cells}", flush=True)
                found[side][name][kind] = {n: {"operators": c.operators, "waits": c.waits} for n, c in row.items()}
    return found


def main() -> None:
    args = parse_args()
    if args.counts:
        found = count_all()
        if args.json:
            write_text(args.json, json.dumps(found, indent=1) + "\n")
        return
    theirs, ours = make_pair(args.device)
    print(f"{args.device}, {torch.get_num_threads()} threads; medians of {args.repeats} calls in turn")
    print(f"{'':22}{'ours s':>8} {'theirs s':>8} {'ratio':>6}   {'GiB':>8} {'theirs':>8} {'ratio':>6}")
    for side in args.sides:
        for name, make in (("test, 1 image", inference_calls), ("step, 2 images", training_calls)):
            print(f"{side:4} px {name:14} {compare(make(theirs, ours, side, args.device), args.repeats, args.device)}")


if __name__ == "__main__":
    main()

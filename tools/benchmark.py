"""Time a Faster R-CNN ResNet-50 FPN against torchvision's, with the same weights, in one process.

Prints seconds per image of a test, seconds per training step, and how much memory each adds, theirs and ours, and the
ratios: ours in both layouts and, with --compile, compiled.  All take turns, so that a busy machine slows all.  Of a
test also the share of the machine's matrix rate: operations over seconds, against a product of 2,048 x 2,048.

With --counts, counts the operators that a step (forward, losses and backward, in float32, without the optimizer) and a
test dispatch instead, and how often a GPU would wait in them: five detectors at 1, 2 and 8 images.  It takes the way of
a GPU on any device, and small images and few regions: the counts of fixed shapes do not depend on them.

examples:
  python tools/benchmark.py
  python tools/benchmark.py --sides 320 --repeats 20
  python tools/benchmark.py --compile
  ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python tools/benchmark.py   as a machine without AVX-512
  python tools/benchmark.py --counts --json counts.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops import boxes as torchvision_boxes

from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.engine.compiled import CompiledStep, CompiledTest, Frames
from detection.engine.layout import choose_layout, set_layout
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
    "RetinaNet": "retinanet_r50_fpn_1x",
    "FCOS": "fcos_r50_fpn_1x",
}
THEIRS = {"R50-FPN": FasterRCNN, "Mask": MaskRCNN}
IMAGES = (1, 2, 8)
SMALL_SIDE = 96  # pixels
FEW = ("backbone.weights=null", "box.samples_per_image=8", "rpn.post_nms_test=8", "test.max_detections=8")
Call = Callable[[], Any]
Calls = tuple[Call, Call]
Rows = dict[str, dict[str, Counts]]  # "step" | "test" -> number of images -> counts
MATRIX = 2048  # side of the matrices whose product gives the rate
GPU_NMS = 100_000  # coordinates up to which torchvision's NMS of all classes is one call on a GPU; 4,000 on a CPU


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--sides", type=int, nargs="+", default=[320, 800], help="shorter sides, pixels")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each (default: %(default)s)")
    parser.add_argument("--only", choices=("test", "step"), help="time one of the two")
    parser.add_argument("--compile", action="store_true", help="time ours compiled too; minutes of compiling a row")
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
        if name.endswith(("box_predictor.cls_score.weight", "predictor.classes.weight", "head.classes.weight")):
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


def inference_calls(theirs: FasterRCNN, ours: Mapping[str, nn.Module], side: int, device: str) -> dict[str, Call]:
    """One test of one image by each."""
    (image,), _ = make_images(side, 1)
    take_images_of(theirs, side)

    def call_theirs() -> None:
        with torch.inference_mode():
            theirs([image.to(device).float() / 255])

    def call(model: nn.Module) -> None:
        with torch.inference_mode():
            model(ImageBatch.from_images([image]).to(device))

    return {"torchvision": call_theirs} | {name: partial(call, model) for name, model in ours.items()}


def training_calls(theirs: FasterRCNN, ours: Mapping[str, nn.Module], side: int, device: str) -> dict[str, Call]:
    """One step on two images by each."""
    images, targets = make_images(side, 2)
    their_targets = [{"boxes": t.boxes.to(device), "labels": t.labels.to(device) + 1} for t in targets]
    our_targets = Targets.pad(targets).to(device)

    def step(model: nn.Module, images: Any, targets: Any) -> None:
        optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.0)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(model(images, targets).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def call_theirs() -> None:
        step(theirs, [image.to(device).float() / 255 for image in images], their_targets)

    def call(model: nn.Module) -> None:
        step(model, ImageBatch.from_images(images, seeds=range(2)).to(device), our_targets)

    return {"torchvision": call_theirs} | {name: partial(call, model) for name, model in ours.items()}


def variants(ours: Mapping[str, Architecture], kind: str, side: int, compiled: bool) -> dict[str, nn.Module]:
    """Returns our detectors that are timed, by name: in both layouts, and the channels-last one compiled."""
    found: dict[str, nn.Module] = dict(ours)
    if compiled:
        frames, wrap = Frames.of_scale(side, side * 4 // 3), CompiledStep if kind == "step" else CompiledTest
        found["compiled"] = wrap(ours["channels_last"], "--compile", frames, say=print, records=True)
    return found


def matrix_call(device: str) -> Call:
    """Returns a product of two matrices, the highest rate of the machine that a program reaches easily."""
    left, right = torch.rand(2, MATRIX, MATRIX, device=device)
    return lambda: torch.mm(left, right)


def operations_of(call: Call) -> int:
    """Returns the floating-point operations of the convolutions and products of one call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


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


def compare(title: str, calls: Mapping[str, Call], repeats: int, device: str) -> None:
    """Prints rows of the table: medians of the times, ratios and memory of each of ``calls``, theirs first."""
    test = title.endswith("1 image")
    operations = operations_of(calls["channels_last"]) if test else 0
    timed = dict(calls) | ({"product": matrix_call(device)} if test else {})
    for call in timed.values():
        call()  # the first call allocates and chooses kernels
    rounds = [{name: seconds_of(call, device) for name, call in timed.items()} for _ in range(repeats)]
    memory = {name: memory_of(call, device) for name, call in calls.items()}
    for name in calls:
        seconds = statistics.median(turn[name] for turn in rounds)
        ratio = statistics.median(turn[name] / turn["torchvision"] for turn in rounds)
        beside = memory[name] / memory["torchvision"]
        row = f"{title:22}{name:14}{seconds:8.3f} {ratio:6.2f}  {memory[name]:8.2f} {beside:6.2f}"
        if test and name != "torchvision":
            rates = [turn["product"] / turn[name] * operations / (2 * MATRIX**3) for turn in rounds]
            row += f"  {statistics.median(rates):6.2f}"
        print(row, flush=True)


def time_all(args: argparse.Namespace) -> None:
    """Prints the table of times and memory."""
    theirs, ours = make_pair(args.device)
    layouts = {"channels_last": ours, "contiguous": deepcopy(ours)}
    set_layout(layouts["contiguous"], "contiguous")
    vectors = torch.backends.cpu.get_cpu_capability()
    print(f"{args.device}, {vectors}, {torch.get_num_threads()} threads; medians of {args.repeats} calls in turn")
    print(f"{'':36}{'seconds':>8} {'ratio':>6}  {'GiB':>8} {'ratio':>6}  {'share of matrix rate':>6}")
    for side in args.sides:
        chosen, timing = choose_layout(torch.device(args.device), torch.float32, (side, side * 4 // 3))
        print(f"{side} px: solver.layout auto takes {chosen}{'' if timing is None else f': {timing}'}")
        for kind, make, count in (("test", inference_calls, "1 image"), ("step", training_calls, "2 images")):
            if args.only in (None, kind):
                models = variants(layouts, kind, side, args.compile)
                for model in (theirs, *models.values()):
                    model.train(kind == "step")
                compare(
                    f"{side} px {kind}, {count}", make(theirs, models, side, args.device), args.repeats, args.device
                )


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
    time_all(args)


if __name__ == "__main__":
    main()

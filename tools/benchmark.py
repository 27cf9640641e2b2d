"""Times a Faster R-CNN ResNet-50 FPN against torchvision's, with the same weights, in one process.

Prints seconds per image of a test, seconds per training iteration, and the memory that each adds, theirs and ours, and
the ratios: ours in both layouts and, with --compile, compiled.  All take turns, so that a busy machine slows all.  For
a test it also prints the share of the machine's matrix rate: operations per second against a product of 2,048 x 2,048.

With --counts, counts the operators that a step (forward, losses and backward, in float32, without the optimizer) and a
test dispatch instead, and how often a GPU would wait in them: all detectors at 1, 2 and 8 images.  It takes the code
path of a GPU on any device, with small images and few regions, as counts of fixed shapes do not depend on them.

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
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
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
from detection.structures import ImageBatch

sys.path.insert(0, str(Path(__file__).parent))

from pair import (  # tools are no package
    NUM_CLASSES,
    Call,
    Way,
    calls,
    calm,
    make_images,
    make_pair,
    make_theirs,
    take_images_of,
)

# Name in the counts -> config whose detector is counted, and torchvision's class where it has it.
CONFIGS = Path(__file__).parents[1] / "configs" / "coco" / "modern"
MODELS = {
    "R50-FPN": "faster_rcnn_r50_fpn_1x",
    "Mask": "mask_rcnn_r50_fpn_1x",
    "Panoptic": "panoptic_fpn_r50_1x",
    "PointRend": "pointrend_rcnn_r50_fpn_1x",
    "MNC": "../mnc_resnet101_c4",
    "Keypoint": "keypoint_rcnn_r50_fpn_1x",
    "C4": "faster_rcnn_r50_c4_1x",
    "DC5": "faster_rcnn_r50_dc5_1x",
    "Cascade": "cascade_rcnn_r50_fpn_1x",
    "RetinaNet": "retinanet_r50_fpn_1x",
    "FCOS": "fcos_r50_fpn_1x",
}
THEIRS = ("R50-FPN", "Mask")  # that torchvision has too
IMAGES = (1, 2, 8)
KINDS: dict[Way, int] = {"test": 1, "step": 2}  # what is timed -> images of a call
SMALL_SIDE = 96  # pixels
FEW = ("backbone.weights=null", "box.samples_per_image=8", "rpn.post_nms_test=8", "test.max_detections=8")
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


def variants(ours: Mapping[str, Architecture], kind: str, side: int, compiled: bool) -> dict[str, nn.Module]:
    """Returns our timed detectors by name: in both layouts, and the channels-last one compiled."""
    found: dict[str, nn.Module] = dict(ours)
    if compiled:
        frames, wrap = Frames.of_scale(side, side * 4 // 3), CompiledStep if kind == "step" else CompiledTest
        found["compiled"] = wrap(ours["channels_last"], "--compile", frames, say=print, records=True)
    return found


def matrix_call(device: str) -> Call:
    """Returns a product of two matrices, which easily reaches the highest rate of the machine."""
    left, right = torch.rand(2, MATRIX, MATRIX, device=device)
    return lambda: torch.mm(left, right)


def operations_of(call: Call) -> int:
    """Returns the floating-point operations of the convolutions and products of one call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def seconds_of(call: Callable[[], None], device: str) -> float:
    """Returns seconds of one call."""
    started = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def memory_of(call: Callable[[], None], device: str) -> float:
    """Returns the peak GiB of tensors of one call, beyond those before it."""
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
    device = torch.device(args.device)
    theirs, ours = make_pair(device)
    layouts = {"channels_last": ours, "contiguous": deepcopy(ours)}
    set_layout(layouts["contiguous"], "contiguous")
    vectors = torch.backends.cpu.get_cpu_capability()
    print(f"{args.device}, {vectors}, {torch.get_num_threads()} threads; medians of {args.repeats} calls in turn")
    print(f"{'':36}{'seconds':>8} {'ratio':>6}  {'GiB':>8} {'ratio':>6}  {'share of matrix rate':>6}")
    for side in args.sides:
        chosen, timing = choose_layout(device, torch.float32, (side, side * 4 // 3))
        print(f"{side} px: solver.layout auto takes {chosen}{'' if timing is None else f': {timing}'}")
        for kind, images in KINDS.items():
            if args.only in (None, kind):
                models = variants(layouts, kind, side, args.compile)
                timed = calls(kind, theirs, models, side=side, images=images, device=device)
                compare(f"{side} px {kind}, {images} image{'s' * (images > 1)}", timed, args.repeats, args.device)


@contextmanager
def torchvision_on_gpu() -> Iterator[None]:
    """Makes torchvision choose its NMS as on a GPU."""
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
    few = {"box_batch_size_per_image": 8, "rpn_post_nms_top_n_test": 8, "box_detections_per_img": 8}
    model = make_theirs(50, masks=name == "Mask", **few)
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
    """Returns the counts of a step and of a test; ``calls`` returns the functions for losses and for detections.

    ``path`` returns the context under which any device takes the code path of a GPU.
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

"""Compares detections and times of exported detectors with PyTorch, on images of a folder.

For each family, with random weights that find many objects, prints the largest differences on all images and the sizes
of the files; for a RUN only those of its detector.

With --time, prints the CPU time per image instead, for a Mask R-CNN with torchvision's weights layout or for RUN: in
PyTorch, eager and, with --compile, compiled, in torchvision (the same random weights), ONNX Runtime and OpenVINO. All
take turns in one process with one thread, on images of the most frequent size, which is the frame of the exports.

examples:
  python tools/benchmark_export.py DATA/coco128/images/train2017
  python tools/benchmark_export.py DATA/coco128/images/train2017 --time 3 --backbone resnet50
  python tools/benchmark_export.py DATA/digits/images/test --run output/digits/mask_rcnn_resnet18_fpn --time 9
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from benchmark import CONFIGS, MODELS
from pair import NUM_CLASSES, calm
from torch import nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.mask_rcnn import MaskRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d

from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.data.readers.image_files import images_below
from detection.engine.checkpoint import Checkpoint, load_detector_weights, read_checkpoint
from detection.export.facts import describe_export
from detection.export.files import NAMES, write_openvino
from detection.export.graph import DetectorGraph
from detection.export.proof import agreement
from detection.export.runtime import Exported, Framed, open_exported
from detection.export.write import write_export
from detection.model.faster_rcnn import FasterRCNN
from detection.model.one_stage import OneStage
from detection.structures import ImageBatch
from detection.tasks.export import resized_images
from detection.weights.torchvision import convert_torchvision

ENDINGS = {"onnx": (".onnx",), "openvino": (".xml", ".bin")}
CLASSES = tuple(f"class {number}" for number in range(NUM_CLASSES))
SIDES = 320, 480  # shorter and longer, pixels
SPREAD = 0.1  # scores between 0 and 1: at 1.0 most are 1, and NMS chooses among ties
FEW = ("backbone.weights=null", "rpn.pre_nms_test=1000", "rpn.post_nms_test=200", "data.test=[]")
Calls = dict[str, Callable[[ImageBatch], Any]]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("--run", type=Path, help="in place of random weights")
    parser.add_argument("--count", type=int, default=10, help="images (default: %(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 3], help="images of a call")
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--backbone", default="resnet18", help="of random weights (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="time torch.compile too, which takes minutes")
    parser.add_argument("--time", type=int, metavar="N", help="time N rounds over the images instead")
    return parser.parse_args()


def make_families(names: list[str], backbone: str) -> Iterator[tuple[str, Checkpoint[DetectionConfig]]]:
    """Yields each family's detector with random weights."""
    for name in names:
        torch.manual_seed(0)
        changes = [*FEW, f"backbone.name={backbone}", f"data.shorter_side={SIDES[0]}", f"data.longer_side={SIDES[1]}"]
        config = load_config(DetectionConfig, CONFIGS / f"{MODELS[name]}.yaml", changes)
        detector = build_detector(config, NUM_CLASSES, pretrained=False)
        calm(detector, SPREAD)
        yield name, Checkpoint(Path("random.safetensors"), detector.state_dict(), config, CLASSES, iteration=0)


def make_torchvision(backbone: str) -> tuple[nn.Module, Checkpoint[DetectionConfig]]:
    """Returns torchvision's Mask R-CNN with random weights, and ours with the same."""
    torch.manual_seed(0)
    body = resnet_fpn_backbone(backbone_name=backbone, weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3)
    theirs = MaskRCNN(body, NUM_CLASSES + 1, _skip_resize=True)
    calm(theirs, SPREAD)
    theirs.transform = GeneralizedRCNNTransform(*SIDES, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], _skip_resize=True)
    config, state = convert_torchvision(theirs.state_dict(), class_names=CLASSES, norm_eps=1e-5)
    data = replace(config.data, test=(), shorter_side=SIDES[0], longer_side=SIDES[1])
    return theirs, Checkpoint(Path("random.safetensors"), state, replace(config, data=data), CLASSES, iteration=0)


def build(checkpoint: Checkpoint[DetectionConfig]) -> FasterRCNN | OneStage:
    """Returns the detector of a checkpoint."""
    detector = build_detector(checkpoint.config, len(checkpoint.class_names), pretrained=False).eval()
    load_detector_weights(detector, checkpoint, checkpoint.class_names)
    assert isinstance(detector, FasterRCNN | OneStage)
    return detector


def write_both(
    checkpoint: Checkpoint[DetectionConfig],
    detector: FasterRCNN | OneStage,
    folder: Path,
    size: tuple[int, int],
    batch: int,
) -> dict[str, Exported]:
    """Writes the export of both formats, OpenVINO from the ONNX file to save a capture, and opens them."""
    facts = describe_export(
        checkpoint, detector, format="onnx", precision="fp32", size=size, batch=batch, licence="none"
    )
    facts, _ = write_export(detector, folder, facts)
    write_openvino(folder / NAMES["onnx"], folder / NAMES["openvino"], replace(facts, format="openvino"))
    return {format: open_exported(folder / NAMES[format], threads=1) for format in ("onnx", "openvino")}


@torch.inference_mode()
def print_differences(name: str, checkpoint: Checkpoint[DetectionConfig], args: argparse.Namespace) -> None:
    """Prints a row for each format and number of images per call."""
    images = resized_images(checkpoint.config, [*islice(images_below(args.images), args.count)])
    sides = zip(*(batch.size_list()[0] for batch in images), strict=True)
    height, width = (-(-max(side) // 32) * 32 for side in sides)
    detector = build(checkpoint)
    graph = DetectorGraph(detector)
    eager = Framed(lambda *call: [output.numpy() for output in graph(*call)], size=(height, width), batch=1)
    expected = [found for batch in images for found in eager(batch)]
    joined = ImageBatch.from_images([batch.pixels[0] for batch in images])
    for batch in args.batches:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            for format, exported in write_both(checkpoint, detector, folder, (height, width), batch).items():
                found = agreement(expected, exported(joined))
                size = sum(exported.path.with_suffix(ending).stat().st_size for ending in ENDINGS[format])
                mask = "-" if found.mask is None else f"{found.mask:.1e}"
                matched = f"{found.matched} of {found.detections}, {found.exported} exported"
                differences = f"{found.box:.1e} | {found.score:.1e} | {mask}"
                print(f"| {name} | {format} | {batch} | {matched} | {differences} | {size / 2**20:.1f} |", flush=True)


def make_calls(
    checkpoint: Checkpoint[DetectionConfig],
    theirs: nn.Module | None,
    folder: Path,
    size: tuple[int, int],
    *,
    compiled: bool,
) -> Calls:
    """Returns the functions that detect objects in an image of ``size``, by their names in the table."""
    detector = build(checkpoint)
    calls: Calls = {"PyTorch": detector}
    if compiled:
        detect = torch.compile(detector.detect)
        calls["compiled"] = lambda images: detect(images).ragged()
    if theirs is not None:
        own = theirs.eval()
        calls["torchvision"] = lambda images: own([images.pixels[0] / 255])
    return calls | write_both(checkpoint, detector, folder, size, 1)


@torch.inference_mode()
def print_times(checkpoint: Checkpoint[DetectionConfig], theirs: nn.Module | None, args: argparse.Namespace) -> None:
    """Prints the median CPU time per image and, for all but eager PyTorch, the median ratio to it."""
    images = resized_images(checkpoint.config, sorted(images_below(args.images)))
    usual, _ = Counter(batch.size_list()[0] for batch in images).most_common(1)[0]
    images = [batch for batch in images if batch.size_list()[0] == usual][: args.count]
    with tempfile.TemporaryDirectory() as folder:
        calls = make_calls(checkpoint, theirs, Path(folder), usual, compiled=args.compile)
        times = measure(calls, images, args.time)
    print(f"{len(images)} images of {usual[0]}x{usual[1]}, {args.time} rounds, one thread; milliseconds of CPU time")
    for name, own in times.items():
        ratio = statistics.median(one / eager for one, eager in zip(own, times["PyTorch"], strict=True))
        print(f"| {name} | {1000 * statistics.median(own):.1f} | {ratio:.2f} |")


def measure(calls: Calls, images: list[ImageBatch], rounds: int) -> Mapping[str, list[float]]:
    """Returns the CPU seconds of each call, image by image, in turns."""
    for call in calls.values():
        call(images[0])
        call(images[-1])
    times: dict[str, list[float]] = {name: [] for name in calls}
    for batch in images * rounds:
        for name, call in calls.items():
            started = time.process_time()
            call(batch)
            times[name].append(time.process_time() - started)
    return times


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    run = read_checkpoint(args.run) if args.run else None
    if args.time:
        theirs, checkpoint = make_torchvision(args.backbone) if run is None else (None, run)
        print_times(checkpoint, theirs, args)
        return
    print("| family | format | batch | detections matched | box, pixels | score | mask | MiB |\n" + "|---" * 8 + "|")
    for name, checkpoint in [("run", run)] if run else make_families(args.models, args.backbone):
        print_differences(name, checkpoint, args)


if __name__ == "__main__":
    main()

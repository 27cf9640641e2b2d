"""Exports the detector of a run, compares the file with PyTorch, and writes file and comparison, or nothing.

OUTPUT/model.pt2, model.onnx, or model.xml with model.bin
OUTPUT/export.json     agreement with PyTorch, AP before and after, latency and memory of both, metadata
OUTPUT/export.md       the same as text
OUTPUT/index.html      with --format web: a page that runs model.onnx in a browser, with the files it needs
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detection.build import build_detector, data_parts, field_operations
from detection.build_panoptic import build_merge
from detection.build_tester import build_tester
from detection.config.detection import DetectionConfig
from detection.data.images import read_image
from detection.data.index import AnnotationIndex
from detection.data.loader import build_test_loader, load_index
from detection.data.readers.image_files import images_below
from detection.data.transforms import Resize
from detection.engine.checkpoint import Checkpoint, load_detector_weights
from detection.engine.evaluate import predict
from detection.engine.label_counts import label_classes
from detection.export.card import card, summary
from detection.export.facts import ExportFormat, Facts, Precision, describe_export
from detection.export.files import require_packages
from detection.export.graph import DetectorGraph
from detection.export.proof import Agreement, Loss, agreement, ap_loss, miou_loss
from detection.export.runtime import Exported, Framed, open_exported
from detection.export.timing import measure_apart
from detection.export.web.page import write_page
from detection.export.web.runtime import find_runtime
from detection.export.write import write_export
from detection.files import write_text
from detection.model.architecture import Architecture
from detection.progress import SCREEN
from detection.structures import ImageBatch, Target
from detection.tasks.test import load_test_set
from detection.weights.origin import origin_of

__all__ = ["Limits", "Wanted", "resized_images", "run_export"]

MULTIPLE = 32  # the sides of a frame are rounded up to a multiple of it
UNMATCHED: dict[Precision, float] = {"fp32": 0.01, "fp16": 0.05, "int8": 0.3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on what an export may lose against PyTorch.

    Attributes:
        unmatched: share of the detections of either model without a match, or of pixels with different classes, 0..1;
            None: 0.01 for fp32, 0.05 for fp16, 0.3 for int8.
        ap: loss in points of box AP, or of mean IoU for label maps, if it can be computed.
        part: for int8: a part that alone loses a larger share of detections stays float.
    """

    unmatched: float | None = None
    ap: float = 1.0
    part: float = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Options of an export and of its comparison with PyTorch.

    Attributes:
        format, precision: format and precision of the file.
        size: (height, width) of the frame; None: the smallest that holds the resized images of the comparison.
        batch: images per call.
        images: folder of images to compare and calibrate on; None: the run's data.test and its data.train.
        count: number of images for each of the two.
        timed: number of images to measure latency on; 0: none.
        licence: licence of the weights; None: the licence that the config implies.
        page: add the page that runs an ONNX model in a browser.
        runtime: folder with onnxruntime-web for the page; None: from npm or its registry.
        limits: losses above which the export fails.
    """

    format: ExportFormat
    precision: Precision = "fp32"
    size: tuple[int, int] | None = None
    batch: int = 1
    images: Path | None = None
    count: int = 20
    timed: int = 20
    licence: str | None = None
    page: bool = False
    runtime: Path | None = None
    limits: Limits = field(default_factory=Limits)


def run_export(
    checkpoint: Checkpoint[DetectionConfig], output: Path, wanted: Wanted, *, say: Callable[[str], None] = SCREEN.print
) -> dict[str, Any]:
    """Writes the files of ``output`` and returns the content of export.json.

    Args:
        checkpoint: checkpoint of a run.
        output: folder; an export in it is replaced.
        wanted: format, precision, sizes and limits.
        say: called with each line of progress.

    Raises:
        ValueError: a detector, size or test-time method that can't be exported, no images, or an exceeded limit;
            ``output`` stays unchanged.
        ImportError: a package of the format is missing.
    """
    _check(checkpoint.config, wanted)
    runtime = find_runtime(wanted.runtime) if wanted.page else None  # fails before an export of minutes
    detector = build_detector(checkpoint.config, len(checkpoint.class_names), pretrained=False).eval()
    load_detector_weights(detector, checkpoint, checkpoint.class_names)
    index = _test_set(checkpoint.config, wanted, say)
    images = _proof_images(checkpoint.config, index, wanted)
    facts = describe_export(
        checkpoint,
        detector,
        format=wanted.format,
        precision=wanted.precision,
        size=wanted.size or _frame(images),
        batch=wanted.batch,
        licence=wanted.licence or weights_licence(checkpoint.config),
    )
    with _whole(output) as folder:
        frames = _frames(_calibration_images(checkpoint.config, images, wanted, say), facts)
        facts, lost = write_export(detector, folder, facts, frames=frames, part_loss=wanted.limits.part)
        if runtime is not None:
            write_page(folder, runtime)
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        found = _prove(checkpoint, detector, open_exported(folder), images, index, wanted)
        proof = {"files": files, **_plain(found), "float_parts": lost, "facts": _plain(asdict(facts))}
        _enforce(found, wanted)
        write_text(folder / "export.json", json.dumps(proof, indent=1) + "\n")
        write_text(folder / "export.md", card(facts, proof))
    for line in summary(proof):
        say(line)
    return proof


def weights_licence(config: DetectionConfig) -> str:
    """Returns the licence of the weights as far as the config of a run implies it."""
    source, known = origin_of(config)
    if source is None:
        return "not stated (--licence states it); trained from scratch"
    return f"not stated (--licence states it); trained from {source}" + (f", {known}" if known else "")


@contextmanager
def _whole(output: Path) -> Iterator[Path]:
    """Yields a temporary folder that replaces ``output`` at the end, unless there was an error."""
    folder = output.with_name(f".{output.name}.part")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        shutil.rmtree(output, ignore_errors=True)
        folder.replace(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check(config: DetectionConfig, wanted: Wanted) -> None:
    if wanted.format == "torch" and wanted.precision == "int8":
        raise ValueError("--int8 is for --format onnx and openvino; with torch use --half")
    if wanted.page and wanted.batch != 1:
        raise ValueError(f"the page of --format web takes one image at a time; leave out --batch {wanted.batch}")
    if wanted.page and not config.finds_objects:
        raise ValueError(
            f"the page of --format web draws boxes and masks, and architecture {config.architecture} finds no objects; "
            "give --format onnx"
        )
    if wanted.page and wanted.format != "onnx":
        raise ValueError(f"the page runs ONNX; give Wanted(format='onnx', page=True), got {wanted.format!r}")
    test = config.test
    methods = [name for name in ("refine", "scales", "flip") if getattr(test, name)]
    if methods:
        raise ValueError(f"test.{methods[0]} is on in the run's config, and an export tests once: train or save it off")
    require_packages(wanted.format)


def _test_set(config: DetectionConfig, wanted: Wanted, say: Callable[[str], None]) -> AnnotationIndex | None:
    """Returns the images of ``data.test``; None if they can't be read and a folder of images is given."""
    try:
        if not config.data.test:
            raise ValueError("data.test is empty")
        index = load_test_set(config, say).first(wanted.count)
    except ValueError as error:
        if wanted.images is None:
            raise ValueError(f"{error}; give --images FOLDER to prove the export on") from error
        say(f"AP and mean IoU are not compared: {error}")
        return None
    return index


def _proof_images(config: DetectionConfig, index: AnnotationIndex | None, wanted: Wanted) -> list[ImageBatch]:
    """Returns the resized images that both models are compared on, each as a batch."""
    if wanted.images is not None:
        paths = [*islice(images_below(wanted.images), wanted.count)]
        if not paths:
            raise ValueError(f"--images {wanted.images} holds no image; give a folder of them")
        return resized_images(config, paths)
    assert index is not None
    return [batch.images for batch in build_test_loader(index, replace(config.data, workers=0))]


def _calibration_images(
    config: DetectionConfig, images: list[ImageBatch], wanted: Wanted, say: Callable[[str], None]
) -> list[ImageBatch]:
    """Returns the images that int8 is calibrated on, never those of the test set."""
    if wanted.precision != "int8" or wanted.images is not None:
        return images if wanted.precision == "int8" else []
    index = load_index(config.data, config.data.train, key="data.train", say=say, **data_parts(config))
    index = index.first(wanted.count)
    return [batch.images for batch in build_test_loader(index, replace(config.data, workers=0))]


def resized_images(config: DetectionConfig, paths: Sequence[Path]) -> list[ImageBatch]:
    """Returns the images in ``paths``, resized as in a test of ``config``, each as a batch."""
    resize = Resize(config.data.shorter_side, config.data.longer_side)
    nothing = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0).long(), ignore=torch.zeros(0).bool())
    pixels = [resize(read_image(path), nothing)[0] for path in paths]
    return [ImageBatch.from_images([torch.from_numpy(image).permute(2, 0, 1)]) for image in pixels]


def _frame(images: Sequence[ImageBatch]) -> tuple[int, int]:
    """Returns the smallest frame that holds all ``images``."""
    sizes = [size for batch in images for size in batch.size_list()]
    height, width = (-(-max(sides) // MULTIPLE) * MULTIPLE for sides in zip(*sizes, strict=True))
    return height, width


def _frames(images: Sequence[ImageBatch], facts: Facts) -> list[tuple[Tensor, Tensor]]:
    """Returns the inputs of the graph for ``images``, one pair per call, as the runtime passes them."""
    calls: list[tuple[Tensor, Tensor]] = []

    def record(pixels: Tensor, sizes: Tensor) -> list[Any]:
        calls.append((pixels, sizes))
        rows = len(pixels)
        return [
            a.numpy() for a in (torch.zeros(rows, 0, 4), torch.zeros(rows, 0), torch.zeros(rows, 0), sizes[:, 0] * 0)
        ]

    frame = Framed(record, size=facts.size, batch=facts.batch)
    for batch in images:
        frame(batch)
    return calls


def _prove(
    checkpoint: Checkpoint[DetectionConfig],
    detector: Architecture,
    exported: Exported,
    images: Sequence[ImageBatch],
    index: AnnotationIndex | None,
    wanted: Wanted,
) -> dict[str, Any]:
    """Compares ``exported`` with ``detector`` in detections, AP and costs."""
    graph = DetectorGraph(detector)
    eager = Framed(
        lambda *call: [output.numpy() for output in graph(*call)],
        size=exported.size,
        batch=exported.batch,
        outputs=exported.outputs,
        num_labels=exported.num_labels,
    )
    with torch.inference_mode():
        expected = [found for batch in images for found in eager(batch)]
        found = [found for batch in images for found in exported(batch)]
        ap = dict[str, Loss]()
        if index is not None and index.has_ground_truth and len(index) > 1:  # an interval needs two images
            tester = build_tester(checkpoint.config.test, [detector])
            ap = _compare_ap(checkpoint.config, (tester, eager, exported), index)
    return {
        "agreement": agreement(expected, found),
        "ap": ap,
        "cost": _costs(checkpoint, exported, images, wanted.timed),
        "torch": torch.__version__,
    }


def _compare_ap(config: DetectionConfig, models: Sequence[nn.Module], index: AnnotationIndex) -> dict[str, Loss]:
    """Returns the losses of AP: "frame" of PyTorch's test in the frame; "bbox", "segm" and "keypoints" of the export.

    For label maps, "frame_semseg" and "semseg" are losses of mean IoU.

    ``models`` are PyTorch's test, the same in the frame of the export, and the export.
    """
    data, fields, cpu = replace(config.data, workers=0), field_operations(config), torch.device("cpu")
    classes = label_classes(index)
    merge = build_merge(config, len(index.class_names))
    whole, before, after = (
        predict(model, build_test_loader(index, data), index, device=cpu, fields=fields, merge=merge).records
        for model in models
    )
    losses = dict[str, Loss]()
    if classes is not None:
        losses = {"frame_semseg": miou_loss(whole, before, classes), "semseg": miou_loss(before, after, classes)}
    if not config.finds_objects:
        return losses
    losses |= {"frame": ap_loss(whole, before, index.class_names), "bbox": ap_loss(before, after, index.class_names)}
    if all(record.masks is not None and record.gt_masks is not None for record in (*before, *after)):
        losses["segm"] = ap_loss(before, after, index.class_names, iou_type="segm")
    if all(record.keypoints is not None and record.gt_keypoints is not None for record in (*before, *after)):
        losses["keypoints"] = ap_loss(before, after, index.class_names, iou_type="keypoints")
    return losses


def _costs(
    checkpoint: Checkpoint[DetectionConfig], exported: Exported, images: Sequence[ImageBatch], timed: int
) -> dict[str, Any]:
    if not timed:
        return {}
    pixels = [batch.pixels[row] for batch in images for row in range(len(batch))][:timed]
    threads = torch.get_num_threads()
    return {
        name: measure_apart(path, pixels, threads=threads)
        for name, path in (("PyTorch", checkpoint.path), (exported.facts.format, exported.path))
    }


def _enforce(proof: Mapping[str, Any], wanted: Wanted) -> None:
    """Raises ValueError if ``proof`` exceeds a limit."""
    found: Agreement = proof["agreement"]
    limit = UNMATCHED[wanted.precision] if wanted.limits.unmatched is None else wanted.limits.unmatched
    if found.pixels is not None and found.pixels > limit:
        raise ValueError(
            f"{100 * found.pixels:.1f} % of the pixels have another class in the export, more than --max-unmatched "
            f"{limit:g}; nothing was written"
        )
    if found.unmatched > limit:
        raise ValueError(
            f"{100 * found.unmatched:.1f} % of the detections have no match in the other ({found.matched} pairs of "
            f"PyTorch's {found.detections} and {found.exported} exported), more than --max-unmatched {limit:g}; "
            "nothing was written"
        )
    for key, figure in (("bbox", "box AP"), ("semseg", "mean IoU")):
        loss: Loss | None = proof["ap"].get(key)
        if loss is not None and 100 * (loss.before - loss.after) > wanted.limits.ap:
            raise ValueError(
                f"{figure} falls by {100 * (loss.before - loss.after):.1f} points, from {100 * loss.before:.1f} to "
                f"{100 * loss.after:.1f} on {loss.images} images, more than --max-ap-loss {wanted.limits.ap:g}; "
                "nothing was written"
            )


def _plain(value: Any) -> Any:
    """Returns ``value`` in types of JSON; NaN becomes None."""
    if hasattr(value, "__dataclass_fields__"):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value

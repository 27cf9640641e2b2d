"""Times COCO's metric on made-up detections: this project's, pycocotools' and faster-coco-eval's, in one process.

The sets have crowds, 80 classes, and detections around objects and elsewhere.  The metrics of all programs are
compared.  faster-coco-eval is timed if it is installed (pip install faster-coco-eval).

examples:
  python tools/benchmark_evaluation.py
  python tools/benchmark_evaluation.py --masks --images 500 --detections 30000
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

import numpy as np
from pycocotools import mask as pycocotools_mask

from detection.evaluation.coco import COCO_NUMBERS, IouType, coco_results, evaluate_coco
from detection.evaluation.record import Record
from detection.masks import RLE, encode

CLASSES = 80
SIZE = (480, 640)
DRAWN = 64  # masks that are drawn: the others repeat one of these at another place

coco_mask: Any = pycocotools_mask  # its type stubs take the bytes of an RLE for text


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2500)
    parser.add_argument("--detections", type=int, default=150_000)
    parser.add_argument("--objects", type=int, default=18_000)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--masks", action="store_true", help="IoU of masks instead of boxes")
    kind.add_argument("--boundary", action="store_true", help="also IoU of their boundaries, which pycocotools lacks")
    parser.add_argument(
        "--repeat", type=int, default=3, help="the fastest of so many runs counts; pycocotools runs once"
    )
    return parser.parse_args()


def make_records(images: int, objects: int, detections: int, *, masks: bool) -> list[Record]:
    """Returns records with as many objects and detections in each image."""
    rng = np.random.default_rng(0)
    records = [_record(rng, image_id, objects // images, detections // images) for image_id in range(1, images + 1)]
    if not masks:
        return records
    return [replace(r, gt_masks=_ellipses(rng, r.gt_boxes), masks=_ellipses(rng, r.boxes)) for r in records]


def _record(rng: np.random.Generator, image_id: int, num_objects: int, num_detections: int) -> Record:
    """Returns a record: two of three detections lie around an object, most of them with its class."""
    gt_boxes = _boxes(rng, num_objects)
    gt_labels = rng.choice(CLASSES, 4)[rng.integers(0, 4, num_objects)]  # an image shows few classes
    boxes, labels = _boxes(rng, num_detections), rng.integers(0, CLASSES, num_detections)
    near = np.flatnonzero(rng.random(num_detections) < 0.67) if num_objects else np.zeros(0, np.int64)
    source = rng.integers(0, max(num_objects, 1), len(near))
    sides = np.tile(gt_boxes[source, 2:] - gt_boxes[source, :2], 2)
    moved = gt_boxes[source] + rng.normal(0, 0.08, (len(near), 4)) * sides
    boxes[near] = np.concatenate([moved[:, :2], np.maximum(moved[:, 2:], moved[:, :2] + 1)], axis=1)
    labels[near] = np.where(rng.random(len(near)) < 0.8, gt_labels[source], labels[near])
    return Record(
        image_id=image_id,
        file_name=f"{image_id}.jpg",
        size=SIZE,
        gt_boxes=gt_boxes,
        gt_labels=gt_labels,
        gt_ignore=rng.random(num_objects) < 0.02,
        gt_areas=(gt_boxes[:, 2:] - gt_boxes[:, :2]).prod(axis=1),
        boxes=boxes,
        scores=rng.random(num_detections, np.float32),
        labels=labels,
    )


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray[Any, Any]:
    sides = np.exp(rng.uniform(np.log(10), np.log(300), (count, 2)))
    corners = rng.uniform(0, 1, (count, 2)) * (np.array([SIZE[1], SIZE[0]]) - sides).clip(min=0)
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


def _ellipses(rng: np.random.Generator, boxes: np.ndarray[Any, Any]) -> tuple[RLE, ...]:
    """Returns masks of the whole image with slightly rough outlines inside ``boxes``."""
    masks = []
    for x1, y1, x2, y2 in boxes.astype(np.float64):
        canvas = np.zeros(SIZE, np.uint8, order="F")
        window = slice(max(int(y1), 0), int(y2) + 1), slice(max(int(x1), 0), int(x2) + 1)
        y, x = np.mgrid[window] + 0.5
        distance = ((x - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((y - (y1 + y2) / 2) / (y2 - y1)) ** 2
        canvas[window] = (distance < 0.25 * rng.uniform(0.8, 1))[: canvas[window].shape[0], : canvas[window].shape[1]]
        masks.append(encode(canvas))
    return tuple(masks)


def coco_inputs(records: Sequence[Record], iou_type: IouType) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the annotations and the results of ``records`` in COCO's formats."""
    ids = range(1, CLASSES + 1)
    truth = [
        replace(r, boxes=r.gt_boxes, labels=r.gt_labels, masks=r.gt_masks, scores=np.ones(len(r.gt_boxes), np.float32))
        for r in records
    ]
    facts = [(area, ignore) for r in records for area, ignore in zip(r.gt_areas, r.gt_ignore, strict=True)]
    annotations = [
        {**result, "id": number, "area": float(area), "iscrowd": int(ignore)}
        for number, (result, (area, ignore)) in enumerate(zip(coco_results(truth, ids), facts, strict=True), start=1)
    ]
    data = {
        "images": [{"id": r.image_id, "height": SIZE[0], "width": SIZE[1]} for r in records],
        "categories": [{"id": i, "name": f"class {i}"} for i in ids],
        "annotations": annotations,
    }
    results = coco_results(records, ids)
    if iou_type != "bbox":  # loadRes takes areas from "bbox" where it is there
        results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    return data, results


def time_other(
    coco_class: Any, eval_class: Any, data: dict[str, Any], results: list[dict[str, Any]], iou_type: IouType
) -> tuple[float, list[float]]:
    """Returns the seconds from results to the twelve metrics, and the metrics; reading annotations is not timed."""
    with redirect_stdout(io.StringIO()):
        truth = coco_class()
        truth.dataset = data
        truth.createIndex()
        found = truth.loadRes([dict(result) for result in results])
        started = time.perf_counter()
        evaluation = eval_class(truth, found, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return time.perf_counter() - started, [float(value) for value in evaluation.stats[: len(COCO_NUMBERS)]]


def fastest(run: Callable[[], tuple[float, list[float]]], times: int) -> tuple[float, list[float]]:
    """Returns the smallest seconds of several runs, and the metrics."""
    return min((run() for _ in range(times)), key=lambda outcome: outcome[0])


def main() -> None:
    args = parse_args()
    iou_type: IouType = "boundary" if args.boundary else "segm" if args.masks else "bbox"
    records = make_records(args.images, args.objects, args.detections, masks=iou_type != "bbox")
    names = [f"class {label}" for label in range(CLASSES)]
    data, results = coco_inputs(records, iou_type)

    def ours() -> tuple[float, list[float]]:
        started = time.perf_counter()
        result = evaluate_coco(records, names, iou_type=iou_type)
        return time.perf_counter() - started, [getattr(result, name) for name in COCO_NUMBERS]

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    timed = {"resdet": fastest(ours, args.repeat)}
    if iou_type != "boundary":
        timed["pycocotools"] = time_other(COCO, COCOeval, data, results, iou_type)
    try:
        import faster_coco_eval as faster
    except ImportError:
        print("faster-coco-eval is not installed: not timed")
    else:
        timed["faster-coco-eval"] = fastest(
            lambda: time_other(faster.COCO, faster.COCOeval_faster, data, results, iou_type), args.repeat
        )
    print(f"{len(records)} images, {len(data['annotations'])} objects, {len(results)} detections, {iou_type}")
    own_seconds, own_numbers = timed["resdet"]
    for name, (seconds, numbers) in timed.items():
        gap = max(abs(a - b) for a, b in zip(own_numbers, numbers, strict=True))
        print(f"{name:17} {seconds:7.2f} s, {seconds / own_seconds:5.1f} times resdet; largest difference {gap:.1e}")


if __name__ == "__main__":
    main()

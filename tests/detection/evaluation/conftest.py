"""Builders of records, and the reference of COCO's metric: pycocotools, on the records that our matching gets."""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as pycocotools_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.evaluation.coco import COCO_NUMBERS, CocoResult, IouType, coco_results
from detection.evaluation.record import Record
from detection.fields.keypoints import to_coco
from detection.masks import RLE, empty_rle, encode, is_empty

coco_mask: Any = pycocotools_mask  # its type stubs take the bytes of an RLE for text


@pytest.fixture(scope="session")
def record():
    """One image of objects ``box`` or ``(box, label)`` and detections ``(box, score)`` or ``(box, label, score)``."""
    return make_record


def make_record(objects: Any = (), found: Any = (), *, image_id: int = 1, ignore: Any = (), **others: Any) -> Record:
    """Areas are those of the boxes and labels 0 unless given; ``ignore`` are rows of ignored objects."""
    pairs = [item if len(item) == 2 else (item, 0) for item in objects]
    triples = [item if len(item) == 3 else (item[0], 0, item[1]) for item in found]
    gt_boxes, boxes = (np.array([item[0] for item in items], np.float32).reshape(-1, 4) for items in (pairs, triples))
    own: dict[str, Any] = {
        "file_name": f"{image_id}.jpg",
        "size": (300, 300),
        "gt_boxes": gt_boxes,
        "gt_labels": np.array([label for _, label in pairs], np.int64),
        "gt_ignore": np.isin(np.arange(len(pairs)), ignore),
        "gt_areas": (gt_boxes[:, 2:] - gt_boxes[:, :2]).prod(axis=1),
        "boxes": boxes,
        "scores": np.array([score for _, _, score in triples], np.float32),
        "labels": np.array([label for _, label, _ in triples], np.int64),
    }
    return Record(image_id=image_id, **own | others)


@pytest.fixture(scope="session")
def random_records():
    """Images of up to 7 objects of three classes, a fifth of them ignored, and about two detections of each."""
    return make_random_records


def make_random_records(
    seed: int, count: int = 12, *, each: int = 2, wrong: float = 0.1, ignored: float = 0.2, masks: bool = False
) -> list[Record]:
    """No score occurs twice; 3 detections lie anywhere, also of a fourth class; ids are 7, 14, ... in no order."""
    rng, records = np.random.default_rng(seed), list[Record]()
    for number in rng.permutation(count).tolist():
        objects = int(rng.integers(0, 8))
        corner, sides = rng.uniform(0, 60, (objects, 2)), np.exp(rng.uniform(np.log(12), np.log(230), (objects, 2)))
        gt_boxes, gt_labels = np.concatenate([corner, corner + sides], axis=1), rng.integers(0, 3, objects)
        near = np.tile(gt_boxes, (each, 1)) + rng.normal(0, 0.07, (each * objects, 4)) * np.tile(sides, (each, 2))
        anywhere = rng.uniform(0, 200, (3, 2))
        boxes = np.concatenate([near, np.concatenate([anywhere, anywhere + rng.uniform(5, 90, (3, 2))], axis=1)])
        named = np.where(rng.random(each * objects) < wrong, rng.integers(0, 3), np.tile(gt_labels, each))
        image = make_record(
            list(zip(gt_boxes, gt_labels, strict=True)),
            list(zip(boxes, np.append(named, rng.integers(0, 4, 3)), rng.random(len(boxes)), strict=True)),
            image_id=7 * (number + 1),
            ignore=np.flatnonzero(rng.random(objects) < ignored).tolist(),
            gt_areas=(sides.prod(axis=1) * 0.8).astype(np.float32),  # as of masks
        )
        records.append(fill(image, rng) if masks else image)
    return records


@pytest.fixture(scope="session")
def with_masks():
    """Fills the boxes of an image in part, as ellipses; some masks are empty, which of objects means unknown."""
    return fill


def fill(image: Record, rng: np.random.Generator) -> Record:
    y, x = np.mgrid[: image.size[0], : image.size[1]] + 0.5

    def drawn(boxes: np.ndarray) -> tuple[RLE, ...]:
        masks = []
        for x1, y1, x2, y2 in boxes.astype(np.float64):
            place = [(x - (x1 + x2) / 2) / max(x2 - x1, 1), (y - (y1 + y2) / 2) / max(y2 - y1, 1)]
            inside = np.square(place).sum(axis=0) < rng.uniform(0.15, 0.3)
            masks.append(empty_rle(image.size) if rng.random() < 0.1 else encode(inside))
        return tuple(masks)

    return replace(image, gt_masks=drawn(image.gt_boxes), masks=drawn(image.boxes))


@pytest.fixture(scope="session")
def repeated():
    """Records of which each occurs as often as its count says, under ids of their own in the same order."""

    def repeat(records: Sequence[Record], counts: Sequence[int]) -> list[Record]:
        counted = zip(sorted(records, key=lambda item: item.image_id), counts, strict=True)
        return [replace(r, image_id=100 * r.image_id + copy) for r, count in counted for copy in range(count)]

    return repeat


@pytest.fixture(scope="session")
def numbers():
    """All twelve numbers and the three of each class, flat."""
    return lambda result: np.concatenate(
        [[getattr(result, name) for name in COCO_NUMBERS], result.class_ap, result.class_ap50, result.class_ap75]
    )


@pytest.fixture(scope="session")
def reference():
    """pycocotools' numbers of records, NaN for its -1; called as ``evaluate_coco``."""
    return evaluate_reference


def evaluate_reference(records: Sequence[Record], class_names: Sequence[str], *, iou_type: IouType = "bbox") -> Any:
    """CocoResult, or of keypoints the ten numbers and AP of each class."""
    with redirect_stdout(io.StringIO()):
        truth: Any = _index(records, class_names, _objects(records, iou_type))
        if iou_type == "keypoints":
            found: Any = truth.loadRes(coco_results(records, range(1, 1001)))  # which takes areas from keypoints
        else:
            found = _index(records, class_names, _detections(records, iou_type))
        kind: Any = iou_type
        evaluation: Any = COCOeval(truth, found, kind)
        if records[0].keypoint_spec is not None:
            evaluation.params.kpt_oks_sigmas = np.array(records[0].keypoint_spec.sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # (thresholds, recalls, classes, areas, detection limits): all areas, 100 detections
    precision, numbers = evaluation.eval["precision"][..., 0, -1], evaluation.stats[: len(COCO_NUMBERS)]
    if iou_type == "keypoints":
        return tuple(np.where(part < 0, np.nan, part) for part in (numbers, precision.mean(axis=(0, 1))))
    return _result(numbers, precision)


@pytest.fixture(scope="session")
def coco_truth():
    """Objects of records as a dictionary in COCO's format; called as ``evaluate_coco``."""
    return lambda records, names, iou_type: _dataset(records, names, _objects(records, iou_type))


def _dataset(records: Sequence[Record], class_names: Sequence[str], annotations: list[dict[str, Any]]) -> Any:
    return {
        "info": {},
        "images": [{"id": r.image_id, "height": r.size[0], "width": r.size[1]} for r in records],
        "categories": [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)],
        # COCOeval takes a match with id 0 for no match.
        "annotations": [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)],
    }


def _index(*parts: Any) -> COCO:
    coco: Any = COCO()
    coco.dataset = _dataset(*parts)
    coco.createIndex()
    return coco


def _objects(records: Sequence[Record], iou_type: IouType) -> list[dict[str, Any]]:
    annotations = list[dict[str, Any]]()
    for record in records:
        masks = record.gt_masks if iou_type == "segm" else None
        for row, (x1, y1, x2, y2) in enumerate(record.gt_boxes.astype(np.float64).tolist()):
            unknown = masks is not None and is_empty(masks[row])
            own = {} if masks is None else {"segmentation": masks[row]}
            own |= {"image_id": record.image_id, "category_id": int(record.gt_labels[row]) + 1}
            own |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": float(record.gt_areas[row])}
            if record.gt_keypoints is not None:
                points = record.gt_keypoints[row]
                own |= {"keypoints": to_coco(points[None])[0], "num_keypoints": int((points[:, 2] > 0).sum())}
            annotations.append(own | {"iscrowd": int(record.gt_ignore[row] or unknown)})
    return annotations


def _detections(records: Sequence[Record], iou_type: IouType) -> list[dict[str, Any]]:
    """What ``COCO.loadRes`` makes of results; it fails if there are none, and takes areas from boxes."""
    results = coco_results(records, range(1, 1001))
    if iou_type == "bbox":
        return [{**result, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0} for result in results]
    return [{**result, "area": float(coco_mask.area(result["segmentation"])), "iscrowd": 0} for result in results]


def _result(stats: np.ndarray, precision: np.ndarray) -> CocoResult:
    """COCO's ``stats`` (12,) and ``precision`` (IoU thresholds, recalls, K)."""
    numbers = np.where(stats < 0, np.nan, stats).tolist()
    # The values of a class are all -1 or all known, so its plain mean is the mean of the known ones.
    ap = np.where(precision < 0, np.nan, precision).mean(axis=1)  # (10, K)
    named = dict(zip(COCO_NUMBERS, numbers, strict=True))
    return CocoResult(**named, class_ap=ap.mean(axis=0), class_ap50=ap[0], class_ap75=ap[5])

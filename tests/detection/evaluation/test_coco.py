"""Mirrors detection/evaluation/coco.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.evaluation.coco import COCO_NUMBERS, CocoResult, average_recall, coco_results, evaluate_coco
from detection.evaluation.matching import match
from detection.evaluation.record import Record
from detection.masks import RLE, empty_rle, encode

NAMES = ["cat", "dog", "cow", "unseen"]


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Small, medium and large boxes (count, 4) float32 with fractional corners."""
    corner, size = rng.uniform(0, 60, (count, 2)), np.exp(rng.uniform(np.log(8), np.log(250), (count, 2)))
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def random_record(
    rng: np.random.Generator, image_id: int, *, num_objects: int, num_detections: int, num_labels: int = 3
) -> Record:
    """Detections around the objects and elsewhere, with tied scores; some objects are crowds."""
    gt_boxes = random_boxes(rng, num_objects)
    gt_labels = rng.integers(0, num_labels, num_objects)
    boxes, labels = random_boxes(rng, num_detections), rng.integers(0, num_labels, num_detections)
    if num_objects:
        near = rng.random(num_detections) < 0.7
        source = rng.integers(0, num_objects, num_detections)[near]
        extent = np.tile(gt_boxes[source, 2:] - gt_boxes[source, :2], 2)
        boxes[near] = gt_boxes[source] + rng.normal(0, 0.06, (len(source), 4)) * extent
        labels[near] = gt_labels[source]
    return Record(
        image_id=image_id,
        file_name=f"{image_id}.jpg",
        size=(400, 400),
        gt_boxes=gt_boxes,
        gt_labels=gt_labels,
        gt_ignore=rng.random(num_objects) < 0.2,
        gt_areas=((gt_boxes[:, 2:] - gt_boxes[:, :2]).prod(axis=1) * 0.8).astype(np.float32),  # as of masks
        boxes=boxes,
        scores=(rng.integers(0, 40, num_detections) / 40).astype(np.float32),
        labels=labels,
    )


def random_records(seed: int) -> list[Record]:
    rng = np.random.default_rng(seed)
    return [
        # One class here, so that the limit of 100 detections per class and image is reached.
        random_record(rng, 900, num_objects=30, num_detections=250, num_labels=1),
        *(random_record(rng, 3 * i, num_objects=int(rng.integers(0, 8)), num_detections=20) for i in range(1, 20)),
        random_record(rng, 1, num_objects=0, num_detections=5),
        random_record(rng, 2, num_objects=4, num_detections=0),
        random_record(rng, 4, num_objects=0, num_detections=0),
    ]


def perfect(record: Record) -> Record:
    """The objects of ``record`` as its detections."""
    return replace(
        record,
        gt_ignore=np.zeros(len(record.gt_boxes), np.bool_),
        boxes=record.gt_boxes,
        scores=np.full(len(record.gt_boxes), 0.5, np.float32),
        labels=record.gt_labels,
        masks=record.gt_masks,
    )


def without_objects(record: Record) -> Record:
    empty = {name: getattr(record, name)[:0] for name in ("gt_boxes", "gt_labels", "gt_ignore", "gt_areas")}
    return replace(record, **empty)


def without_detections(record: Record) -> Record:
    return replace(record, boxes=record.boxes[:0], scores=record.scores[:0], labels=record.labels[:0])


def numbers(result: CocoResult) -> np.ndarray:
    """All twelve numbers and the three of each class, flat."""
    twelve = [getattr(result, name) for name in COCO_NUMBERS]
    return np.concatenate([twelve, result.class_ap, result.class_ap50, result.class_ap75])


def test_known_value() -> None:
    # Two objects of 50 x 50 and one detection of the first with IoU 30/50: a hit at 0.50, 0.55 and 0.60.
    # There recall is 1/2 with precision 1: 51 of the 101 recalls 0, 0.01, ..., 0.5 count 1.
    record = Record(
        image_id=5,
        file_name="5.jpg",
        size=(200, 200),
        gt_boxes=np.array([[0, 0, 50, 50], [100, 100, 150, 150]], np.float32),
        gt_labels=np.zeros(2, np.int64),
        gt_ignore=np.zeros(2, np.bool_),
        gt_areas=np.full(2, 2500, np.float32),
        boxes=np.array([[0, 0, 50, 30]], np.float32),
        scores=np.array([0.9], np.float32),
        labels=np.zeros(1, np.int64),
    )
    result = evaluate_coco([record], ["cat"])
    twelve = numbers(result)[:12]
    assert twelve[:3] == pytest.approx([51 / 101 * 3 / 10, 51 / 101, 0])  # AP, AP50, AP75
    assert twelve[6:9] == pytest.approx([1 / 2 * 3 / 10] * 3)  # AR1, AR10, AR100
    assert (result.APm, result.ARm) == (result.AP, result.AR100)  # 32 * 32 < 2500 < 96 * 96
    assert np.isnan([result.APs, result.APl, result.ARs, result.ARl]).all()
    assert [result.class_ap[0], result.class_ap50[0], result.class_ap75[0]] == pytest.approx([result.AP, 51 / 101, 0])


def test_perfect_detections_reach_one() -> None:
    records = [
        perfect(random_record(np.random.default_rng(seed), seed + 1, num_objects=8, num_detections=0))
        for seed in range(5)
    ]
    result = evaluate_coco(records, NAMES)
    reached = [getattr(result, name) for name in COCO_NUMBERS if name not in ("AR1", "AR10")]
    assert reached == pytest.approx([1.0] * 10)
    assert 0 < result.AR1 < 1
    np.testing.assert_allclose(result.class_ap, [1, 1, 1, np.nan])


def test_equals_pycocotools_on_files(tmp_path: Path) -> None:
    records = random_records(seed=7)
    category_ids = [2, 5, 90, 91]
    annotations = [
        {
            "image_id": record.image_id,
            "category_id": category_ids[record.gt_labels[row]],
            "bbox": [float(x1), float(y1), float(x2) - float(x1), float(y2) - float(y1)],
            "area": float(record.gt_areas[row]),
            "iscrowd": int(record.gt_ignore[row]),
        }
        for record in records
        for row, (x1, y1, x2, y2) in enumerate(record.gt_boxes)
    ]
    truth = {
        "info": {},
        "images": [{"id": record.image_id, "height": 400, "width": 400} for record in records],
        "categories": [{"id": i, "name": name} for i, name in zip(category_ids, NAMES, strict=True)],
        "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, start=1)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(coco_results(records, category_ids)))
    coco = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "results.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    result = evaluate_coco(records, NAMES)
    np.testing.assert_allclose([getattr(result, name) for name in COCO_NUMBERS], evaluation.stats, rtol=0, atol=1e-12)

    for label, category_id in enumerate(category_ids[:3]):
        evaluation.params.catIds = [category_id]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        of_class = [result.class_ap[label], result.class_ap50[label], result.class_ap75[label]]
        np.testing.assert_allclose(of_class, evaluation.stats[:3], rtol=0, atol=1e-12)
    assert np.isnan([result.class_ap[3], result.class_ap50[3], result.class_ap75[3]]).all()


def test_nothing_to_find_gives_no_value() -> None:
    records = random_records(seed=0)
    for empty in ([], [without_objects(r) for r in records], [without_detections(without_objects(records[0]))]):
        assert np.isnan(numbers(evaluate_coco(empty, NAMES))).all()
    assert evaluate_coco([without_detections(without_objects(records[0]))], []).class_ap.shape == (0,)


def test_no_detections_give_zero() -> None:
    result = evaluate_coco([without_detections(r) for r in random_records(seed=0)], NAMES)
    assert [getattr(result, name) for name in COCO_NUMBERS] == [0.0] * 12
    np.testing.assert_array_equal(result.class_ap50, [0, 0, 0, np.nan])


def test_only_crowds_give_no_value() -> None:
    records = [replace(r, gt_ignore=np.ones(len(r.gt_boxes), np.bool_)) for r in random_records(seed=0)]
    assert np.isnan(numbers(evaluate_coco(records, NAMES))).all()


def test_prints_nothing_and_leaves_records_alone(capsys: pytest.CaptureFixture[str]) -> None:
    records, untouched = random_records(seed=1), random_records(seed=1)
    evaluate_coco(records, NAMES)
    assert capsys.readouterr() == ("", "")
    for record, same in zip(records, untouched, strict=True):
        np.testing.assert_array_equal(record.boxes, same.boxes)
        np.testing.assert_array_equal(record.gt_ignore, same.gt_ignore)


def test_scores_are_not_rounded() -> None:
    # The hit ranks above the miss by one bit of float32: precision is 1 only if that bit survives.
    record = perfect(random_record(np.random.default_rng(0), 1, num_objects=1, num_detections=0, num_labels=1))
    low = np.float32(0.5)
    record = replace(
        record,
        boxes=np.concatenate([record.boxes + 500, record.boxes]),
        scores=np.array([low, np.nextafter(low, np.float32(1))], np.float32),
        labels=np.zeros(2, np.int64),
    )
    assert evaluate_coco([record], ["cat"]).class_ap == pytest.approx([1.0])


def test_mistakes_are_named() -> None:
    record = random_record(np.random.default_rng(0), 1, num_objects=3, num_detections=3)
    with pytest.raises(ValueError, match="occurs twice"):
        evaluate_coco([record, record], NAMES)
    with pytest.raises(ValueError, match=r"expected 0\.\.0"):
        evaluate_coco([replace(record, labels=np.full(3, 1))], ["cat"])
    with pytest.raises(ValueError, match=r"expected 0\.\.1"):
        coco_results([replace(record, labels=np.full(3, -1))], [18, 44])


def test_results_are_plain_numbers_in_coco_format() -> None:
    record = replace(
        random_record(np.random.default_rng(0), 42, num_objects=0, num_detections=0),
        boxes=np.array([[1.5, 2, 11.5, 22], [0, 0, 1, 1]], np.float32),
        scores=np.array([0.75, 0.1], np.float32),
        labels=np.array([1, 0]),
    )
    results = coco_results([record], np.array([18, 44]).tolist())
    assert results == [
        {"image_id": 42, "category_id": 44, "bbox": [1.5, 2.0, 10.0, 20.0], "score": 0.75},
        {"image_id": 42, "category_id": 18, "bbox": [0.0, 0.0, 1.0, 1.0], "score": float(np.float32(0.1))},
    ]
    assert json.loads(json.dumps(results)) == results
    assert coco_results([], [18, 44]) == []


def test_results_give_the_corners_back() -> None:
    # In float32 100.3 - 0.1 would be rounded.
    record = random_record(np.random.default_rng(0), 1, num_objects=0, num_detections=1)
    corners = np.array([[0.1, 0.3, 100.3, 70.7]], np.float32)
    x, y, width, height = coco_results([replace(record, boxes=corners)], [1, 2, 3])[0]["bbox"]
    assert [x, y, x + width, y + height] == corners[0].tolist()


def test_recall_of_weighted_images_is_that_of_the_repeated_ones() -> None:
    records = random_records(seed=3)
    weights = np.random.default_rng(0).integers(0, 3, (3, len(records)))
    ordered = sorted(records, key=lambda record: record.image_id)
    for limit, name in ((1, "AR1"), (10, "AR10"), (100, "AR100")):
        found = average_recall(match(records, NAMES), weights, limit=limit)
        for row, counts in zip(found, weights.tolist(), strict=True):
            repeated = [
                replace(record, image_id=1000 * record.image_id + copy)
                for record, count in zip(ordered, counts, strict=True)
                for copy in range(count)
            ]
            assert np.nanmean(row) == pytest.approx(getattr(evaluate_coco(repeated, NAMES), name))


# masks


def ellipses(boxes: np.ndarray, rng: np.random.Generator) -> tuple[RLE, ...]:
    """Masks of 400 x 400 pixels that fill ``boxes`` more or less."""
    y, x = np.mgrid[:400, :400] + 0.5
    rles = []
    for x1, y1, x2, y2 in boxes:
        place = np.array([(x - (x1 + x2) / 2) / (x2 - x1), (y - (y1 + y2) / 2) / (y2 - y1)])
        rles.append(encode((place**2).sum(axis=0) < rng.uniform(0.15, 0.3)))
    return tuple(rles)


def masked_records(seed: int) -> list[Record]:
    rng, records = np.random.default_rng(seed), random_records(seed)
    return [
        replace(record, gt_masks=ellipses(record.gt_boxes, rng), masks=ellipses(record.boxes, rng))
        for record in records[1:7] + records[-3:]
    ]


def test_known_mask_value() -> None:
    # Boxes that agree; the first mask is half of its object's, the second one is all of it.
    left, whole = np.zeros((60, 80), np.bool_), np.zeros((60, 80), np.bool_)
    left[10:50, 10:30] = True
    whole[10:50, 10:50] = True
    record = Record(
        image_id=5,
        file_name="5.jpg",
        size=(60, 80),
        gt_boxes=np.array([[10, 10, 50, 50]], np.float32),
        gt_labels=np.zeros(1, np.int64),
        gt_ignore=np.zeros(1, np.bool_),
        gt_areas=np.full(1, 1600, np.float32),
        boxes=np.array([[10, 10, 50, 50]], np.float32),
        scores=np.array([0.9], np.float32),
        labels=np.zeros(1, np.int64),
        gt_masks=(encode(whole),),
        masks=(encode(left),),
    )
    boxes = evaluate_coco([record], ["cat"])
    masks = evaluate_coco([record], ["cat"], iou_type="segm")
    best = evaluate_coco([perfect(record)], ["cat"], iou_type="segm")
    assert numbers(boxes)[:3] == pytest.approx([1, 1, 1])  # AP, AP50, AP75
    assert numbers(masks)[:3] == pytest.approx([0.1, 1, 0])  # an IoU of 0.5 is a hit at 0.5 only
    assert numbers(best)[:3] == pytest.approx([1, 1, 1])
    assert masks.APm == masks.AP  # 32 * 32 < 1600 < 96 * 96


def test_mask_ap_equals_pycocotools_on_files(tmp_path: Path) -> None:
    records = masked_records(seed=3)
    category_ids = [2, 5, 90, 91]
    annotations = [
        {
            "id": number,
            "image_id": record.image_id,
            "category_id": category_ids[record.gt_labels[row]],
            "bbox": [0, 0, 1, 1],
            "area": float(record.gt_areas[row]),
            "iscrowd": int(record.gt_ignore[row]),
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        }
        for number, (record, row, rle) in enumerate(
            ((record, row, rle) for record in records for row, rle in enumerate(record.gt_masks or ())), start=1
        )
    ]
    truth = {
        "info": {},
        "images": [{"id": record.image_id, "height": 400, "width": 400} for record in records],
        "categories": [{"id": i, "name": name} for i, name in zip(category_ids, NAMES, strict=True)],
        "annotations": annotations,
    }
    results = json.loads(json.dumps(coco_results(records, category_ids)))
    for result in results:
        del result["bbox"]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    coco = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(coco, coco.loadRes(results), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    result = evaluate_coco(records, NAMES, iou_type="segm")
    ours = [getattr(result, name) for name in COCO_NUMBERS]
    np.testing.assert_allclose(ours, evaluation.stats, rtol=0, atol=1e-9)
    assert 0 < result.AP < 1


def test_an_object_of_unknown_mask_is_neither_hit_nor_miss() -> None:
    found = []
    for record in map(perfect, masked_records(seed=1)):
        assert record.masks is not None
        unknown = tuple(empty_rle(record.size) if row == 0 else rle for row, rle in enumerate(record.masks))
        rest = {name: getattr(record, name)[1:] for name in ("boxes", "scores", "labels", "masks")}
        found.append(replace(record, gt_masks=unknown, **rest))
    assert numbers(evaluate_coco(found, NAMES, iou_type="segm"))[0] == pytest.approx(1)
    assert evaluate_coco(found, NAMES).AP < 1  # the objects count for boxes, and were not found


def test_records_without_masks_are_named() -> None:
    (record, *_) = masked_records(seed=0)
    for name, whose in (("gt_masks", "objects"), ("masks", "detections")):
        with pytest.raises(ValueError, match=rf"{record.file_name}: no masks of its {whose}, expected them"):
            evaluate_coco([replace(record, **{name: None})], NAMES, iou_type="segm")
    with pytest.raises(ValueError, match="rows of unequal length"):
        replace(record, masks=())
    assert np.isnan(evaluate_coco([], NAMES, iou_type="segm").AP)


def test_results_have_masks_as_text() -> None:
    record = masked_records(seed=0)[0]
    assert record.masks
    results = coco_results([record], [2, 5, 90, 91])
    assert results[0]["segmentation"] == {"size": [400, 400], "counts": record.masks[0]["counts"].decode()}
    assert all("segmentation" in result for result in json.loads(json.dumps(results)))
    assert "segmentation" not in coco_results([replace(record, masks=None)], [2, 5, 90, 91])[0]

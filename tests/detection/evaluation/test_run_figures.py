"""Mirrors detection/evaluation/run_figures.py: every figure is that of a test, also on any choice of images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from detection.evaluation.candidates import IouType
from detection.evaluation.coco import COCO_NUMBERS, evaluate_coco
from detection.evaluation.inference import compare_samples
from detection.evaluation.jackknife import Sample, jackknife
from detection.evaluation.record import Record
from detection.evaluation.run_figures import run_statistic
from detection.evaluation.tide import ERROR_TYPES
from detection.evaluation.voc import evaluate_voc
from detection.masks import RLE, encode

NAMES = ["cat", "dog", "cow", "unseen"]


def random_record(rng: np.random.Generator, image_id: int, *, wrong: float = 0.1, masks: bool = False) -> Record:
    """Up to 6 objects of three classes, found with a share of ``wrong`` classes, and two false alarms."""
    count = int(rng.integers(1, 7))
    corner, size = rng.integers(0, 60, (count, 2)), rng.integers(12, 130, (count, 2))
    gt_boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    gt_labels = rng.integers(0, 3, count)
    shift = rng.normal(0, 0.08, (count, 4)) * np.tile(size, 2)
    false = np.tile(np.array([[0.0, 0.0, 15.0, 15.0]], np.float32), (2, 1))
    boxes = np.concatenate([(gt_boxes + shift).astype(np.float32), false])
    named = np.where(rng.random(count) < wrong, (gt_labels + 1) % 3, gt_labels)
    return Record(
        image_id=image_id,
        file_name=f"{image_id}.jpg",
        size=(200, 200),
        gt_boxes=gt_boxes,
        gt_labels=gt_labels,
        gt_ignore=rng.random(count) < 0.1,
        gt_areas=size.prod(axis=1).astype(np.float32),
        boxes=boxes,
        scores=rng.random(count + 2, np.float32),
        labels=np.append(named, rng.integers(0, 4, 2)),
        gt_masks=tuple(map(mask, gt_boxes)) if masks else None,
        masks=tuple(map(mask, boxes)) if masks else None,
    )


def mask(box: np.ndarray) -> RLE:
    """The pixels inside a box."""
    x1, y1, x2, y2 = np.clip(box.round().astype(int), 0, 200).tolist()
    pixels = np.zeros((200, 200), np.uint8)
    pixels[y1:y2, x1:x2] = 1
    return encode(pixels)


def random_records(seed: int, count: int = 12, *, wrong: float = 0.1, masks: bool = False) -> list[Record]:
    rng = np.random.default_rng(seed)
    return [random_record(rng, 7 * i, wrong=wrong, masks=masks) for i in range(1, count + 1)]


def figures(records: list[Record], **options: str | bool) -> dict[str, float]:
    statistic = run_statistic(records, NAMES, **options)  # type: ignore[arg-type]
    found = statistic.compute(np.ones((1, len(records)), np.int32))[0]
    return dict(zip(statistic.names, found.tolist(), strict=True))


def sections_of(records: list[Record]) -> tuple[IouType, ...]:
    return ("bbox", "segm", "boundary") if records[0].masks is not None else ("bbox",)


def expected_of(records: list[Record]) -> dict[str, float]:
    found = {}
    for section in sections_of(records):
        coco = evaluate_coco(records, NAMES, iou_type=section)
        found |= {f"{section}.{name}": getattr(coco, name) for name in COCO_NUMBERS}
        found |= {f"{section}.per_class.{name}.AP": ap for name, ap in zip(NAMES, coco.class_ap, strict=True)}
        found |= {f"{section}.per_class.{name}.AP75": ap for name, ap in zip(NAMES, coco.class_ap75, strict=True)}
    voc = evaluate_voc(records, NAMES)
    return found | {"voc.mAP_11point": voc.mean_ap_11point, "voc.mAP_area": voc.mean_ap_area}


@pytest.mark.parametrize("masks", [False, True])
def test_figures_are_those_of_a_test(masks: bool) -> None:
    records = random_records(0, masks=masks)
    found, expected = figures(records, boundary=True), expected_of(records)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-12, nan_ok=True), key
    assert found.keys() - expected.keys() == {
        "voc.mAP",
        "tide.AP50",
        *(f"tide.{name}" for name in ERROR_TYPES),
        *(f"{section}.per_class.{name}.AP50" for section in sections_of(records) for name in NAMES),
    }
    assert not any(key.startswith("boundary") for key in figures(records))
    assert found["tide.AP50"] == pytest.approx(found["bbox.AP50"])


def test_images_that_are_left_out_are_as_if_they_had_not_been_tested() -> None:
    records = random_records(1)
    statistic = run_statistic(records, NAMES)
    weights = np.ones((len(records), len(records)), np.int32) - np.eye(len(records), dtype=np.int32)
    found = statistic.compute(weights)
    for row in (0, 5):
        expected = expected_of(records[:row] + records[row + 1 :])
        for key, value in expected.items():
            column = statistic.names.index(key)
            assert found[row, column] == pytest.approx(value, abs=1e-12, nan_ok=True), key


def test_images_with_objects_are_counted_for_each_figure() -> None:
    records = random_records(0)
    statistic = run_statistic(records, NAMES)
    images = dict(zip(statistic.names, statistic.images.tolist(), strict=True))
    counted = [(record.gt_labels[~record.gt_ignore], record.gt_areas[~record.gt_ignore]) for record in records]
    assert images["bbox.AP"] == sum(len(labels) > 0 for labels, _ in counted)
    assert images["bbox.per_class.dog.AP"] == sum((labels == 1).any() for labels, _ in counted)
    assert images["bbox.per_class.unseen.AP50"] == 0
    assert images["bbox.APl"] == images["bbox.ARl"] == sum((areas > 96**2).any() for _, areas in counted)
    assert images["bbox.APs"] < images["bbox.AP"]


def test_voc_map_has_the_definition_that_is_asked_for() -> None:
    records = random_records(0)
    imagenet = evaluate_voc(records, NAMES, imagenet=True)
    assert figures(records, voc_metric="11point")["voc.mAP"] == figures(records)["voc.mAP_11point"]
    assert figures(records)["voc.mAP"] == figures(records)["voc.mAP_area"]
    assert figures(records, voc_metric="imagenet")["voc.mAP"] == pytest.approx(imagenet.mean_ap_area)


def samples(count: int, *, wrong: float, seed: int) -> list[Sample]:
    """Seeds of a method on the same 60 images, whose detections differ in a share of wrong classes of cats."""
    truth = random_records(0, 60, wrong=0.0)
    runs = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        records = [_confuse(record, wrong, rng) for record in truth]
        runs.append(jackknife(run_statistic(records, NAMES), len(records)))
    return runs


def _confuse(record: Record, wrong: float, rng: np.random.Generator) -> Record:
    """``record`` with scores anew, and with a share of its cats called dogs."""
    labels = np.where((record.labels == 0) & (rng.random(len(record.labels)) < wrong), 1, record.labels)
    return replace(record, labels=labels, scores=rng.random(len(labels), np.float32))


def test_a_gain_is_proven_and_located_by_type_and_class() -> None:
    (pair,) = compare_samples({"a": samples(4, wrong=0.4, seed=1), "b": samples(4, wrong=0.02, seed=2)}).pairs
    assert pair.methods is not None
    assert pair.methods["bbox.AP"].proven
    assert pair.methods["bbox.AP"].value > 0.05
    assert pair.methods["bbox.per_class.cat.AP"].proven
    assert not pair.methods["bbox.per_class.cow.AP"].proven
    assert pair.methods["tide.Cls"].proven
    assert pair.methods["tide.Cls"].value < 0
    assert not pair.methods["tide.Dupe"].proven


def test_the_same_method_twice_is_not_told_apart() -> None:
    (pair,) = compare_samples({"a": samples(4, wrong=0.2, seed=1), "b": samples(4, wrong=0.2, seed=2)}).pairs
    assert pair.methods is not None
    assert not any(claim.proven for claim in pair.methods.values())

"""Mirrors detection/evaluation/run_figures.py: every figure is that of a test, also on any choice of images."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from detection.evaluation.coco import COCO_NUMBERS, evaluate_coco
from detection.evaluation.inference import compare_samples
from detection.evaluation.jackknife import Sample, jackknife
from detection.evaluation.record import Record
from detection.evaluation.run_figures import run_statistic
from detection.evaluation.tide import ERROR_TYPES
from detection.evaluation.voc import evaluate_voc

NAMES = ["cat", "dog", "cow", "unseen"]


def figures(records: list[Record], **options: Any) -> dict[str, float]:
    statistic = run_statistic(records, NAMES, **options)
    found = statistic.compute(np.ones((1, len(records)), np.int32))[0]
    return dict(zip(statistic.names, found.tolist(), strict=True))


def expected_of(records: list[Record]) -> dict[str, float]:
    found = {}
    for section in ("bbox",) if records[0].masks is None else ("bbox", "segm", "boundary"):
        coco = evaluate_coco(records, NAMES, iou_type=section)
        found |= {f"{section}.{name}": getattr(coco, name) for name in COCO_NUMBERS}
        for name, of_classes in (("AP", coco.class_ap), ("AP50", coco.class_ap50), ("AP75", coco.class_ap75)):
            found |= {f"{section}.per_class.{n}.{name}": ap for n, ap in zip(NAMES, of_classes, strict=True)}
    voc = evaluate_voc(records, NAMES)
    return found | {"voc.mAP_11point": voc.mean_ap_11point, "voc.mAP_area": voc.mean_ap_area}


@pytest.mark.parametrize("masks", [False, True])
def test_figures_are_those_of_a_test(masks: bool, random_records) -> None:
    records = random_records(0, 8, masks=masks)
    found, expected = figures(records, boundary=True), expected_of(records)
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert found.keys() - expected.keys() == {"voc.mAP", "tide.AP50", *(f"tide.{name}" for name in ERROR_TYPES)}
    assert not any(key.startswith("boundary") for key in figures(records))
    assert found["tide.AP50"] == pytest.approx(found["bbox.AP50"])


def test_weighted_images_give_the_figures_of_the_repeated_ones(random_records, repeated) -> None:
    """Also where images are left out, or a class; those of VOC by all three definitions."""
    records = random_records(1, each=3, wrong=0.4)
    weights = np.random.default_rng(0).integers(0, 4, (4, len(records)))
    weights[0] = 1
    weights[0, 5] = 0
    for rule in ("11point", "area", "imagenet"):
        statistic = run_statistic(records, NAMES, voc_metric=rule)
        for row, counts in zip(statistic.compute(weights), weights.tolist(), strict=True):
            expected = figures(repeated(records, counts), voc_metric=rule)
            values = dict(zip(statistic.names, row.tolist(), strict=True))
            assert values == pytest.approx(expected, abs=1e-12, nan_ok=True)
            assert all(0 < values[key] < 1 for key in ("bbox.AP", "bbox.AR1", "bbox.AR100", "voc.mAP", "tide.Cls"))


def test_images_with_objects_are_counted_for_each_figure(random_records) -> None:
    records = random_records(0)
    statistic = run_statistic(records, NAMES)
    images = dict(zip(statistic.names, statistic.images.tolist(), strict=True))
    counted = [(record.gt_labels[~record.gt_ignore], record.gt_areas[~record.gt_ignore]) for record in records]
    assert images["bbox.AP"] == sum(len(labels) > 0 for labels, _ in counted)
    assert images["bbox.per_class.dog.AP"] == sum((labels == 1).any() for labels, _ in counted)
    assert images["bbox.per_class.unseen.AP50"] == 0
    assert images["bbox.APl"] == images["bbox.ARl"] == sum((areas > 96**2).any() for _, areas in counted)
    assert images["bbox.APs"] < images["bbox.AP"]


def test_voc_map_has_the_definition_that_is_asked_for(random_records) -> None:
    records = random_records(0)
    found = {metric: figures(records, voc_metric=metric)["voc.mAP"] for metric in ("11point", "area", "imagenet")}
    voc, imagenet = evaluate_voc(records, NAMES), evaluate_voc(records, NAMES, imagenet=True)
    expected = {"11point": voc.mean_ap_11point, "area": voc.mean_ap_area, "imagenet": imagenet.mean_ap_area}
    assert found == pytest.approx(expected)


@pytest.fixture
def samples(random_records):
    """Seeds of a method on the same 60 images, whose scores and a share of cats called dogs differ."""

    def train(count: int, *, wrong: float, seed: int) -> list[Sample]:
        truth, runs = random_records(0, 60, each=1, wrong=0.0), []
        for number in range(count):
            rng, records = np.random.default_rng((seed, number)), []
            for one in truth:
                labels = np.where((one.labels == 0) & (rng.random(len(one.labels)) < wrong), 1, one.labels)
                records.append(replace(one, labels=labels, scores=rng.random(len(labels), np.float32)))
            runs.append(jackknife(run_statistic(records, NAMES), len(records)))
        return runs

    return train


def test_a_gain_is_proven_and_located_by_type_and_class_and_none_is_not(samples) -> None:
    worse = samples(4, wrong=0.4, seed=1)
    gained = compare_samples({"a": worse, "b": samples(4, wrong=0.02, seed=2)}).pairs[0].methods
    assert gained is not None
    assert gained["bbox.AP"].value > 0.05
    assert gained["tide.Cls"].value < 0
    assert all(gained[key].proven for key in ("bbox.AP", "bbox.per_class.cat.AP", "tide.Cls"))
    assert not any(gained[key].proven for key in ("bbox.per_class.cow.AP", "tide.Dupe"))
    same = compare_samples({"a": worse, "b": samples(4, wrong=0.4, seed=3)}).pairs[0].methods
    assert same is not None
    assert not any(claim.proven for claim in same.values())

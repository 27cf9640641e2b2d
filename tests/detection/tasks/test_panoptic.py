"""A panoptic network through the tasks: tested, its files judged again, and asked for one image."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detection.build import build_detector
from detection.config.detection import DetectionConfig, MaskConfig, PanopticConfig, SemanticConfig
from detection.data.digits import CLASSES, STUFF
from detection.data.panoptic_files import segment_numbers
from detection.engine.checkpoint import Checkpoint
from detection.predictor import Predictor
from detection.report.evaluation import write_map_evaluation
from detection.tasks.test import read_records, run_test


@pytest.fixture(scope="module")
def checkpoint(tiny, lab) -> Checkpoint[DetectionConfig]:
    """Of a network that never learned anything, all of whose objects count."""
    parts = {
        "mask": MaskConfig(convs=1, channels=8),
        "semantic": SemanticConfig(channels=32, loss_weight=0.5),
        "panoptic": PanopticConfig(stuff=STUFF, instance_score=0.0, stuff_area=1),
    }
    keys = {"data__test": ("digits_panoptic:test",), "data__train": (), "box__pool": "roi_align"}
    keys |= {"test__score_threshold": 0.0, "test__max_detections": 5}
    config = lab.changed(tiny, architecture="panoptic_fpn", **parts, **keys)
    torch.manual_seed(0)
    weights = build_detector(config, len(CLASSES)).state_dict()
    return Checkpoint(Path("trained.safetensors"), weights, config, CLASSES, 0)


@pytest.fixture(scope="module")
def tested(checkpoint, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    return run, run_test(checkpoint.config, checkpoint, run, say=lambda line: None)


def test_boxes_masks_pixels_and_segments_are_judged(checkpoint, tested, tmp_path) -> None:
    run, result = tested
    assert {"bbox", "segm", "semseg", "panoptic"} <= result.keys()
    assert {"PQ", "SQ", "RQ", "PQ_things", "PQ_stuff"} <= result["panoptic"].keys()
    assert result["panoptic"]["per_class"].keys() == {*CLASSES, *STUFF}
    _, records = read_records(run, say=lambda line: None)
    assert all(record.panoptic_counts is not None and record.panoptic_counts.any() for record in records)
    assert all(record.masks is not None for record in records)
    with pytest.raises(ValueError, match="panoptic"):  # windows and ensembles are refused
        run_test(checkpoint.config, checkpoint, tmp_path, ensemble=[checkpoint], say=lambda line: None)
    with pytest.raises(ValueError, match=r"test\.slice"):
        replace(checkpoint.config, test=replace(checkpoint.config.test, slice=100))


def test_files_are_coco_s_and_give_the_same_figures_again(digits, tested, tmp_path) -> None:
    run, result = tested
    content = json.loads((run / "panoptic.json").read_text())
    assert [category["isthing"] for category in content["categories"]] == [1] * 10 + [0, 0]
    for annotation in content["annotations"]:
        ids = segment_numbers(np.asarray(Image.open(run / "panoptic" / annotation["file_name"])))
        areas = {info["id"]: info["area"] for info in annotation["segments_info"]}
        assert areas == {number: int((ids == number).sum()) for number in np.unique(ids).tolist() if number}
    files = {"own": [run / "panoptic.json"]}
    found = write_map_evaluation("digits_panoptic:test", files, tmp_path, root=digits, say=lambda line: None)
    assert str(result["panoptic"]["PQ"])[:8] in json.dumps(found.numbers)


def test_a_prediction_has_the_segments_that_the_test_wrote(digits, checkpoint, tested) -> None:
    predictor = Predictor.of(checkpoint, checkpoint.config)
    found = predictor(digits / "digits/coco/test/000007.jpg")
    assert found.segments is not None
    ids = segment_numbers(np.asarray(Image.open(tested[0] / "panoptic" / "000007.png")))
    assert (found.segments.ids == ids).all()
    assert found.label_names == (*CLASSES, *STUFF)
    assert found.plot().shape == found.image.shape

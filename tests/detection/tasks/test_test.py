"""Mirrors detection/tasks/test.py: what a test refuses; whole tests are in test_train.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detection.build import build_detector
from detection.config.detection import (
    AnchorConfig,
    BoxConfig,
    DetectionConfig,
    DetectorBackboneConfig,
    DetectorDataConfig,
    PostprocessConfig,
    RPNConfig,
)
from detection.data.digits import CLASSES, write_digits
from detection.data.loader import load_index
from detection.engine.checkpoint import Checkpoint
from detection.engine.device import choose_device
from detection.engine.evaluate import evaluate
from detection.evaluation.coco import coco_results
from detection.evaluation.metrics import figures
from detection.predictor import Predictor
from detection.tasks.test import read_records, run_test


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("root"), num_train=1, num_test=1).parent


@pytest.fixture(scope="module")
def config(root: Path) -> DetectionConfig:
    return DetectionConfig(
        backbone=DetectorBackboneConfig(name="resnet18", norm="gn", roi_size=2),
        anchors=AnchorConfig(sizes=(16.0, 32.0)),
        rpn=RPNConfig(channels=16, pre_nms_test=16, post_nms_test=4, min_size=2.0),
        data=DetectorDataConfig(test=("digits:test",), root=str(root), shorter_side=48, longer_side=64, workers=0),
        device="cpu",
    )


@pytest.fixture(scope="module")
def checkpoint(config: DetectionConfig) -> Checkpoint:
    return untrained(config)


def untrained(config: DetectionConfig) -> Checkpoint:
    """What a checkpoint of a detector that never learned anything reads as."""
    torch.manual_seed(0)
    weights = build_detector(config, len(CLASSES)).state_dict()
    return Checkpoint(Path("trained.safetensors"), weights, config, CLASSES, 0)


def with_key(config: DetectionConfig, key: str, value: Any) -> DetectionConfig:
    section, name = key.split(".")
    return replace(config, **{section: replace(getattr(config, section), **{name: value})})


OTHERS = [
    ("anchors.sizes", (16.0, 64.0), (16.0, 32.0)),
    ("anchors.ratios", (2.0, 1.0, 0.5), (0.5, 1.0, 2.0)),
    ("anchors.offset", 0.0, 0.5),
    ("box.pool", "roi_align", "roi_pool"),
    ("box.sampling_ratio", 1, 2),
    ("box.coder_weights", (1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)),
    ("backbone.roi_size", 4, 2),
    ("backbone.tail_stride", 2, None),
    ("backbone.stochastic_depth", 0.5, None),
    ("backbone.weights_source", "caffe", "torchvision"),
    ("mask.geometry", "torchvision", "exact"),
]


class TestKeysThatChangeNoShape:
    """The weights would load, and every figure would be wrong without a word."""

    @pytest.mark.parametrize(("key", "given", "trained"), OTHERS, ids=[key for key, _, _ in OTHERS])
    def test_other_value_is_refused_with_key_and_both_values(
        self, config: DetectionConfig, checkpoint: Checkpoint, tmp_path: Path, key: str, given: Any, trained: Any
    ) -> None:
        with pytest.raises(ValueError, match=rf": {key} is ") as error:
            run_test(with_key(config, key, given), checkpoint, tmp_path / "out", say=lambda text: None)
        shown = [list(value) if isinstance(value, tuple) else value for value in (given, trained)]
        for part in (f"is {shown[0]!r} here", f"was {shown[1]!r}", "trained.safetensors"):
            assert part in str(error.value)
        assert not (tmp_path / "out").exists()

    def test_other_place_of_the_stride_is_refused(self, config: DetectionConfig, tmp_path: Path) -> None:
        # Only bottleneck blocks have one.
        old, new = (
            replace(config, backbone=replace(config.backbone, name="resnet50", stride_in=place))
            for place in ("1x1", "3x3")
        )
        with pytest.raises(ValueError, match=r"backbone\.stride_in is '3x3' here.*was '1x1'"):
            run_test(new, untrained(old), tmp_path, say=lambda text: None)

    def test_equal_values_pass(self, config: DetectionConfig, checkpoint: Checkpoint, tmp_path: Path) -> None:
        result = run_test(config, checkpoint, tmp_path, say=lambda text: None)
        assert result["images"] == 1

    def test_what_only_training_or_only_the_test_reads_may_differ(
        self, config: DetectionConfig, checkpoint: Checkpoint, tmp_path: Path
    ) -> None:
        other = replace(
            config,
            backbone=replace(config.backbone, freeze_at=0),
            rpn=replace(config.rpn, post_nms_test=8, nms_iou=0.5),
            box=BoxConfig(samples_per_image=8),
            test=replace(config.test, score_threshold=0.2),
            solver=replace(config.solver, iterations=1),
        )
        assert run_test(other, checkpoint, tmp_path, say=lambda text: None)["images"] == 1

    def test_members_of_an_ensemble_answer_to_their_own_config(
        self, config: DetectionConfig, checkpoint: Checkpoint, tmp_path: Path
    ) -> None:
        member = replace(checkpoint, config=with_key(config, "anchors.sizes", (24.0, 48.0)))
        result = run_test(config, checkpoint, tmp_path, ensemble=[member], say=lambda text: None)
        assert result["images"] == 1


class TestChooseDevice:
    """The device of a config on machines with and without CUDA."""

    @pytest.mark.parametrize(
        ("device", "available", "expected"),
        [
            ("auto", True, "cuda"),
            ("auto", False, "cpu"),
            ("cpu", True, "cpu"),
            ("cpu", False, "cpu"),
            ("cuda", True, "cuda"),
        ],
    )
    def test_by_hand(self, monkeypatch: pytest.MonkeyPatch, device: Any, available: bool, expected: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        assert choose_device(device).type == expected

    def test_missing_cuda_is_refused_with_the_way_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ValueError, match=r"no CUDA device; set device=auto or device=cpu"):
            choose_device("cuda")


def test_no_data_set_is_named_by_its_key(config: DetectionConfig) -> None:
    with pytest.raises(ValueError, match=r"data\.test is empty; give a list of card:split"):
        load_index(config.data, (), key="data.test", say=print)


def test_no_test_set_is_refused(config: DetectionConfig, checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.test is empty"):
        run_test(replace(config, data=replace(config.data, test=())), checkpoint, tmp_path)


def test_slices_give_detections_in_pixels_of_the_whole_image(
    config: DetectionConfig, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    sliced = replace(config, test=PostprocessConfig(score_threshold=0.0, slice=64, max_detections=3))
    run_test(sliced, checkpoint, tmp_path, say=lambda text: None)
    index, (record,) = load_index(config.data, config.data.test, key="data.test", say=print), read_records(tmp_path)[1]
    height, width = index.sizes[0].tolist()
    assert len(record.boxes) > 3  # each window has its own
    assert record.boxes[:, 2:].max(axis=0).tolist() > [width / 2, height / 2]
    assert (record.boxes <= [width, height, width, height]).all()
    own = Predictor.of(checkpoint, sliced)(index.image(0), min_score=0)
    np.testing.assert_allclose(np.sort(own.scores), np.sort(record.scores), atol=1e-5)
    found = sorted(map(tuple, np.round(record.boxes, 1).tolist()))
    assert found == sorted(map(tuple, np.round(own.boxes.numpy(), 1).tolist()))


def test_without_ground_truth_there_are_detections_and_no_figure(
    config: DetectionConfig, root: Path, tmp_path: Path
) -> None:
    masked = replace(config, architecture="mask_rcnn", test=replace(config.test, score_threshold=0.0))
    content = json.loads((root / "digits/coco/annotations/instances_test.json").read_text())
    (tmp_path / "images.json").write_text(json.dumps({key: content[key] for key in ("images", "categories")}))
    card, split = tmp_path / "mine.yaml", {"annotations": str(tmp_path / "images.json"), "images": "test"}
    values = {"format": "coco", "root": "digits/coco", "classes": list(CLASSES), "splits": {"test": split}}
    card.write_text(json.dumps(values))
    lines: list[str] = []
    unknown = with_key(masked, "data.test", (f"{card}:test",))
    result = run_test(unknown, untrained(masked), tmp_path / "out", say=lines.append)
    found = {key: value for key, value in figures(result).items() if key.startswith(("bbox.", "segm.", "voc."))}
    assert set(found.values()) == {None}
    assert {"bbox.AP", "segm.AP", "voc.mAP"} <= found.keys()
    assert json.loads((tmp_path / "out" / "detections.json").read_text())
    (line,) = [line for line in lines if "no figure" in line]
    for part in ("data.test", str(tmp_path / "images.json"), "'annotations'"):
        assert part in line


class TestReadRecords:
    """The run is written by ``run_test`` itself."""

    @pytest.fixture
    def run(self, config: DetectionConfig, checkpoint: Checkpoint, tmp_path: Path) -> Path:
        tested = replace(config, test=replace(config.test, score_threshold=0.0))
        run_test(tested, checkpoint, tmp_path)
        return tmp_path

    def test_a_run_keeps_the_config_of_its_training(
        self, config: DetectionConfig, checkpoint: Checkpoint, tmp_path: Path
    ) -> None:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "config.yaml").write_text("seed: 7\n")
        run_test(config, checkpoint, tmp_path)
        assert (tmp_path / "config.yaml").read_text() == "seed: 7\n"

    def test_gives_back_the_detections_and_the_same_result(self, run: Path) -> None:
        index, records = read_records(run)
        detections = json.loads((run / "detections.json").read_text())
        assert len(detections) > 0
        assert coco_results(records, index.category_ids) == detections
        result = json.loads((run / "result.json").read_text())
        assert evaluate(records, index.class_names, "area")["bbox"] == result["bbox"]

    def test_only_the_images_that_were_tested(self, run: Path) -> None:
        result = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps(result | {"images": 0}))
        (run / "detections.json").write_text("[]")
        assert read_records(run)[1] == []

    def test_detection_of_an_unknown_image_is_refused(self, run: Path) -> None:
        (run / "detections.json").write_text('[{"image_id": 99, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]')
        with pytest.raises(ValueError, match=r"entry 0: image_id is 99, .* digits:test; has the data set"):
            read_records(run)

    def test_missing_detections_are_refused_with_the_way_out(self, run: Path) -> None:
        (run / "detections.json").unlink()
        with pytest.raises(ValueError, match=r"detections\.json can't be read: .*: resdet test writes it"):
            read_records(run)


class TestSubmission:
    def test_of_coco_holds_the_same_detections(
        self, tmp_path: Path, config: DetectionConfig, checkpoint: Checkpoint
    ) -> None:
        run_test(with_key(config, "test.score_threshold", 0.0), checkpoint, tmp_path, submit=True)
        (file,) = (tmp_path / "submission").rglob("*.json")
        assert file.parent.name == "bbox"
        assert json.loads(file.read_text()) == json.loads((tmp_path / "detections.json").read_text()) != []

    def test_of_voc_has_a_file_for_each_class(
        self, tmp_path: Path, config: DetectionConfig, checkpoint: Checkpoint
    ) -> None:
        data = replace(config.data, test=("digits_voc:test",))
        run_test(replace(config, data=data), checkpoint, tmp_path, submit=True)
        main = tmp_path / "submission" / "results" / "voc" / "Main"
        assert {file.name for file in main.iterdir()} == {f"comp4_det_test_{name}.txt" for name in CLASSES}

    @pytest.mark.parametrize("change", [{"test": ("digits:test", "digits:train")}, {"limit": 1}])
    def test_is_of_one_whole_split(
        self, tmp_path: Path, config: DetectionConfig, checkpoint: Checkpoint, change: dict[str, Any]
    ) -> None:
        with pytest.raises(ValueError, match=r"data\.test.*data\.limit"):
            run_test(replace(config, data=replace(config.data, **change)), checkpoint, tmp_path, submit=True)
        assert not list(tmp_path.iterdir())

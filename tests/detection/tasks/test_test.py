import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detection.build import build_detector
from detection.config.detection import DetectionConfig, DetectorBackboneConfig
from detection.data.corruptions import CORRUPTIONS
from detection.data.digits import CLASSES
from detection.engine.checkpoint import Checkpoint, read_checkpoint
from detection.engine.device import choose_device
from detection.engine.evaluate import evaluate
from detection.evaluation.coco import coco_results
from detection.evaluation.metrics import figures
from detection.predictor import Predictor
from detection.report.robustness import write_robustness
from detection.tasks.robustness import corrupted_files, run_corrupted
from detection.tasks.test import read_records, run_test
from detection.tasks.train import run_training


def untrained(config: DetectionConfig, class_names: tuple[str, ...] = CLASSES) -> Checkpoint:
    """Reads as the checkpoint of a detector that never learned anything."""
    torch.manual_seed(7)
    weights = build_detector(config, len(class_names)).state_dict()
    return Checkpoint(Path("other.safetensors"), weights, config, class_names, 0)


def judge(config: DetectionConfig, checkpoint: Any, output: Path, **options: Any) -> dict[str, Any]:
    options.setdefault("say", lambda text: None)
    return run_test(config, checkpoint, output, **options)


def detections(output: Path) -> list[dict[str, Any]]:
    return json.loads((output / "detections.json").read_text())


@pytest.fixture
def checkpoint(finished) -> Checkpoint:
    return read_checkpoint(finished.path)


@pytest.fixture
def classes_card(digits, write_card):
    """Writes a card of the test images whose classes are called otherwise, or whose file is another."""

    def write(classes: Any, file: str = "annotations/instances_test.json") -> str:
        splits = {"test": {"annotations": file, "images": "test"}}
        return write_card("coco", root=str(digits / "digits" / "coco"), classes=[*classes], splits=splits) + ":test"

    return write


def test_figures_are_those_of_the_training_and_of_the_files(tiny, finished, checkpoint, lab, tmp_path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text("seed: 7\n")
    result, expected = judge(tiny, checkpoint, tmp_path), finished.result
    assert (result["bbox"], result["voc"]) == (expected["bbox"], expected["voc"])
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert (tmp_path / "detections.json").read_bytes() == (finished.path / "detections.json").read_bytes()
    assert not (tmp_path / "pictures").exists()
    assert (tmp_path / "config.yaml").read_text() == "seed: 7\n"  # a run keeps the config of its training
    voc = judge(lab.changed(tiny, data__test=("digits_voc:test",)), checkpoint, tmp_path / "voc")["voc"]
    assert voc["per_class"] == pytest.approx(expected["voc"]["per_class"])


def test_limit_and_pictures_also_without_a_detection(tiny, checkpoint, lab, tmp_path, said) -> None:
    silent = lab.changed(tiny, test__score_threshold=1.0)
    result = judge(silent, checkpoint, tmp_path, limit=1, pictures=5, say=said.append)
    assert (result["images"], result["bbox"]["AP"], detections(tmp_path)) == (1, 0, [])
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["00000_000007.jpg"]
    assert said[-1].startswith("1 images, ")


def test_slices_give_detections_in_pixels_of_the_whole_image(tiny, checkpoint, lab, tmp_path) -> None:
    sliced = lab.changed(tiny, test__score_threshold=0.0, test__slice=64, test__max_detections=3)
    judge(sliced, checkpoint, tmp_path)
    index, (record, _) = read_records(tmp_path)
    height, width = index.sizes[0].tolist()
    assert len(record.boxes) > 3  # each window has its own
    assert record.boxes[:, 2:].max(axis=0).tolist() > [width / 2, height / 2]
    assert (record.boxes <= [width, height, width, height]).all()
    own = Predictor.of(checkpoint, sliced)(index.image(0), min_score=0)
    np.testing.assert_allclose(np.sort(own.scores), np.sort(record.scores), atol=1e-5)
    found = sorted(map(tuple, np.round(record.boxes, 1).tolist()))
    assert found == sorted(map(tuple, np.round(own.boxes.numpy(), 1).tolist()))


def test_without_ground_truth_there_are_detections_and_no_figure(tiny, digits, lab, classes_card, tmp_path) -> None:
    masked = lab.changed(tiny, architecture="mask_rcnn", test__score_threshold=0.0, test__max_detections=2)
    content = json.loads((digits / "digits/coco/annotations/instances_test.json").read_text())
    (tmp_path / "images.json").write_text(json.dumps({key: content[key] for key in ("images", "categories")}))
    lines = list[str]()
    unknown = lab.changed(masked, data__test=(classes_card(CLASSES, str(tmp_path / "images.json")),))
    result = judge(unknown, untrained(masked), tmp_path / "out", say=lines.append)
    found = {key: value for key, value in figures(result).items() if key.startswith(("bbox.", "segm.", "voc."))}
    assert set(found.values()) == {None}
    assert {"bbox.AP", "segm.AP", "voc.mAP"} <= found.keys()
    assert detections(tmp_path / "out")
    (line,) = [line for line in lines if "no figure" in line]
    for part in ("data.test", str(tmp_path / "images.json"), "'annotations'"):
        assert part in line


METHODS: dict[str, Any] = {"refine": True, "vote_iou": 0.5, "scales": (48, 96), "flip": True}


class TestMethods:
    def test_each_key_changes_the_detections(self, tiny, checkpoint, finished, lab, tmp_path) -> None:
        plain = detections(finished.path)
        for name, value in METHODS.items():
            judge(lab.changed(tiny, **{f"test__{name}": value}), checkpoint, tmp_path / name)
            assert detections(tmp_path / name)
            assert detections(tmp_path / name) != plain

    def test_all_together_over_an_ensemble_of_other_architectures(self, tiny, checkpoint, lab, tmp_path) -> None:
        # Each member is built as its own config says: one level with other anchors, context.
        other = DetectorBackboneConfig(name="resnet18", norm="gn", roi_size=2)
        c4 = lab.changed(tiny, backbone=other, anchors__sizes=(24.0,), box__head="tail")
        ensemble = [untrained(c4), untrained(lab.changed(tiny, box__context=True))]
        methods = lab.changed(tiny, **{f"test__{name}": value for name, value in METHODS.items()})
        assert judge(methods, checkpoint, tmp_path, ensemble=ensemble, pictures=1)["images"] == 2
        found = detections(tmp_path)
        assert found
        assert all(entry["bbox"][2] > 0 and entry["bbox"][3] > 0 and 0.01 < entry["score"] <= 1 for entry in found)

    def test_ensemble_of_twice_the_same_is_the_checkpoint(self, tiny, finished, checkpoint, tmp_path) -> None:
        double = judge(tiny, checkpoint, tmp_path, ensemble=[checkpoint])
        assert double["bbox"]["AP"] == pytest.approx(finished.result["bbox"]["AP"], abs=1e-4)
        assert double["voc"]["mAP"] == pytest.approx(finished.result["voc"]["mAP"], abs=1e-4)
        found, expected = (sorted(e["score"] for e in detections(run)) for run in (tmp_path, finished.path))
        assert found == pytest.approx(expected, abs=1e-4)

    def test_training_ends_with_the_test_that_the_config_describes(self, tiny, lab, tmp_path) -> None:
        methods = lab.changed(tiny, **{f"test__{name}": value for name, value in METHODS.items()})
        settings = lab.changed(methods, box__context=True, solver__iterations=1)
        trained = run_training(settings, tmp_path / "run")
        checkpoint = read_checkpoint(tmp_path / "run")
        assert checkpoint.config.box.context
        assert checkpoint.weights["box_stage.predictor.classes.weight"].shape == (11, 32)
        assert judge(settings, checkpoint, tmp_path / "test")["bbox"] == trained["bbox"]
        assert detections(tmp_path / "run") == detections(tmp_path / "test")


class TestWhatIsRefused:
    def test_other_values_of_keys_that_change_no_shape(self, tiny, lab, tmp_path) -> None:
        """The weights would load, and every figure would be wrong without a word."""
        backbone = DetectorBackboneConfig(name="resnet18", norm="gn", roi_size=2)
        config = lab.changed(tiny, backbone=backbone, box__head="tail", anchors__sizes=(16.0, 32.0))
        checkpoint = untrained(config)
        for key, given, trained in (
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
        ):
            with pytest.raises(ValueError, match=rf": {key} is ") as error:
                judge(lab.changed(config, **{key.replace(".", "__"): given}), checkpoint, tmp_path / "out")
            shown = [list(value) if isinstance(value, tuple) else value for value in (given, trained)]
            for part in (f"is {shown[0]!r} here", f"was {shown[1]!r}", "other.safetensors"):
                assert part in str(error.value)
        deep = {"backbone__name": "resnet50"}
        old, new = (lab.changed(config, **deep, backbone__stride_in=place) for place in ("1x1", "3x3"))
        with pytest.raises(ValueError, match=r"backbone\.stride_in is '3x3' here.*was '1x1'"):
            judge(new, untrained(old), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_what_one_side_alone_reads_and_a_member_s_own_may_differ(self, tiny, checkpoint, lab, tmp_path) -> None:
        other = lab.changed(tiny, backbone__freeze_at=0, rpn__post_nms_test=8, rpn__nms_iou=0.5, solver__iterations=1)
        other = lab.changed(other, box__samples_per_image=4, test__score_threshold=0.2)
        member = replace(checkpoint, config=lab.changed(tiny, anchors__offset=0.0))
        assert judge(other, checkpoint, tmp_path, ensemble=[member])["images"] == 2

    def test_weights_that_do_not_fit(self, tiny, finished, checkpoint, lab, tmp_path) -> None:
        with pytest.raises(ValueError, match="do not fit") as error:
            judge(lab.changed(tiny, backbone__fpn_channels=8), checkpoint, tmp_path / "out")
        assert "backbone.lateral.c2.0.weight" in str(error.value)
        assert str(finished.path) in str(error.value)
        for into in (True, False):
            module, weights = (lab.changed(tiny, box__context=on) for on in (into, not into))
            with pytest.raises(ValueError, match="do not fit") as error:
                judge(module, untrained(weights), tmp_path / "out")
            ours, theirs = (32, 16) if into else (16, 32)
            for name, rows in (("classes", 11), ("deltas", 40)):
                shapes = f"module ({rows}, {ours}), weights ({rows}, {theirs})"
                assert f"box_stage.predictor.{name}.weight ({shapes})" in str(error.value)
        assert not (tmp_path / "out").exists()

    def test_other_classes_and_no_test_set(self, tiny, checkpoint, lab, classes_card, tmp_path) -> None:
        for test, message in (
            ((classes_card([*CLASSES, "a"]),), r"'9'.*the data set has 11: .*'a'|class"),
            ((), r"data\.test is empty; give a list of card:split"),
        ):
            with pytest.raises(ValueError, match=message):
                judge(lab.changed(tiny, data__test=test), checkpoint, tmp_path / "out")
        for other in ((*CLASSES[1:], CLASSES[0]), (*CLASSES, "a"), CLASSES[:-1]):
            with pytest.raises(ValueError, match=r"other\.safetensors") as error:
                judge(tiny, checkpoint, tmp_path / "out", ensemble=[untrained(tiny, other)])
            assert str(other) in str(error.value)
            assert str(CLASSES) in str(error.value)
        assert not (tmp_path / "out").exists()


def test_detections_under_each_corruption_lie_beside_the_result(tiny, checkpoint, tmp_path, said) -> None:
    assert corrupted_files(tmp_path) is None
    judge(tiny, checkpoint, tmp_path)
    run_corrupted(tiny, checkpoint, tmp_path, say=said.append)
    files: Any = corrupted_files(tmp_path)
    assert len(files) == len(said) == 12 == len(CORRUPTIONS)
    found = {name: json.loads(path.read_text()) for name, path in files.items()}
    assert all(found[name] != detections(tmp_path) for name in ("blur_3", "noise_3", "jpeg_3", "brightness_3"))
    assert {entry["image_id"] for entry in found["blur_3"]} <= {7, 8}
    table = write_robustness(tmp_path)
    numbers = json.loads((tmp_path / "robustness.json").read_text())
    assert list(numbers["corruptions"]) == [*files]
    assert numbers["clean"]["low"] <= numbers["clean"]["value"] <= numbers["clean"]["high"]
    assert "brightness_3" in table
    said.clear()
    files["noise_2"].unlink()
    run_corrupted(tiny, checkpoint, tmp_path, say=said.append)
    assert [line.partition(":")[0] for line in said] == ["noise_2"]  # the others are kept
    assert json.loads(files["noise_2"].read_text()) == found["noise_2"]


def test_the_device_of_machines_with_and_without_cuda(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [choose_device(name).type for name in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [choose_device(name).type for name in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(ValueError, match=r"no CUDA device; set device=auto or device=cpu"):
        choose_device("cuda")


def test_records_are_read_back_from_a_run(tiny, checkpoint, tmp_path) -> None:
    judge(tiny, checkpoint, tmp_path)
    index, records = read_records(tmp_path)
    found, result = detections(tmp_path), json.loads((tmp_path / "result.json").read_text())
    assert found
    assert coco_results(records, index.category_ids) == found
    assert evaluate(records, index.class_names, "area")["bbox"] == result["bbox"]
    file = tmp_path / "detections.json"
    file.write_text('[{"image_id": 99, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]')
    with pytest.raises(ValueError, match=r"entry 0: image_id is 99, .* digits:test; has the data set"):
        read_records(tmp_path)
    file.write_text("[]")
    (tmp_path / "result.json").write_text(json.dumps(result | {"images": 0}))
    assert read_records(tmp_path)[1] == []  # only the images that were tested
    file.unlink()
    with pytest.raises(ValueError, match=r"detections\.json can't be read: .*: resdet test writes it"):
        read_records(tmp_path)


def test_submissions_of_coco_and_voc_hold_the_detections_of_a_whole_split(tiny, checkpoint, lab, tmp_path) -> None:
    judge(tiny, checkpoint, tmp_path / "coco", submit=True)
    (file,) = (tmp_path / "coco" / "submission").rglob("*.json")
    assert file.parent.name == "bbox"
    assert json.loads(file.read_text()) == detections(tmp_path / "coco") != []
    judge(lab.changed(tiny, data__test=("digits_voc:test",)), checkpoint, tmp_path / "voc", submit=True)
    main = tmp_path / "voc" / "submission" / "results" / "voc" / "Main"
    assert {file.name for file in main.iterdir()} == {f"comp4_det_test_{name}.txt" for name in CLASSES}
    for change in ({"data__test": ("digits:test", "digits:train")}, {"data__limit": 1}):
        with pytest.raises(ValueError, match=r"data\.test.*data\.limit"):
            judge(lab.changed(tiny, **change), checkpoint, tmp_path / "part", submit=True)
    assert not (tmp_path / "part").exists()

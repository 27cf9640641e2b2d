"""Label maps and panoptic files: written and read back, by the tasks, and through the commands."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.sparse import csr_array

from detection.build import build_detector
from detection.config.detection import DetectionConfig, MaskConfig, PanopticConfig, SemanticConfig
from detection.data.digits import CLASSES, STUFF
from detection.data.label_maps import LabelMaps
from detection.data.packed_strings import PackedStrings
from detection.data.panoptic_files import segment_numbers
from detection.engine.checkpoint import Checkpoint
from detection.engine.label_maps import Labelled
from detection.label_colors import VOID_COLOR
from detection.predictor import Predictor
from detection.report.evaluation import write_map_evaluation
from detection.segments import Segment, Segments
from detection.structures import VOID
from detection.tasks.evaluate import without_objects
from detection.tasks.label_files import LabelFiles, file_stems, predicted_maps, read_counts, write_counts
from detection.tasks.test import read_records, run_test

VALUES = {7: 0, 8: 1, 0: VOID, 255: VOID}


@pytest.fixture
def index(make_index, tmp_path) -> Any:
    paths = [str(tmp_path / name) for name in ("a/one.jpg", "b/One.jpg", "two.jpg")]
    maps = LabelMaps(class_names=("road", "car"), files=PackedStrings.pack(["", "", ""]), values=VALUES)
    return replace(make_index([[], [], []], ids=[5, 9, 11], paths=paths, sizes=[(2, 3)] * 3), label_maps=maps)


def test_label_maps_are_written_in_the_values_of_the_card_and_read_back(index, tmp_path) -> None:
    assert file_stems(index) == ["one_5", "One_9", "two"]
    labels = np.array([[0, 1, VOID], [1, 1, 0]], np.uint8)
    write = LabelFiles(index, tmp_path)
    for row in range(3):
        write(row, Labelled(labels))
    write.finish()
    with Image.open(tmp_path / "label_maps" / "two.png") as image:
        assert np.asarray(image).tolist() == [[7, 8, 0], [8, 8, 7]]
        palette = np.array(image.getpalette("RGB")).reshape(-1, 3)
    assert palette[0].tolist() == [*VOID_COLOR]
    assert len({tuple(palette[value]) for value in (0, 7, 8)}) == 3
    assert predicted_maps(index, tmp_path / "label_maps").read(2, (2, 3)).tolist() == labels.tolist()
    assert not (tmp_path / "panoptic.json").exists()
    (tmp_path / "label_maps" / "One_9.png").unlink()
    with pytest.raises(ValueError, match=r"label_maps lacks One_9\.png"):
        predicted_maps(index, tmp_path / "label_maps")


def test_segments_are_written_in_cocos_panoptic_format(index, tmp_path) -> None:
    values = {1: 0, 300: 1}  # ids of categories, which need not fit a pixel
    panoptic = replace(index.label_maps, values=values, num_things=1, segments=PackedStrings.pack(["[]"] * 3))
    write = LabelFiles(replace(index, label_maps=panoptic), tmp_path)
    segments = Segments(np.array([[1, 1, 0], [2, 2, 2]], np.int32), (Segment(1, 0), Segment(2, 1)))
    for row in (2, 0):
        write(row, Labelled(np.zeros((2, 3), np.uint8), segments))
    write.finish()
    content = json.loads((tmp_path / "panoptic.json").read_text())
    assert [entry["image_id"] for entry in content["annotations"]] == [5, 11]
    assert [info["category_id"] for info in content["annotations"][0]["segments_info"]] == [1, 300]
    assert [category["isthing"] for category in content["categories"]] == [1, 0]
    assert sorted(path.name for path in (tmp_path / "panoptic").iterdir()) == ["one_5.png", "two.png"]


def test_counts_come_back_as_they_were(index, tmp_path) -> None:
    rng, plain, path = np.random.default_rng(0), without_objects(index), tmp_path / "segmentation.json"
    labels, panoptic = csr_array(rng.integers(0, 3, (2, 3)).astype(np.int32)), rng.random((2, 4)) * [[1], [0]]
    first, second = (replace(one, label_counts=labels, panoptic_counts=panoptic) for one in plain[:2])
    counted: list[Any] = [first, replace(second, label_counts=2 * labels, panoptic_counts=2 * panoptic)]
    write_counts(path, [*counted, plain[2]], index.label_maps)
    found: list[Any] = read_counts(path, plain, index.label_maps)
    for record, back in zip(counted, found, strict=False):
        np.testing.assert_array_equal(back.label_counts.toarray(), record.label_counts.toarray())
        np.testing.assert_array_equal(back.panoptic_counts, record.panoptic_counts)
    assert found[2].label_counts is None  # its labels are unknown
    with pytest.raises(ValueError, match=r"segmentation\.json has the classes .*car.*lorry"):
        read_counts(path, plain, replace(index.label_maps, class_names=("road", "lorry")))
    write_counts(path, counted, index.label_maps)
    with pytest.raises(ValueError, match=r"two\.jpg"):
        read_counts(path, plain, index.label_maps)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"segmentation\.json"):
        read_counts(path, plain, index.label_maps)


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


FCN = """
architecture: fcn
backbone: {name: resnet18, norm: gn}
"""
PANOPTIC = """
architecture: panoptic_fpn
backbone: {name: resnet18, norm: gn, fpn: true, fpn_channels: 16}
anchors: {sizes: [8, 16, 32, 64, 96]}
rpn: {channels: 16, allow_outside: true, pre_nms_train: 64, pre_nms_test: 64, post_nms_train: 16, post_nms_test: 16}
box: {samples_per_image: 16, head: fc, head_channels: 16, pool: roi_align}
mask: {channels: 16, convs: 1}
semantic: {channels: 16}
panoptic: {instance_score: 0.1, stuff_area: 16}
test: {score_threshold: 0.01}
"""
SETTINGS = """
solver: {{iterations: 1, images_per_step: 2, log_every: 1, best_metric: {figure}}}
data: {{train: [{card}:train], val: [{card}:test], test: [{card}:test], root: {root}, workers: 0,
  shorter_side: 64, longer_side: 96}}
device: cpu
"""
NETWORKS = {"fcn": (FCN, "digits_labels", "semseg.mIoU"), "panoptic": (PANOPTIC, "digits_panoptic", "panoptic.PQ")}


class Own:
    """A run of one iteration."""

    def __init__(self, succeeds: Any, folder: Path, root: Path, name: str) -> None:
        text, self.card, self.figure = NETWORKS[name]
        self.name, self.config, self.run = name, folder / "tiny.yaml", folder / "run"
        self.config.write_text(text + SETTINGS.format(card=self.card, figure=self.figure, root=root))
        self.said = succeeds("train", self.config, "--output-dir", self.run)

    def result(self, folder: str = ".") -> dict[str, Any]:
        return json.loads((self.run / folder / "result.json").read_text())


@pytest.fixture(scope="module")
def fcn(tmp_path_factory, digits, succeeds) -> Own:
    return Own(succeeds, tmp_path_factory.mktemp("fcn"), digits, "fcn")


@pytest.fixture(scope="module", params=["fcn", pytest.param("panoptic", marks=pytest.mark.slow)])
def own(request, tmp_path_factory, digits, succeeds) -> Own:
    if request.param == "fcn":
        return request.getfixturevalue("fcn")
    return Own(succeeds, tmp_path_factory.mktemp("panoptic"), digits, "panoptic")


def test_a_semantic_network_is_measured_by_its_label_maps(fcn) -> None:
    assert "6 images, 11 classes" in fcn.said
    assert "mIoU" in fcn.said
    result = fcn.result()
    assert {"bbox", "voc", "best_f1"}.isdisjoint(result)
    assert 0 <= result["semseg"]["mIoU"] <= result["semseg"]["pixel_accuracy"] <= 1
    assert result["weights"]["chosen_by"] == "semseg.mIoU"
    assert sorted(path.name for path in (fcn.run / "label_maps").iterdir()) == ["000007.png", "000008.png"]
    assert not (fcn.run / "detections.json").exists()


def test_a_test_with_flip_and_scales_draws_and_counts_anew(fcn, resdet, succeeds) -> None:
    options = (fcn.config, "--weights", fcn.run)
    done = succeeds("test", *options, "--visualize", 1, "test.flip=true", "test.scales=[48,64]")
    assert str(fcn.run / "test" / "label_maps") in done
    assert len([*(fcn.run / "test" / "pictures").iterdir()]) == 1
    assert fcn.result("test")["semseg"] != fcn.result()["semseg"]
    assert "label_maps/" in resdet("test", *options, "--submit").err


def test_files_and_counts_of_a_run_are_judged_as_the_network_was(own, digits, resdet, succeeds, tmp_path) -> None:
    truth = ("evaluate", "--gt", f"{own.card}:test", "--data-root", digits, "--output-dir", tmp_path, "--label-maps")
    files = own.run / ("label_maps" if own.name == "fcn" else "panoptic.json")
    succeeds(*truth, f"own={files}")
    (variant,) = json.loads((tmp_path / "evaluation.json").read_text())["variants"].values()
    for section in ("semseg", "panoptic"):
        assert variant["results"][0].get(section) == own.result().get(section)
    section, figure = own.figure.split(".")
    shown = variant["intervals"][figure]
    assert shown["low"] <= shown["value"] <= shown["high"]
    if own.name == "fcn":
        assert "label_maps of a run" in resdet(*truth, own.run).err
        assert "panoptic.json" in resdet(*truth, own.run / "nothing").err
    else:
        content = json.loads(files.read_text())
        content["annotations"] = content["annotations"][:-1]
        (tmp_path / "less.json").write_text(json.dumps(content))
        refused = resdet(*truth, tmp_path / "less.json").err
        assert "less.json lacks 1 of the 2 test images: image_id 8;" in refused
        options = (own.config, "--weights", own.run, "data.test=[digits_labels:test]")
        assert "data.test digits_labels:test: architecture panoptic_fpn" in resdet("test", *options).err
    succeeds("analyze", own.run, "--output-dir", tmp_path)
    numbers = json.loads((tmp_path / "analysis.json").read_text())
    (variant,) = numbers["variants"].values()
    assert numbers["deciding"]["key"] == own.figure
    assert variant["intervals"][figure]["value"] == pytest.approx(own.result()[section][figure])
    assert ("errors" in variant) == (own.name == "panoptic")  # those of objects
    assert np.sum(variant["pixels"]) > 0


def test_predictions_are_those_of_the_test(own, digits, succeeds, tmp_path) -> None:
    photo = digits / "digits" / "coco" / "test" / "000007.jpg"
    succeeds("predict", "--weights", own.run, "--output-dir", tmp_path / "found", photo)
    found: Any = Predictor.load(own.run, device="cpu")(photo)
    with Image.open(tmp_path / "found" / "000007.jpg.labels.png") as image:
        np.testing.assert_array_equal(np.asarray(image), found.label_map)
    entries = json.loads((tmp_path / "found" / "predictions.json").read_text())[str(photo)]
    shares = {entry["class"]: entry["share"] for entry in entries if "share" in entry}
    assert shares == {key: share for key, share in found.shares.items() if key in shares}
    assert found.plot().shape == found.image.shape
    if own.name == "fcn":
        assert found.label_names == ("background", *map(str, range(10)))
        assert sum(shares.values()) == pytest.approx(1)
        with Image.open(own.run / "label_maps" / "000007.png") as image:
            np.testing.assert_array_equal(np.asarray(image), found.label_map)  # the card's values are the labels
    else:
        assert set(shares) <= {*found.label_names[10:]}
        assert found.segments.ids.shape == found.label_map.shape

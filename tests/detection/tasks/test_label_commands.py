"""Networks of label maps through the commands: train, test, evaluate, analyze, predict."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detection.predictor import Predictor

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

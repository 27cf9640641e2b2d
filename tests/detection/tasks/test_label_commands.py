"""Networks of label maps through the commands: train, test, evaluate, analyze, predict."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detection.data.digits import write_digits
from detection.predictor import Predictor

Resdet = Callable[..., Any]
DATA = "data: {{train: [{0}:train], val: [{0}:test], test: [{0}:test], shorter_side: 64, longer_side: 96, workers: 0}}"
FCN = """
architecture: fcn
backbone: {name: resnet18, norm: gn}
solver: {iterations: 1, images_per_step: 2, log_every: 1, best_metric: semseg.mIoU}
device: cpu
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
solver: {iterations: 1, images_per_step: 2, log_every: 1, best_metric: panoptic.PQ}
device: cpu
"""
BOTH = ("fcn", pytest.param("panoptic", marks=pytest.mark.slow))


@dataclass(frozen=True, slots=True)
class Workspace:
    """A run of one iteration."""

    resdet: Resdet
    root: Path
    config: Path
    run: Path
    said: str

    def result(self, folder: str = ".") -> dict[str, Any]:
        return json.loads((self.run / folder / "result.json").read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_digits(tmp_path_factory.mktemp("data"), num_train=2, num_test=3).parent


def trained(folder: Path, root: Path, resdet: Resdet, card: str, config: str) -> Workspace:
    path, run = folder / "tiny.yaml", folder / "run"
    path.write_text(f"{config}{DATA.format(card)}\n")
    done = resdet("train", path, "--output-dir", run, f"data.root={root}")
    assert done.status == 0, done.err
    return Workspace(resdet, root, path, run, done.out)


@pytest.fixture(scope="module")
def fcn(tmp_path_factory, root, resdet) -> Workspace:
    return trained(tmp_path_factory.mktemp("fcn"), root, resdet, "digits_labels", FCN)


@pytest.fixture(scope="module")
def panoptic(tmp_path_factory, root, resdet) -> Workspace:
    return trained(tmp_path_factory.mktemp("panoptic"), root, resdet, "digits_panoptic", PANOPTIC)


def test_a_semantic_network_is_measured_by_its_label_maps(fcn) -> None:
    assert "2 images, 11 classes" in fcn.said
    result = fcn.result()
    assert {"bbox", "voc", "best_f1"}.isdisjoint(result)
    assert 0 <= result["semseg"]["mIoU"] <= result["semseg"]["pixel_accuracy"] <= 1
    assert result["weights"]["chosen_by"] == "semseg.mIoU"
    assert "mIoU" in fcn.said
    assert sorted(path.name for path in (fcn.run / "label_maps").iterdir()) == [
        "000003.png",
        "000004.png",
        "000005.png",
    ]
    assert not (fcn.run / "detections.json").exists()


def test_a_test_with_flip_and_scales_draws_and_counts_anew(fcn) -> None:
    options = ("--weights", fcn.run, "--visualize", 1, f"data.root={fcn.root}", "test.flip=true", "test.scales=[48,64]")
    done = fcn.resdet("test", fcn.config, *options)
    assert done.status == 0, done.err
    assert str(fcn.run / "test" / "label_maps") in done.out
    assert len([*(fcn.run / "test" / "pictures").iterdir()]) == 1
    assert fcn.result("test")["semseg"] != fcn.result()["semseg"]
    refused = fcn.resdet("test", fcn.config, "--weights", fcn.run, f"data.root={fcn.root}", "--submit")
    assert refused.status != 0
    assert "label_maps/" in refused.err


@pytest.mark.parametrize(
    ("name", "card"), [("fcn", "digits_labels"), pytest.param("panoptic", "digits_panoptic", marks=pytest.mark.slow)]
)
def test_written_files_are_judged_as_the_network_was(name, card, request, tmp_path) -> None:
    own: Workspace = request.getfixturevalue(name)
    files = own.run / ("label_maps" if name == "fcn" else "panoptic.json")
    arguments = ("--gt", f"{card}:test", "--label-maps", f"own={files}", "--data-root", own.root)
    done = own.resdet("evaluate", *arguments, "--output-dir", tmp_path)
    assert done.status == 0, done.err
    (variant,) = json.loads((tmp_path / "evaluation.json").read_text())["variants"].values()
    for section in ("semseg", "panoptic"):
        assert variant["results"][0].get(section) == own.result().get(section)
    shown = variant["intervals"]["mIoU" if name == "fcn" else "PQ"]
    assert shown["low"] <= shown["value"] <= shown["high"]


def test_a_folder_above_the_files_and_none_are_told(fcn) -> None:
    truth = ("evaluate", "--gt", "digits_labels:test", "--data-root", fcn.root, "--label-maps")
    assert "label_maps of a run" in fcn.resdet(*truth, fcn.run).err
    assert "panoptic.json" in fcn.resdet(*truth, fcn.run / "nothing").err


@pytest.mark.parametrize("name", BOTH)
def test_an_analysis_reads_the_counts_of_a_run(name, request, tmp_path) -> None:
    own: Workspace = request.getfixturevalue(name)
    done = own.resdet("analyze", own.run, "--output-dir", tmp_path)
    assert done.status == 0, done.err
    numbers = json.loads((tmp_path / "analysis.json").read_text())
    (variant,) = numbers["variants"].values()
    section, figure = ("semseg", "mIoU") if name == "fcn" else ("panoptic", "PQ")
    assert numbers["deciding"]["key"] == f"{section}.{figure}"
    assert variant["intervals"][figure]["value"] == pytest.approx(own.result()[section][figure])
    assert ("errors" in variant) == (name == "panoptic")  # those of objects
    assert np.sum(variant["pixels"]) > 0


@pytest.mark.parametrize("name", BOTH)
def test_predictions_are_those_of_the_test(name, request, tmp_path) -> None:
    own: Workspace = request.getfixturevalue(name)
    photo = own.root / "digits" / "coco" / "test" / "000003.jpg"
    done = own.resdet("predict", "--weights", own.run, "--output-dir", tmp_path / "found", photo)
    assert done.status == 0, done.err
    found = Predictor.load(own.run, device="cpu")(photo)
    assert found.label_map is not None
    with Image.open(tmp_path / "found" / "000003.jpg.labels.png") as image:
        np.testing.assert_array_equal(np.asarray(image), found.label_map)
    entries = json.loads((tmp_path / "found" / "predictions.json").read_text())[str(photo)]
    shares = {entry["class"]: entry["share"] for entry in entries if "share" in entry}
    assert shares == {key: share for key, share in found.shares.items() if key in shares}
    assert found.plot().shape == found.image.shape
    if name == "fcn":
        assert found.label_names == ("background", *map(str, range(10)))
        assert sum(shares.values()) == pytest.approx(1)
        with Image.open(own.run / "label_maps" / "000003.png") as image:
            np.testing.assert_array_equal(np.asarray(image), found.label_map)  # the card's values are the labels
    else:
        assert found.segments is not None
        assert set(shares) <= {*found.label_names[10:]}
        assert found.segments.ids.shape == found.label_map.shape

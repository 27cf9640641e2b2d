"""Mirrors detection/commands/detectors.py: train, then test, on a handful of tiny images."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools.coco import COCO

from detection.data.digits import CLASSES, write_digits
from detection.engine.log import RunLog

Resdet = Callable[..., Any]
CONFIG = """
backbone: {name: resnet18, norm: gn, roi_size: 2}
anchors: {sizes: [16, 32]}
rpn: {channels: 16, allow_outside: true, pre_nms_train: 64, pre_nms_test: 64, post_nms_train: 16, post_nms_test: 16}
box: {samples_per_image: 16}
test: {score_threshold: 0.01}
data: {train: [digits:train], test: [digits:test], shorter_side: 64, longer_side: 96, workers: 0}
solver: {iterations: 2, images_per_step: 2, log_every: 1}
device: cpu
"""


@dataclass(frozen=True, slots=True)
class Workspace:
    """A data set, a config file, and a run of two iterations."""

    resdet: Resdet
    root: Path
    config: Path
    run: Path
    trained: Any


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, resdet: Resdet) -> Workspace:
    root = write_digits(tmp_path_factory.mktemp("data"), num_train=4, num_test=3).parent
    folder = tmp_path_factory.mktemp("work")
    config, run = folder / "tiny.yaml", folder / "run"
    config.write_text(CONFIG)
    trained = resdet("train", config, "--output-dir", run, f"data.root={root}")
    return Workspace(resdet, root, config, run, trained)


def run_test(workspace: Workspace, *arguments: str | Path, weights: Path | None = None) -> Any:
    options = (workspace.config, "--weights", weights or workspace.run)
    return workspace.resdet("test", *options, *arguments, f"data.root={workspace.root}")


@pytest.fixture(scope="module")
def tested(workspace: Workspace) -> Any:
    return run_test(workspace, "--visualize", "2")


def tables(out: str) -> str:
    """The part of a program's output with the figures."""
    assert "COCO box AP" in out, out
    return out[out.index("COCO box AP") : out.index("result: ")].partition("weights of")[0]


def fractions(tree: Any) -> list[float | None]:
    """All figures in a part of result.json, but for names."""
    if isinstance(tree, dict):
        return [value for branch in tree.values() for value in fractions(branch)]
    return [] if isinstance(tree, str) else [tree]


def steps_of(said: str) -> list[str]:
    """Returns the steps whose losses a training shows, such as 1/2."""
    return re.findall(r"^ *(\d+/\d+) +\d", said, flags=re.MULTILINE)


def test_training_ends_well_and_shows_its_figures(workspace: Workspace) -> None:
    assert workspace.trained.status == 0
    assert "mean" in tables(workspace.trained.out)
    assert steps_of(workspace.trained.out) == ["1/2", "2/2"]
    assert f"result: {workspace.run / 'result.json'}" in workspace.trained.out


@pytest.mark.parametrize("folder", [".", "test"])
@pytest.mark.usefixtures("tested")
def test_result_has_fractions_or_null(workspace: Workspace, folder: str) -> None:
    result = json.loads((workspace.run / folder / "result.json").read_text())
    for value in fractions({"bbox": result["bbox"], "voc": result["voc"]}):
        assert value is None or 0 <= value <= 1
    assert result["bbox"]["AP"] is not None
    assert result["bbox"]["AP50"] >= result["bbox"]["AP"]
    assert result["voc"]["mAP"] is not None
    assert set(result["bbox"]["per_class"]) == set(result["voc"]["per_class"]) == set(CLASSES)
    assert set(result["bbox"]["per_class"]["7"]) == {"AP", "AP50", "AP75"}
    annotated = {int(a["category_id"]) - 1 for a in read_truth(workspace)["annotations"]}
    absent = [name for name, ap in result["voc"]["per_class"].items() if ap is None]
    assert absent == [name for label, name in enumerate(CLASSES) if label not in annotated]
    assert result["images"] == 3
    assert math.isfinite(result["seconds_per_image"])
    assert result["peak_memory_gib"] > 0


def read_truth(workspace: Workspace) -> dict[str, Any]:
    return json.loads(truth_file(workspace).read_text())


def truth_file(workspace: Workspace) -> Path:
    return workspace.root / "digits" / "coco" / "annotations" / "instances_test.json"


def test_test_gives_the_figures_of_the_training(workspace: Workspace, tested: Any) -> None:
    assert tested.status == 0
    assert tables(tested.out) == tables(workspace.trained.out)
    ours, theirs = (json.loads((workspace.run / f / "result.json").read_text()) for f in ("test", "."))
    assert (ours["bbox"], ours["voc"]) == (theirs["bbox"], theirs["voc"])


@pytest.mark.usefixtures("tested")
def test_detections_load_in_pycocotools(workspace: Workspace) -> None:
    file = workspace.run / "test" / "detections.json"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_file(workspace)))
        loaded = truth.loadRes(str(file))
    assert sorted(loaded.getImgIds()) == sorted(truth.getImgIds())
    detections = json.loads(file.read_text())
    assert detections
    sizes = {image["id"]: (image["width"], image["height"]) for image in read_truth(workspace)["images"]}
    for detection in detections:
        x, y, width, height = detection["bbox"]
        image_width, image_height = sizes[detection["image_id"]]
        assert 1 <= detection["category_id"] <= 10
        assert 0.01 < detection["score"] <= 1
        assert min(x, y) >= 0
        assert min(width, height) > 0
        assert x + width <= image_width + 1e-3
        assert y + height <= image_height + 1e-3


def test_pictures_are_drawn_on_request(workspace: Workspace, tested: Any) -> None:
    folder = workspace.run / "test" / "pictures"
    assert f"pictures: {folder}" in tested.out
    pictures = sorted(folder.iterdir())
    assert [path.name for path in pictures] == ["00000_000005.jpg", "00001_000006.jpg"]
    for path in pictures:
        with Image.open(path) as image:
            assert image.mode == "RGB"


def test_checkpoint_elsewhere_limit_and_output_directory(workspace: Workspace, tmp_path: Path) -> None:
    weights = shutil.copy(workspace.run / "checkpoints" / "0000002.safetensors", tmp_path / "model.safetensors")
    outcome = run_test(workspace, "--limit", "1", "--output-dir", tmp_path / "out", weights=Path(weights))
    assert outcome.status == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["images"] == 1
    assert not (tmp_path / "out" / "pictures").exists()


def test_overrides_reach_the_test(workspace: Workspace, tmp_path: Path) -> None:
    run_test(workspace, "test.max_detections=1", "--output-dir", tmp_path)
    found = [detection["image_id"] for detection in json.loads((tmp_path / "detections.json").read_text())]
    assert len(found) == len(set(found)) > 0


def test_methods_of_the_paper_by_overrides(workspace: Workspace, tmp_path: Path) -> None:
    keys = ("test.refine=true", "test.vote_iou=0.5", "test.flip=true", "test.scales=[96,128]")
    outcome = run_test(workspace, "--output-dir", tmp_path, *keys)
    assert outcome.status == 0
    assert "mean" in tables(outcome.out)
    assert json.loads((tmp_path / "result.json").read_text())["images"] == 3
    detections = json.loads((tmp_path / "detections.json").read_text())
    assert detections
    for detection in detections:
        assert all(math.isfinite(value) for value in (*detection["bbox"], detection["score"]))


def test_ensemble_of_twice_the_same_run_gives_its_figures(workspace: Workspace, tested: Any, tmp_path: Path) -> None:
    outcome = run_test(workspace, "--ensemble", workspace.run, "--output-dir", tmp_path)
    assert outcome.status == 0
    assert tables(outcome.out) == tables(tested.out)


def test_ensemble_of_three_with_the_methods_of_the_paper(workspace: Workspace, tmp_path: Path) -> None:
    weights = workspace.run / "checkpoints" / "0000002.safetensors"
    members = ("--ensemble", workspace.run, "--ensemble", weights)
    keys = ("test.refine=true", "test.vote_iou=0.5", "test.flip=true", "test.scales=[96,128]")
    outcome = run_test(workspace, *members, "--limit", "1", "--output-dir", tmp_path, *keys)
    assert outcome.status == 0
    assert json.loads((tmp_path / "detections.json").read_text())


def test_missing_member_of_an_ensemble_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    outcome = run_test(workspace, "--ensemble", tmp_path / "absent.safetensors")
    assert outcome.err.startswith("error: no checkpoint at ")
    assert "absent.safetensors" in outcome.err


@pytest.mark.parametrize("override", ["test.scales=[96]", "test.scales=[128,96]", "test.scales=[96,96]"])
def test_scales_that_are_no_pyramid_are_refused(workspace: Workspace, override: str) -> None:
    assert run_test(workspace, override).err.startswith("error: test.scales takes two or more rising ")


@pytest.mark.parametrize("value", ["0", "1.5", "-0.5"])
def test_voting_iou_outside_0_to_1_is_refused(workspace: Workspace, value: str) -> None:
    outcome = run_test(workspace, f"test.vote_iou={value}")
    assert re.search(rf"^error: .*'test\.vote_iou'.*got {value}$", outcome.err)


def test_resume_goes_on_and_a_second_start_does_not(workspace: Workspace, tmp_path: Path) -> None:
    run = Path(shutil.copytree(workspace.run, tmp_path / "run"))
    arguments = (workspace.config, "--output-dir", run, f"data.root={workspace.root}")
    again = workspace.resdet("train", *arguments)
    assert "add --resume" in again.err
    resumed = workspace.resdet("train", *arguments, "--resume", "solver.iterations=3")
    assert resumed.status == 0
    assert steps_of(resumed.out) == ["3/3"]
    assert (run / "checkpoints" / "0000003.safetensors").is_file()


def test_signal_ends_with_a_status_of_its_own(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (workspace.config, "--output-dir", tmp_path, "--resume", f"data.root={workspace.root}")
    record = RunLog.metrics

    def interrupt(log: RunLog, iteration: int, values: Mapping[str, float]) -> None:
        record(log, iteration, values)
        if iteration == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "metrics", interrupt)
        stopped = workspace.resdet("train", *arguments)
    assert stopped.status == 75
    assert stopped.err.startswith("stopped: SIGTERM ended the run after iteration 1 of 2; the same command")
    again = workspace.resdet("train", *arguments)
    assert again.status == 0
    assert tables(again.out) == tables(workspace.trained.out)


def test_weights_of_another_backbone_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    outcome = run_test(workspace, "--output-dir", tmp_path / "out", "backbone.name=resnet34")
    assert outcome.err.startswith("error: the weights from ")
    assert "backbone.layer1.2.conv1.weight" in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("weights", ["absent.safetensors", "."])
def test_missing_weights_are_refused(workspace: Workspace, tmp_path: Path, weights: str) -> None:
    outcome = run_test(workspace, weights=tmp_path / weights)
    assert outcome.err.startswith("error: no checkpoint at ")


def test_unknown_key_of_the_test_is_named(workspace: Workspace) -> None:
    outcome = run_test(workspace, "test.nms=0.5")
    assert outcome.err.startswith("error: no config key 'test.nms'; did you mean 'test.nms_iou'?")


def test_loss_that_is_not_finite_is_an_error_without_a_traceback(workspace: Workspace, tmp_path: Path) -> None:
    arguments = (workspace.config, "--output-dir", tmp_path, f"data.root={workspace.root}")
    outcome = workspace.resdet("train", *arguments, "solver.base_lr=1e30")
    assert outcome.err.startswith("error: loss is not finite at iteration 1: ")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "fcos", "keypoint_rcnn"])
def test_configs_of_other_heads_train_and_are_tested(workspace: Workspace, tmp_path: Path, name: str) -> None:
    """The configs of configs/digits, at a small scale and for two steps."""
    small = ("data.shorter_side=64", "data.longer_side=96", "data.workers=0", f"data.root={workspace.root}")
    short = ("solver.iterations=2", "solver.warmup_iterations=0", "solver.images_per_step=2", "device=cpu")
    run = tmp_path / name
    config = f"digits/{name}_resnet18_fpn"
    trained = workspace.resdet("train", config, "--output-dir", run, *small, *short, "test.score_threshold=0.001")
    assert (trained.status, trained.err) == (0, "")
    tested = workspace.resdet("test", run / "config.yaml", "--weights", run, "--visualize", "1")
    assert tested.status == 0
    result = json.loads((run / "test" / "result.json").read_text())
    assert ("keypoints" in result) == (name == "keypoint_rcnn")
    assert json.loads((run / "test" / "detections.json").read_text())
    assert len(list((run / "test" / "pictures").iterdir())) == 1

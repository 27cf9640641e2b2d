import contextlib
import io
import json
import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

from detection.config.load import dump_config
from detection.data.digits import CLASSES
from detection.engine.checkpoint import write_converted
from detection.weights import zoo
from detection.weights.torchvision import convert_torchvision
from detection.weights.zoo import Entry


@dataclass(frozen=True, slots=True)
class Workspace:
    """A config file, a run of two iterations and its test."""

    resdet: Any
    config: Path
    run: Path
    trained: Any
    tested: Any

    def test(self, *arguments: str | Path) -> Any:
        return self.resdet("test", self.config, "--weights", self.run, *arguments)

    def result(self, folder: str) -> dict[str, Any]:
        return json.loads((self.run / folder / "result.json").read_text())


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, tiny, lab, resdet) -> Workspace:
    folder = tmp_path_factory.mktemp("work")
    config, run = folder / "tiny.yaml", folder / "run"
    config.write_text(dump_config(lab.changed(tiny, solver__iterations=2, solver__clip_norm=None)))
    trained = resdet("train", config, "--output-dir", run)
    tested = resdet("test", config, "--weights", run, "--visualize", "2")
    return Workspace(resdet, config, run, trained, tested)


def tables(out: str) -> str:
    """The part of a program's output with the figures."""
    assert "COCO box AP" in out, out
    return out[out.index("COCO box AP") : out.index("result: ")].partition("weights of")[0]


def steps_of(said: str) -> list[str]:
    """Returns the steps whose losses a training shows, such as 1/2."""
    return re.findall(r"^ *(\d+/\d+) +\d", said, flags=re.MULTILINE)


def test_training_and_test_end_well_and_show_the_same_figures(workspace) -> None:
    trained, tested = workspace.trained, workspace.tested
    assert (trained.status, tested.status) == (0, 0)
    assert "mean" in tables(trained.out)
    assert tables(tested.out) == tables(trained.out)
    assert steps_of(trained.out) == ["1/2", "2/2"]
    assert f"result: {workspace.run / 'result.json'}" in trained.out
    ours, theirs = workspace.result("test"), workspace.result(".")
    assert (ours["bbox"], ours["voc"], ours["images"]) == (theirs["bbox"], theirs["voc"], 2)
    assert {tuple(own) for own in ours["bbox"]["per_class"].values()} == {("AP", "AP50", "AP75")}
    assert min(ours["seconds_per_image"], ours["peak_memory_gib"]) > 0
    folder = workspace.run / "test" / "pictures"
    assert f"pictures: {folder}" in tested.out
    assert sorted(path.name for path in folder.iterdir()) == ["00000_000007.jpg", "00001_000008.jpg"]
    for path in folder.iterdir():
        with Image.open(path) as image:
            assert image.mode == "RGB"


def test_detections_load_in_pycocotools(workspace, digits) -> None:
    file, truth = workspace.run / "test" / "detections.json", digits / "digits/coco/annotations/instances_test.json"
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        loaded = coco.loadRes(str(file))
    assert sorted(loaded.getImgIds()) == sorted(coco.getImgIds())
    sizes = {image["id"]: (image["width"], image["height"]) for image in json.loads(truth.read_text())["images"]}
    for detection in json.loads(file.read_text()):
        (x, y, width, height), (right, bottom) = detection["bbox"], sizes[detection["image_id"]]
        assert (1 <= detection["category_id"] <= 10, 0.01 < detection["score"] <= 1) == (True, True)
        assert min(x, y, right + 1e-3 - x - width, bottom + 1e-3 - y - height) >= 0 < min(width, height)


def test_options_and_overrides_reach_the_test(workspace, tmp_path) -> None:
    weights = shutil.copy(workspace.run / "checkpoints" / "0000002.safetensors", tmp_path / "model.safetensors")
    options = ("--weights", weights, "--limit", "1", "--output-dir", tmp_path / "out", "test.max_detections=1")
    assert workspace.test(*options).status == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["images"] == 1
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())) == 1
    assert not (tmp_path / "out" / "pictures").exists()
    twice = workspace.test("--ensemble", workspace.run, "--output-dir", tmp_path / "twice")
    assert (twice.status, tables(twice.out)) == (0, tables(workspace.tested.out))
    members = ("--ensemble", workspace.run, "--ensemble", weights, "--limit", "1", "--output-dir", tmp_path / "three")
    keys = ("test.refine=true", "test.vote_iou=0.5", "test.flip=true", "test.scales=[96,128]")
    assert workspace.test(*members, *keys).status == 0
    assert json.loads((tmp_path / "three" / "detections.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ensemble", "absent.safetensors"), r"no checkpoint at absent\.safetensors"),
        (("--weights", "absent.safetensors"), r"no checkpoint at absent\.safetensors"),
        (("--weights", "."), "no checkpoint at "),
        (("test.scales=[96]",), r"test\.scales takes two or more rising "),
        (("backbone.fpn_channels=8",), r"the weights from (.|\n)*backbone\.lateral\.c2\.0\.weight"),
        (("test.nms=0.5",), r"no config key 'test\.nms'; did you mean 'test\.nms_iou'\?"),
    ],
)
def test_mistakes_are_one_error(workspace, tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = workspace.test(*arguments)
    assert re.search(f"^error: {message}", outcome.err)
    assert not [*tmp_path.iterdir()]


def test_resume_goes_on_and_a_second_start_or_a_loss_that_is_not_finite_does_not(workspace, tmp_path) -> None:
    run = Path(shutil.copytree(workspace.run, tmp_path / "run"))
    again = workspace.resdet("train", workspace.config, "--output-dir", run)
    assert "add --resume" in again.err
    resumed = workspace.resdet("train", workspace.config, "--output-dir", run, "--resume", "solver.iterations=3")
    assert (resumed.status, steps_of(resumed.out)) == (0, ["3/3"])
    assert (run / "checkpoints" / "0000003.safetensors").is_file()
    outcome = workspace.resdet("train", workspace.config, "--output-dir", tmp_path / "wild", "solver.base_lr=1e30")
    assert outcome.err.startswith("error: loss is not finite at iteration 1: ")


def test_signal_ends_with_a_status_of_its_own(workspace, lab, tmp_path) -> None:
    arguments = ("train", workspace.config, "--output-dir", tmp_path, "--resume")
    with lab.ends_at(1, signal.SIGTERM):
        stopped = workspace.resdet(*arguments)
    assert stopped.status == 75
    assert stopped.err.startswith("stopped: SIGTERM ended the run after iteration 1 of 2; the same command")
    again = workspace.resdet(*arguments)
    assert (again.status, tables(again.out)) == (0, tables(workspace.trained.out))


def test_a_detector_of_the_zoo_is_tested_as_it_was_published(digits, tmp_path, monkeypatch, succeeds) -> None:
    with torch.device("meta"):
        shapes = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=11).state_dict()
    state = {name: torch.tensor(0.01).expand(value.shape) for name, value in shapes.items()}
    config, converted = convert_torchvision(state, class_names=CLASSES)

    def fetch(entry: Entry, folder: Path, **_: Any) -> Path:
        run = folder / entry.name
        write_converted(run, config, CLASSES, converted)
        return run

    published = Entry("small", "torchvision", "http://host/model-00000000.pth", "digits:test", ap=12.3, mask_ap=45.6)
    monkeypatch.setattr(zoo, "ZOO", (published,))
    monkeypatch.setattr(zoo, "fetch", fetch)
    monkeypatch.chdir(tmp_path)
    small = ("data.shorter_side=64", "rpn.post_nms_test=8", "device=cpu", "data.workers=0", "data.test=[digits:test]")
    said = succeeds("test", "--zoo", "small", "--limit", "1", f"data.root={digits}", *small)
    assert "small: http://host/model-00000000.pth, BSD" in said
    assert "published for digits:test: box AP 12.3, mask AP 45.6" in said
    assert json.loads((tmp_path / "output" / "zoo" / "small" / "test" / "result.json").read_text())["images"] == 1


def test_a_config_and_weights_or_the_zoo(resdet) -> None:
    for arguments, missing in (
        ((), "; both are missing"),
        (("--weights", "a"), "; the config, RUN/config.yaml of a run, is missing"),
        (("a.yaml",), "; --weights is missing"),
        (("--zoo", "small", "--weights", "a"), ""),
        (("a.yaml", "--zoo", "small"), ""),
    ):
        outcome = resdet("test", *arguments)
        assert outcome.status == 2
        assert outcome.err == f"error: give a config and --weights, or --zoo alone{missing}\n"
    assert resdet("test", "--zoo", "faster").err.startswith("error: no detector 'faster' in the zoo")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "fcos", "keypoint_rcnn"])
def test_configs_of_other_heads_train_and_are_tested(resdet, succeeds, digits, tmp_path, name) -> None:
    """The configs of configs/digits, at a small scale and for two steps."""
    small = ("data.shorter_side=64", "data.longer_side=96", "data.workers=0", f"data.root={digits}")
    short = ("solver.iterations=2", "solver.warmup_iterations=0", "solver.images_per_step=2", "device=cpu")
    config = (f"digits/{name}_resnet18_fpn", "--output-dir", tmp_path, "test.score_threshold=0.001")
    succeeds("train", *config, *small, *short)
    assert resdet("test", tmp_path / "config.yaml", "--weights", tmp_path, "--visualize", "1").status == 0
    result = json.loads((tmp_path / "test" / "result.json").read_text())
    assert ("keypoints" in result) == (name == "keypoint_rcnn")
    assert json.loads((tmp_path / "test" / "detections.json").read_text())
    assert len(list((tmp_path / "test" / "pictures").iterdir())) == 1

"""Mirrors weights/origin.py, and fine-tuning from what it reads; the server runs on 127.0.0.1, weights are random."""

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from detection.config.detection import DetectionConfig
from detection.config.load import load_config
from detection.data.cards import load_card
from detection.engine.checkpoint import read_checkpoint
from detection.weights import origin, zoo
from detection.weights.origin import origin_file, read_origin
from detection.weights.to_detectron2 import to_detectron2

# A training of seconds.
SHORT = (
    *("solver.iterations=1", "solver.images_per_step=1", "solver.warmup_iterations=0", "solver.log_sinks=[]"),
    *("data.workers=0", "data.val=[]", "data.test=[]", "data.shorter_side=64", "data.longer_side=96"),
    *("rpn.post_nms_train=64", "rpn.post_nms_test=16", "device=cpu"),
)
# Settings that Detectron2 has, for the layers of torchvision's detector.
DETECTRON2 = """
backbone: {name: resnet50, weights_source: msra, stride_in: 3x3, norm: frozen_bn, freeze_at: 2, fpn: true}
anchors: {sizes: [32, 64, 128, 256, 512], offset: 0.0}
rpn: {channels: 256, allow_outside: true, pre_nms_test: 1000, post_nms_test: 1000, min_size: 0.0}
box: {head: fc, pool: roi_align, sampling_ratio: 0}
test: {nms_iou: 0.5}
data: {shorter_side: 800, longer_side: 1333}
"""


def torchvision_state(classes: int) -> dict[str, Tensor]:
    """A detector of torchvision with random weights whose residual branches begin at zero, so that nothing explodes."""
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=classes + 1)
    state = model.state_dict()
    return {name: value * 0 if name.endswith("bn3.weight") else value for name, value in state.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Files of 6 classes as torchvision and Detectron2 write them, and one of COCO's 91 rows."""
    folder = tmp_path_factory.mktemp("files")
    for name, classes in (("mine.pth", 6), ("coco.pth", 90)):
        torch.save(torchvision_state(classes), folder / name)
    torch.save({"model": torchvision_state(6)}, folder / "wrapped.pth")
    found = read_origin(str(folder / "mine.pth"))
    (folder / "detectron2.yaml").write_text(DETECTRON2)
    state, _ = to_detectron2(load_config(DetectionConfig, folder / "detectron2.yaml"), found.class_names, found.weights)
    content = {"model": {name: value.numpy() for name, value in state.items()}, "__author__": "somebody"}
    (folder / "model_final.pkl").write_bytes(pickle.dumps(content))
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch) -> None:
    """Runs and downloads go to output/ of the working directory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def served(files, server, monkeypatch):
    """A detector "small" of the zoo on a server, which keeps what was asked for."""
    server.content = files["coco.pth"].read_bytes()
    url = server.url(f"small-{hashlib.sha256(server.content).hexdigest()[:8]}.pth")
    monkeypatch.setattr(zoo, "ZOO", (zoo.Entry("small", "torchvision", url, "coco2017:val", 1.0),))
    return server.ranges


@pytest.mark.slow
def test_files_of_torchvision_and_detectron2_and_their_classes(files) -> None:
    coco, own = load_card("coco2017").classes, tuple(f"class {number}" for number in range(1, 7))
    for name, names, source in (
        *(("mine.pth", own, "torchvision"), ("wrapped.pth", own, "torchvision")),
        *(("coco.pth", coco, "torchvision"), ("model_final.pkl", None, "msra")),  # 91 rows are COCO's classes
    ):
        found = read_origin(str(files[name]))
        assert names in (None, found.class_names)
        assert (found.config.backbone.name, found.config.backbone.weights_source) == ("resnet50", source)
        rows = (81 if name == "coco.pth" else 7, 1024)
        assert found.weights["box_stage.predictor.classes.weight"].shape == rows


@pytest.mark.slow
def test_a_name_of_the_zoo_is_downloaded_once_and_is_a_run(served) -> None:
    found = read_origin("small")
    assert found.class_names == load_card("coco2017").classes
    assert origin_file("small") == origin.ZOO_FOLDER / "small" / "checkpoints" / "0000000.safetensors"
    assert read_checkpoint(origin.ZOO_FOLDER / "small").config == found.config
    assert len(served) == 1


def test_what_is_nowhere_and_a_backbone_alone_are_refused(tmp_path) -> None:
    for name in ("nowhere/run", "small.pth", "faster_rcnn_R_50_FPN"):
        with pytest.raises(ValueError, match=f"init '{name}' is no run, no file and no published detector"):
            read_origin(name)
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"backbone\.weights"):  # the key that takes it
        read_origin(str(tmp_path / "resnet.pth"))


# fine-tuning on bolts and nuts from detectors that know neither


@pytest.fixture
def assert_tunes(made_folder, resdet):
    """Trains from ``start``, the detector in ``source``.

    All tensors come over, no class does, and the weights are those of ``source`` where nothing is trained.
    """

    def check(start: str | Path, source: Path) -> None:
        outcome = resdet("train", made_folder("csv"), "--from", start, *SHORT)
        assert (outcome.status, outcome.err) == (0, "")
        lines = outcome.out.splitlines()
        (first,) = [number for number, line in enumerate(lines) if "tensors carried over" in line]
        carried, _, total = lines[first].rpartition(": ")[2].split()[:3]
        assert carried == total
        assert lines[first + 1 : first + 3] == ["  classes kept: none", "  classes new: bolt, nut"]
        there, here = read_origin(str(source)), read_checkpoint("output/csv")
        assert here.class_names == ("bolt", "nut")
        assert here.weights["box_stage.predictor.classes.weight"].shape[0] == 3
        for name in ("backbone.body.conv1.weight", "backbone.body.layer1.0.conv1.weight"):  # fixed
            assert torch.equal(here.weights[name], there.weights[name])
        for name in ("rpn.head.conv.weight", "box_stage.head.fcs.0.weight"):
            assert not torch.equal(here.weights[name], there.weights[name])
            assert torch.allclose(here.weights[name], there.weights[name], atol=0.01)

    return check


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mine.pth", "model_final.pkl"])
def test_fine_tuning_from_a_file(assert_tunes, files, name: str) -> None:
    assert_tunes(files[name], files[name])


@pytest.mark.slow
def test_fine_tuning_from_a_name_of_the_zoo(assert_tunes, served) -> None:
    assert_tunes("small", origin.ZOO_FOLDER / "small")
    config = load_config(DetectionConfig, "output/csv/init/config.yaml")
    assert (config.init, config.backbone.freeze_at, config.solver.base_lr) == ("small", 2, pytest.approx(0.01))
    assert len(served) == 1

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.config.load import parse_config
from detection.engine.checkpoint import Checkpoint
from detection.export.extras import optional
from detection.export.facts import Facts, describe_export
from detection.export.graph import DetectorGraph
from detection.export.runtime import Exported
from detection.tasks import export
from detection.tasks.export import Limits, Wanted, run_export

TEXT = """
backbone: {name: resnet18, weights: null}
rpn: {channels: 16, pre_nms_test: 50, post_nms_test: 10}
data: {test: [], shorter_side: 64, longer_side: 96}
"""
CONFIG = parse_config(DetectionConfig, TEXT)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint[DetectionConfig]:
    torch.manual_seed(0)
    detector = build_detector(CONFIG, 2, pretrained=False)
    for name, values in detector.named_buffers():
        if name.endswith("bn2.weight"):
            values.fill_(0.2)  # else random residual branches add up to infinity
    for layer in (module for module in detector.modules() if isinstance(module, torch.nn.Linear)):
        torch.nn.init.normal_(layer.weight, std=1.0)
    return Checkpoint(Path("0000007.safetensors"), detector.state_dict(), CONFIG, ("cat", "dog"), iteration=7)


@pytest.fixture
def wanted(tmp_path):
    """Makes wishes over two photos."""
    (tmp_path / "photos").mkdir()
    for number, size in enumerate([(60, 80), (80, 60)]):  # height, width
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    return partial(replace, Wanted(format="onnx", images=tmp_path / "photos", timed=0))


@pytest.fixture
def written(monkeypatch, checkpoint) -> list[Facts]:
    """Stands for the slow writing: a file that runs PyTorch, whose int8 model finds nothing; gives the facts."""
    detector = build_detector(CONFIG, 2, pretrained=False).eval()
    detector.load_state_dict(checkpoint.weights)
    graph, seen = DetectorGraph(detector), list[Facts]()

    def write(_: Any, folder: Path, facts: Facts, **__: Any) -> tuple[Facts, dict[str, float]]:
        (folder / "model.onnx").write_bytes(b"a graph")
        seen.append(facts)
        return facts, {}

    def call(pixels: Tensor, sizes: Tensor) -> list[np.ndarray]:
        boxes, labels, scores, counts = (part.numpy() for part in graph(pixels, sizes))
        return [boxes, labels, scores, counts * (seen[-1].precision != "int8")]

    monkeypatch.setattr(export, "write_export", write)
    monkeypatch.setattr(export, "open_exported", lambda folder: Exported(folder / "model.onnx", seen[-1], call))
    return seen


def test_files_lie_beside_their_proof(checkpoint, wanted, written, tmp_path) -> None:
    output = tmp_path / "export" / "onnx"
    proof = run_export(checkpoint, output, wanted(), say=lambda _: None)
    assert sorted(path.name for path in output.iterdir()) == ["export.json", "export.md", "model.onnx"]
    assert proof == json.loads((output / "export.json").read_text())
    assert proof["agreement"]["images"] == 2
    assert proof["agreement"]["matched"] == proof["agreement"]["detections"] > 0
    assert proof["ap"] == {}  # photos have no ground truth
    assert written[0].size == (96, 96)  # the smallest frame that holds 85 x 64 and 64 x 85
    assert proof["facts"]["class_names"] == ["cat", "dog"]


@pytest.mark.usefixtures("written")
def test_an_export_that_loses_too_much_leaves_nothing(checkpoint, wanted, tmp_path) -> None:
    output = tmp_path / "export" / "onnx_int8"
    output.mkdir(parents=True)
    (output / "earlier").touch()
    with pytest.raises(ValueError, match=r"100\.0 %.*--max-unmatched 0\.3"):
        run_export(checkpoint, output, wanted(precision="int8"))
    assert [path.name for path in output.parent.iterdir()] == ["onnx_int8"]
    assert [path.name for path in output.iterdir()] == ["earlier"]
    limits = Limits(unmatched=1.0)
    run_export(checkpoint, output, wanted(precision="int8", limits=limits), say=lambda _: None)
    assert not (output / "earlier").exists()


def test_what_can_not_be_exported(checkpoint, wanted, tmp_path) -> None:
    flipped = replace(checkpoint, config=replace(CONFIG, test=replace(CONFIG.test, flip=True)))
    for given, changes, key in (
        (checkpoint, {"format": "torch", "precision": "int8"}, "--int8"),
        (flipped, {}, "test.flip"),
        (checkpoint, {"page": True, "batch": 4}, "--batch 4"),
        (checkpoint, {"page": True, "runtime": tmp_path}, "--runtime"),
        (checkpoint, {"images": tmp_path / "none"}, "--images"),
        (checkpoint, {"images": None}, "data.test"),
    ):
        with pytest.raises(ValueError, match=key):
            run_export(given, tmp_path / "export", wanted(**changes))
    with pytest.raises(ImportError, match=r"--format onnx.*pip install 'resdet\[export\]'"):
        optional("no_such_package", "--format onnx")


def test_an_export_knows_its_run(checkpoint) -> None:
    detector = build_detector(CONFIG, 2, pretrained=False)
    kind: dict[str, Any] = {"format": "onnx", "precision": "fp32", "size": (64, 96), "batch": 1, "licence": "none"}
    facts = describe_export(checkpoint, detector, **kind)
    exported = Exported(Path("model.onnx"), Facts.from_text(facts.to_text(), Path("model.onnx")), lambda *_: [])
    assert exported.facts == facts
    exported.check_run(checkpoint)
    exported.check_config(CONFIG, ("cat", "dog"))
    with pytest.raises(ValueError, match=r"another run.*iteration 7"):
        exported.check_run(replace(checkpoint, weights=detector.state_dict()))
    with pytest.raises(ValueError, match=r"\('dog', 'cat'\)"):
        exported.check_config(CONFIG, ("dog", "cat"))
    with pytest.raises(ValueError, match=r"test\.nms_iou is 0\.9"):
        exported.check_config(replace(CONFIG, test=replace(CONFIG.test, nms_iou=0.9)), ("cat", "dog"))

"""A test of a published detector: resdet test --zoo."""

import json
from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

from detection.data.cards import load_card
from detection.engine.checkpoint import write_converted
from detection.weights import zoo
from detection.weights.torchvision import convert_torchvision
from detection.weights.zoo import Entry

ENTRY = Entry("small", "torchvision", "http://host/model-00000000.pth", "digits:test", ap=12.3, mask_ap=45.6)


def test_a_detector_of_the_zoo_is_tested_as_it_was_published(digits, tmp_path, monkeypatch, succeeds) -> None:
    with torch.device("meta"):
        shapes = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=11).state_dict()
    state = {name: torch.tensor(0.01).expand(value.shape) for name, value in shapes.items()}
    names = load_card("digits").classes
    config, converted = convert_torchvision(state, class_names=names)

    def fetch(entry: Entry, folder: Path, **_: Any) -> Path:
        run = folder / entry.name
        write_converted(run, config, names, converted)
        return run

    monkeypatch.setattr(zoo, "ZOO", (ENTRY,))
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

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from detection.config.detection import DetectionConfig, DetectorBackboneConfig
from detection.report.card_sections import licence_section
from detection.report.model_card import is_edited, write_card
from detection.report.recorded import read_run
from detection.weights.origin import origin_of

OLD = Path(__file__).parents[2] / "old_runs"


@pytest.fixture
def run(tested_run, tmp_path) -> Path:
    return shutil.copytree(tested_run, tmp_path / "parts")


def rows(text: str) -> dict[str, list[str]]:
    """First cell -> the others of every row of every table, without Markdown's backslashes."""
    cells = [line.strip("| ").replace("\\", "").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in cells}


def test_the_head_is_read_by_the_hubs_library_and_its_code_loads_the_run(run) -> None:
    path = write_card(run, licence="CC-BY-4.0")
    card = ModelCard.load(path)
    card.validate = None  # pyright: ignore[reportAttributeAccessIssue]  # asks the network
    data, result = card.data.to_dict(), json.loads((run / "test" / "result.json").read_text())
    assert (data["license"], data["datasets"]) == ("cc-by-4.0", ["old_coco"])
    assert {"object-detection", "instance-segmentation", "mask-rcnn"} <= set(data["tags"])
    metrics = {metric["type"]: metric["value"] for metric in data["model-index"][0]["results"][0]["metrics"]}
    assert metrics["bbox.AP"] == pytest.approx(100 * result["bbox"]["AP"], abs=0.01)
    assert metrics["segm.AP50"] == pytest.approx(100 * result["segm"]["AP50"], abs=0.01)
    text, image = path.read_text().partition("## How to load it")[2], OLD / "data" / "coco" / "train" / "1.png"
    code = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    exec("\n".join(code).replace("photo.jpg", str(image)), {"print": lambda *_: None})


def test_figures_are_those_of_the_test_with_their_intervals(run) -> None:
    recorded: Any = read_run(run)
    assert [line.partition(":")[0] for line in recorded.missing] == ["manifest.json"]
    assert recorded.tested.objects == {"cat": 4, "dog": 4}
    interval = recorded.tested.intervals["bbox.AP"]
    found = rows(write_card(run).read_text())
    assert found["AP"][0] == f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    assert len(found["AP"]) == 2  # boxes and masks
    assert found["dog"][0] == "4"
    assert found["parameters"] == [f"{recorded.parameters:,}"]
    assert found["tested on"] == ["old_coco:train", "4", "8"]
    assert found["attention"][0].startswith("old_coco:train")  # trained on, too


def test_what_is_missing_or_no_longer_true_gives_no_figure(run) -> None:
    file = run / "test" / "result.json"
    result = json.loads(file.read_text())
    file.write_text(json.dumps(result | {"bbox": result["bbox"] | {"AP": 0.5}}))
    tested: Any = read_run(run).tested
    assert (tested.intervals, tested.objects) == ({}, None)  # the labels have changed
    (run / "test" / "detections.json").unlink()
    tested = read_run(run).tested
    assert (tested.intervals, "detections.json" in (tested.no_intervals or "")) == ({}, True)
    file.write_text(json.dumps(result | {"weights": {"iteration": 30}}))
    recorded = read_run(run)
    assert recorded.tested is None  # figures of other weights are not those of these
    assert any("test/result.json is of iteration 30" in line for line in recorded.missing)
    assert rows(write_card(run).read_text())["accuracy"] == ["not measured"]


def test_a_card_that_was_edited_is_left_alone(run, resdet) -> None:
    assert resdet("card", run, "--licence", "my own terms").status == 0
    card = run / "README.md"
    assert not is_edited(card)
    assert resdet("card", run).status == 0  # again, with the licence that it stated
    assert {"license": "other", "license_name": "my own terms"}.items() <= ModelCard.load(card).data.to_dict().items()
    card.write_text(card.read_text().replace("Intended use", "Use"))
    assert "--overwrite" in resdet("card", run).err
    assert resdet("card", run, "--overwrite").status == 0
    assert not is_edited(card)
    assert "'classification'" in resdet("card", OLD / "format1" / "classifier").err


def test_licences_of_the_weights_that_training_starts_from(run) -> None:
    config = DetectionConfig(backbone=DetectorBackboneConfig(name="resnet18", weights="torchvision"))
    timm = DetectionConfig(backbone=DetectorBackboneConfig(name="timm:resnet18", weights="timm"))
    zoo, mine = (replace(config, init=init) for init in ("faster_rcnn_R_50_FPN_3x", "output/mine"))
    expected = [("torchvision", "BSD-3-Clause"), ("timm", "apache-2.0"), (zoo.init, "CC BY-SA 3.0"), (mine.init, None)]
    assert [origin_of(one) for one in (config, timm, zoo, mine)] == expected
    recorded = read_run(run)
    started = replace(recorded, checkpoint=replace(recorded.checkpoint, config=config))
    table: Any = licence_section(started, None).blocks[0]
    assert [row[1] for row in table.rows] == ["not stated", "torchvision: BSD-3-Clause"]

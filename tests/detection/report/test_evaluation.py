import io
import json
import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.evaluation.coco import COCO_NUMBERS, KEYPOINT_NUMBERS
from detection.masks import to_rle
from detection.report.calibration import Wanted
from detection.report.evaluation import Evaluation, write_evaluation
from detection.tasks.evaluate import name_files

SIZE = (60, 80)
CATEGORIES = {3: "cat", 18: "dog", 90: "sheep <&>"}


@pytest.fixture
def write(tmp_path):
    """Writes JSON into a file of this name."""

    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return path

    return write


def make_truth(*, images: int = 12) -> dict[str, Any]:
    rng, annotations = np.random.default_rng(0), list[dict[str, Any]]()
    for image in np.repeat(range(1, images + 1), 4).tolist():
        x, y, width, height = rng.uniform([0, 0, 8, 8], [50, 30, 30, 28]).round(2).tolist()
        own = {"id": len(annotations) + 1, "image_id": image, "category_id": int(rng.choice([*CATEGORIES]))}
        own |= {"area": round(0.7 * width * height, 3), "iscrowd": int(rng.random() < 0.1)}
        polygon = [x, y, x + width, y, x + width, y + height]
        annotations.append(own | {"bbox": [x, y, width, height], "segmentation": [polygon]})
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 60, "width": 80} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": name} for i, name in CATEGORIES.items()],
        "annotations": annotations,
    }


def find(truth: dict[str, Any], *, skill: float, seed: int = 1, masks: bool = False) -> list[dict[str, Any]]:
    """Returns moved objects, some under another name, and false alarms, as another program would write them."""
    rng, found = np.random.default_rng(seed), list[dict[str, Any]]()
    for annotation in truth["annotations"]:
        if rng.random() > skill:
            continue
        x, y, width, height = (np.array(annotation["bbox"]) + rng.normal(0, 3 * (1 - skill), 4)).tolist()
        category = annotation["category_id"] if rng.random() < skill else 18
        score = float(rng.uniform(0.4, 1))
        entry: dict[str, Any] = {"image_id": annotation["image_id"], "category_id": category, "score": score}
        if masks:
            mask = to_rle([[x, y, x + width, y, x + width, y + height]], SIZE, may_be_empty=True)
            found.append(entry | {"segmentation": {"size": [*SIZE], "counts": mask["counts"].decode()}})
        else:
            found.append(entry | {"bbox": [x, y, width, height]})
            found.append(entry | {"bbox": [40.25, 20, 20, 20], "score": 0.3 * score})
    return found


def official(
    truth: Path, detections: Sequence[dict[str, Any]], iou_type: str = "bbox", *, sigmas: Any = None
) -> list[float | None]:
    """Returns pycocotools' numbers of the same files; None for its -1."""
    with redirect_stdout(io.StringIO()):
        coco: Any = COCO(str(truth))
        kind: Any = iou_type
        evaluation: Any = COCOeval(coco, coco.loadRes([dict(entry) for entry in detections]), kind)
        evaluation.params.kpt_oks_sigmas = sigmas
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [None if value < 0 else float(value) for value in evaluation.stats]


def first(evaluation: Evaluation, method: str) -> dict[str, Any]:
    return evaluation.numbers["variants"][method]["results"][0]


def twelve(evaluation: Evaluation, method: str, section: str = "bbox") -> list[float | None]:
    return [first(evaluation, method)[section][name] for name in COCO_NUMBERS]


def test_boxes_and_masks_are_judged_as_by_pycocotools_and_compared_by_what_both_have(write, tmp_path) -> None:
    truth = make_truth()
    gt, plain, masked = write("gt.json", truth), find(truth, skill=0.5), find(truth, skill=0.9, masks=True)
    files = {"plain": [write("plain.json", plain)], "masks": [write("masks.json", masked)]}
    found = write_evaluation(gt, files, tmp_path / "out")
    assert twelve(found, "plain") == pytest.approx(official(gt, plain), abs=1e-9)
    assert twelve(found, "masks", "segm") == pytest.approx(official(gt, masked, "segm"), abs=1e-9)
    assert "mask AP" in found.page.read_text()
    (pair,) = found.numbers["pairs"]
    assert pair["detectors"]["AP"]["value"] > 0
    assert not [name for name in pair["detectors"] if "mask" in name]
    assert found.numbers["not_compared"] == {"masks": ["masks"]}
    assert "Not compared: masks, which only masks has" in found.tables
    assert found.tables.splitlines()[-1] in found.page.with_suffix(".md").read_text()


def test_keypoints_are_judged_where_detections_have_them(write, tmp_path) -> None:
    truth, rng = make_truth(), np.random.default_rng(0)
    for category in truth["categories"]:
        category["keypoints"] = [f"k{number}" for number in range(17)]
    detections = find(truth, skill=0.9)
    for entry in (*truth["annotations"], *detections):
        x, y, width, height = entry["bbox"]
        places = np.linspace([x, y], [x + width, y + height], 17) + rng.normal(0, 1, (17, 2))
        entry["keypoints"] = np.column_stack([places, np.full(17, 2)]).ravel().tolist()
        entry["num_keypoints"] = 17
    gt, files, sigmas = write("gt.json", truth), {"a": [write("a.json", detections)]}, [0.1] * 17
    found = write_evaluation(gt, files, tmp_path / "out", keypoint_sigmas=sigmas)
    without_boxes = [{key: value for key, value in entry.items() if key != "bbox"} for entry in detections]
    numbers = first(found, "a")["keypoints"]
    expected = official(gt, without_boxes, "keypoints", sigmas=np.array(sigmas))
    assert [numbers[name] for name in KEYPOINT_NUMBERS] == pytest.approx(expected, abs=1e-9)
    assert "keypoint AP" in found.page.read_text()
    assert "COCO keypoint AP" in found.tables
    default = first(write_evaluation(gt, files, tmp_path / "default"), "a")
    assert default["keypoints"]["AP"] < numbers["AP"]  # 0.05 is stricter
    for wrong, message in ((gt, "each of the 17 keypoints"), (write("plain.json", make_truth()), "plain.json lacks")):
        with pytest.raises(ValueError, match=message):
            write_evaluation(wrong, files, tmp_path / "out", keypoint_sigmas=[0.1])


def test_a_file_written_by_hand_as_a_library_does(write, tmp_path) -> None:
    """Numbers as text, further keys, images without file names and sizes, categories in any order."""
    own = {"bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0}
    truth = {
        "info": {"year": 2020},
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 2, "name": "dog", "supercategory": "animal"}, {"id": 1, "name": "cat"}],
        "annotations": [{"id": 9 + i, "image_id": i, "category_id": i, **own} for i in (1, 2)],
    }
    detections = [
        {"image_id": 1, "category_id": 1, "bbox": ["0", "0", "10", "10"], "score": "0.9", "id": 1, "area": 100},
        {"image_id": 2, "category_id": 2, "bbox": [0, 0, 10, 4], "score": 0.8, "segmentation": []},
    ]
    found = write_evaluation(write("gt.json", truth), {"lib": [write("lib.json", detections)]}, tmp_path / "out")
    assert found.numbers["class_names"] == ["cat", "dog"]
    per_class = first(found, "lib")["bbox"]["per_class"]
    assert (per_class["cat"]["AP"], per_class["dog"]["AP"]) == (pytest.approx(1), 0)
    assert "VOC AP" in found.tables


def test_an_injected_gain_is_claimed_and_a_copy_is_not(write, tmp_path) -> None:
    truth = make_truth(images=60)
    weak, strong = (
        [write(f"{name}{seed}.json", find(truth, skill=skill, seed=seed)) for seed in range(3)]
        for name, skill in (("weak", 0.6), ("strong", 0.9))
    )
    files, wanted = {"weak": weak, "copy": weak, "strong": strong}, Wanted(precision=0.5, recall=0.5)
    found = write_evaluation(write("gt.json", truth), files, tmp_path / "out", wanted=wanted)
    pairs = {(pair["a"], pair["b"]): pair["methods"] for pair in found.numbers["pairs"]}
    assert pairs["weak", "copy"]["AP"]["value"] == 0
    assert not any(claim["proven"] for claim in pairs["weak", "copy"].values())
    assert pairs["weak", "strong"]["AP"]["proven"]
    assert found.numbers["variants"]["strong"]["seeds"] == [1, 2, 3]
    assert "strong" in found.tables.splitlines()[-3]  # the verdict
    assert found.numbers["variants"]["strong"]["points"]["all classes"]["precision"]["precision"] >= 0.5


def test_detections_that_coco_leaves_out_are_told(write, tmp_path) -> None:
    many = [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5], "score": i / 200} for i in range(130)]
    said, gt = list[str](), write("gt.json", make_truth(images=2))
    found = write_evaluation(gt, {"many": [write("many.json", many)]}, tmp_path / "out", say=said.append)
    assert first(found, "many")["left_out"] == 30
    assert [re.findall(r"\d+", line)[:2] for line in said] == [["30", "100"]]


def test_names_of_methods() -> None:
    named = {"a": [Path("x/a.json")], "b": [Path("c.json"), Path("d.json")]}
    assert name_files(["x/a.json", "b=c.json,d.json"]) == named
    for wrong in (["=a.json"], ["a="], ["x/a.json", "y/a.json"], ["b=c.json,./c.json"]):
        with pytest.raises(ValueError, match="--detections"):
            name_files(wrong)


def test_the_command_writes_page_markdown_and_numbers(write, tmp_path, resdet, succeeds) -> None:
    truth, out = make_truth(), tmp_path / "out"
    gt = write("gt.json", truth)
    a, b = (write(f"{name}.json", find(truth, skill=skill, seed=2)) for name, skill in (("a", 0.5), ("b", 0.95)))
    said = succeeds("evaluate", "--gt", gt, "--detections", a, f"second={b}", "--output-dir", out)
    assert str(out / "evaluation.html") in said
    assert list(json.loads((out / "evaluation.json").read_text())["variants"]) == ["a", "second"]
    html = (out / "evaluation.html").read_text()
    assert "sheep &lt;&amp;&gt;" in html
    headings = re.findall(r"<h2[^>]*>([^<]+)</h2>", html)
    assert headings[:2] == ["Results", "Types of errors"]
    assert {"Curves", "Per class", "Confusions", "Scores"} <= {*headings}
    assert (out / "evaluation.md").is_file()
    bad = write("bad.json", [{"image_id": 99, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 1}])
    outcome = resdet("evaluate", "--gt", gt, "--detections", bad, "--output-dir", out)
    assert outcome.status == 1
    assert "bad.json" in outcome.err
    assert "image_id is 99" in outcome.err


@pytest.mark.slow
def test_the_page_is_readable_in_a_browser(write, tmp_path, assert_readable) -> None:
    truth, skills = make_truth(), {"cascade_rcnn_swin_large_fpn": 0.9, "b": 0.6, "c": 0.5}
    files = {
        name: [write(f"{name}{seed}.json", find(truth, skill=skill, seed=seed)) for seed in range(2)]
        for name, skill in skills.items()
    }
    assert_readable(write_evaluation(write("gt.json", truth), files, tmp_path / "out").page)

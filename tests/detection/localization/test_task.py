"""Mirrors detection/localization/task.py: one whole run on pictures with one coloured square each."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torchvision.models import resnet18

from detection.boxes import iou
from detection.classification.config import ClassificationConfig
from detection.classification.task import build_classifier
from detection.config.detection import AnchorConfig
from detection.config.sections import BackboneConfig, DataConfig, SolverConfig
from detection.data.cards import load_dataset
from detection.data.proposals import read_proposals
from detection.engine.checkpoint import read_checkpoint, write_converted
from detection.localization.config import ClassRPNConfig, LocalizationConfig, LocalizerConfig
from detection.localization.model import ClassRPN, RegionClassifier
from detection.localization.task import format_errors, run_localization
from detection.structures import Detections

SIDE = 64
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 40), "blue": (40, 60, 220)}


def draw(root: Path, split: str, count: int, seed: int) -> None:
    """A VOC split: grey noise and one square, about 28 pixels wide, in one of the four quarters; the last has none."""
    random, stems = np.random.default_rng(seed), [f"{split}{number}" for number in range(count)]
    for number, stem in enumerate(stems):
        name, side = list(COLOURS)[number % len(COLOURS)], int(random.integers(26, 31))
        corners = random.integers(0, 2, 2)
        x, y = (int(corner * SIDE // 2 + random.integers(0, SIDE // 2 - side + 1)) for corner in corners)
        pixels = random.integers(100, 156, (SIDE, SIDE, 3), dtype=np.uint8)
        pixels[y : y + side, x : x + side] = COLOURS[name]
        objects = [(name, x + 1, y + 1, x + side, y + side)] if number + 1 < count else []
        write_image(root, stem, pixels, objects)
    (root / "ImageSets" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))


CORNERS = "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
OBJECT = f"<object><name>{{}}</name><bndbox>{CORNERS}</bndbox></object>"


def write_image(root: Path, stem: str, pixels: Any, objects: Sequence[tuple[str, int, int, int, int]]) -> None:
    for part in ("JPEGImages", "Annotations", "ImageSets"):
        (root / part).mkdir(exist_ok=True)
    Image.fromarray(pixels).save(root / "JPEGImages" / f"{stem}.png")
    height, width, _ = pixels.shape
    size = f"<size><height>{height}</height><width>{width}</width></size>"
    boxes = "".join(OBJECT.format(*own) for own in objects)
    (root / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{boxes}</annotation>")


def write_card(folder: Path, splits: Any = (), classes: Sequence[str] = tuple(COLOURS), **keys: Any) -> None:
    described = {split: {"list": f"ImageSets/{split}.txt"} for split in ("train", "val")} | dict(splits)
    card = {"format": "voc", "root": str(folder), "classes": list(classes), "splits": described, **keys}
    (folder / "squares.yaml").write_text(yaml.safe_dump(card))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("squares")
    draw(folder, "train", 25, seed=0)
    draw(folder, "val", 13, seed=1)
    write_card(folder)
    torch.manual_seed(0)
    torch.save(resnet18(num_classes=len(COLOURS)).state_dict(), folder / "classifier.pth")
    return folder


@pytest.fixture
def copy(root, tmp_path) -> Path:
    folder = Path(shutil.copytree(root, tmp_path / "root"))
    write_card(folder)
    return folder


def make_config(root: Path, test: str = "val", **changes: Any) -> LocalizationConfig:
    settings: Any = {"crop": SIDE, "crop_shorter_side": SIDE, "scales": (SIDE, 80)}
    settings |= {"proposals": 4, "rcnn_iterations": 2}
    grown: Any = {"SmallestMaxSize": {"max_size": [SIDE, SIDE + 4]}}
    augment = (grown, {"RandomCrop": {"height": SIDE, "width": SIDE}}, {"HorizontalFlip": {"p": 0.5}})
    sets: Any = {"train": (f"{root}/squares.yaml:train",), "test": (f"{root}/squares.yaml:{test}",), "root": str(root)}
    sizes: Any = {"shorter_side": SIDE, "longer_side": SIDE, "group_by_aspect": False, "workers": 0}
    return LocalizationConfig(
        backbone=BackboneConfig(name="resnet18", norm="bn"),
        anchors=AnchorConfig(sizes=(28.0,), ratios=(1.0,)),
        rpn=ClassRPNConfig(channels=32, allow_outside=True, positive_iou=0.5, samples_per_image=4, min_size=4.0),
        data=DataConfig(**sets, **sizes, augment=augment),
        solver=SolverConfig(iterations=24, images_per_step=12, base_lr=0.02, steps=(), checkpoint_every=0, log_every=4),
        localization=LocalizerConfig(rcnn_steps=(), **settings | changes),
        device="cpu",
    )


@pytest.fixture(scope="module")
def config(root) -> LocalizationConfig:
    return make_config(root, classifier=str(root / "classifier.pth"))


def with_classifier(config: LocalizationConfig, classifier: Path | None) -> LocalizationConfig:
    own = None if classifier is None else str(classifier)
    return replace(config, localization=replace(config.localization, classifier=own))


def run(config: LocalizationConfig, output: Path) -> tuple[dict[str, Any], list[str]]:
    """The result, which is the file's, and what was said, up to the colons."""
    said = list[str]()
    result = run_localization(config, output, say=said.append)
    assert result == json.loads((output / "localization.json").read_text())
    return result, [text.partition(":")[0] for text in said]


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    run(config, output := tmp_path_factory.mktemp("runs") / "finished")
    return output


@pytest.fixture
def unjudged(finished, tmp_path) -> Path:
    """A copy of it whose last step is left."""
    output = Path(shutil.copytree(finished, tmp_path / "run"))
    (output / "localization.json").unlink()
    return output


def rows_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in result["rows"]}


@pytest.mark.slow
class TestWholeRun:
    def test_errors(self, config, finished) -> None:
        result, said = run(config, finished)
        assert said == [f"step {number} is done" for number in (1, 2, 3, 4)]  # nothing is left
        rows = rows_of(result)
        assert [row["paper"] for row in rows.values()] == [0.133, 0.117, 0.144, None, 0.106]
        assert result["images"] == 12  # the picture without a square is left out
        # The best anchor without looking is right in one of four pictures: an error of 0.75.
        for name in ("RPN, 1-crop, oracle", "RPN, dense, oracle"):
            assert rows[name]["top5_error"] == rows[name]["top1_error"] <= 0.3
            assert rows[name]["top5_class_error"] == 0
        # Three guesses of three classes hold the right one, whose box is the oracle's; the first guess is a random
        # classifier's.
        for name in ("RPN, dense", "RPN + R-CNN, dense"):
            oracle, predicted = rows[f"{name}, oracle"], rows[f"{name}, predicted"]
            assert (predicted["top5_error"], predicted["top5_class_error"]) == (oracle["top5_error"], 0)
            assert predicted["top1_error"] >= oracle["top1_error"]
        assert rows["RPN, dense, predicted"]["top1_error"] > rows["RPN, dense, oracle"]["top1_error"]
        rows["RPN, dense, predicted"].update(top5_error=None, top1_error=0.123)
        lines = format_errors(result).splitlines()
        assert (len(lines), lines[0]) == (7, "localisation error (%), 12 images")
        assert lines[4].split() == ["RPN,", "dense,", "predicted", "-", "12.3", "0.0", "14.4"]
        assert lines[5].split()[-1] == "-"

    def test_stored_proposals_are_of_the_images_class(self, config, finished) -> None:
        index, _ = load_dataset(config.data.train, Path(str(config.data.root)))
        stored = read_proposals(finished / "proposals.safetensors", index)
        assert [len(stored.of(row)) for row in range(25)] == [4] * 24 + [0]  # no square, no class
        first = torch.stack([stored.of(row).boxes[0] for row in range(24)])
        assert (iou(first, index.boxes).diagonal() >= 0.5).float().mean() >= 0.7
        assert all((stored.of(row).scores.diff() <= 0).all() for row in range(24))
        for name, iterations in (("rpn", 24), ("rcnn", 2)):
            checkpoint = read_checkpoint(finished / name, LocalizationConfig)
            assert (checkpoint.class_names, checkpoint.iteration) == (tuple(COLOURS), iterations)

    def test_goes_on_from_step_2(self, config, finished, tmp_path) -> None:
        shutil.copytree(finished / "rpn", tmp_path / "rpn")
        torch.manual_seed(12345)
        result, said = run(config, tmp_path)
        assert result == run(config, finished)[0]
        assert said == ["step 1 is done", "step 2 of 4", "step 3 of 4", "step 4 of 4"]
        for name in ("proposals.safetensors", "rcnn/checkpoints/0000002.safetensors"):
            again, expected = load_file(tmp_path / name), load_file(finished / name)
            assert not [key for key, tensor in expected.items() if not torch.equal(again[key], tensor)]

    def test_a_run_counts_as_its_weights_and_none_leaves_rows_empty(self, config, finished, unjudged, tmp_path) -> None:
        described, expected = ClassificationConfig(backbone=config.backbone), rows_of(run(config, finished)[0])
        classifier: Any = build_classifier(described, len(COLOURS))
        classifier.network.load_torchvision(torch.load(str(config.localization.classifier), weights_only=True))
        write_converted(tmp_path / "classifier", described, tuple(COLOURS), classifier.state_dict())
        assert rows_of(run(with_classifier(config, tmp_path / "classifier"), unjudged)[0]) == expected
        (unjudged / "localization.json").unlink()
        for name, row in rows_of(run(with_classifier(config, None), unjudged)[0]).items():
            empty = {key: None for key in ("top5_error", "top1_error", "top5_class_error") if "predicted" in name}
            assert row == expected[name] | empty

    def test_other_anchors_or_classes_than_in_training_are_refused(self, config, finished, copy, tmp_path) -> None:
        shutil.copytree(finished / "rpn", tmp_path / "run" / "rpn")
        with pytest.raises(ValueError, match=r"anchors\.sizes is \[30\.0\] here, and was \[28\.0\]"):
            run(replace(config, anchors=AnchorConfig(sizes=(30.0,), ratios=(1.0,))), tmp_path / "run")
        write_card(copy, classes=("green", "red", "blue"))
        with pytest.raises(ValueError, match=r"was trained on 3 classes .*'red', 'green'"):
            run(make_config(copy), tmp_path / "run")


def refused(config: LocalizationConfig, output: Path, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        run(config, output / "run")
    assert not (output / "run").exists()


class TestWithoutGroundTruth:
    NUMBERS = "n1 1 other\nred 30 red_thing\ngreen 7 green_thing\nblue 900 blue_thing\n"
    BARE = (("bare", {"list": "ImageSets/bare.txt", "annotations": "none", "first_pixel": 0}),)

    @pytest.fixture
    def bare(self, copy) -> LocalizationConfig:
        """The squares, with those of val from the last to the first as a test set without annotations."""
        (copy / "ImageSets" / "bare.txt").write_text("".join(f"val{n} {13 - n}\n" for n in reversed(range(13))))
        (copy / "devkit" / "data").mkdir(parents=True)
        (copy / "devkit" / "data" / "map_clsloc.txt").write_text(self.NUMBERS)
        write_card(copy, self.BARE)
        return make_config(copy, test="bare", classifier=str(copy / "classifier.pth"))

    @pytest.mark.parametrize("trained", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_file(self, trained, bare, copy, tmp_path, request, monkeypatch) -> None:
        # Two steps make no R-CNN; this one leaves the RPN's boxes, which are right if it is trained, in their order.
        monkeypatch.setattr(RegionClassifier, "predict", lambda _, __, boxes, labels: (torch.ones(len(boxes)), boxes))
        output = request.getfixturevalue("unjudged") if trained else tmp_path / "run"
        if not trained:
            (copy / "ImageSets" / "train.txt").write_text("train0\ntrain1\ntrain2\n")
            (copy / "ImageSets" / "bare.txt").write_text("val1 2\nval0 1\n")
            bare = replace(bare, solver=replace(bare.solver, iterations=1, images_per_step=2))
            bare = replace(bare, localization=replace(bare.localization, rcnn_iterations=1))
        result, _ = run(bare, output)
        file = output / "submission" / "clsloc_bare.txt"
        count = 13 if trained else 2
        assert result == {"images": count, "rows": [], "submission": str(file)}
        assert format_errors(result) == f"guesses at {count} images without ground truth: {file}"
        truth, _ = load_dataset((f"{bare.data.root}/squares.yaml:val",), Path(str(bare.data.root)))
        lines, hits = file.read_text().splitlines(), 0
        for row, line in enumerate(reversed(lines)):
            values = list(map(int, line.split(" ")))
            guesses = {values[start]: values[start + 1 : start + 5] for start in range(0, 15, 5)}
            assert (len(values), set(guesses)) == (15, {30, 7, 900})
            assert all(0 <= x1 <= x2 < SIDE and 0 <= y1 <= y2 < SIDE for x1, y1, x2, y2 in guesses.values())
            target = truth.target(row)
            for label, box in zip(target.labels.tolist(), target.boxes, strict=True):
                left, top, right, bottom = guesses[(30, 7, 900)[label]]
                hits += bool(iou(torch.tensor([[left, top, right + 1.0, bottom + 1.0]]), box[None]) >= 0.5)
        assert len(lines) == count
        assert hits >= 9 or not trained  # of 12 squares; of another image or class, one in four

    def test_needs_a_classifier_the_devkit_and_one_whole_list(self, bare, copy, tmp_path) -> None:
        refused(with_classifier(bare, None), tmp_path, r"localization\.classifier is null")
        two = (*bare.data.test, f"{copy}/squares.yaml:val")
        refused(replace(bare, data=replace(bare.data, test=two)), tmp_path, "judges one whole list")
        write_card(copy, self.BARE, bad_images="drop")
        refused(bare, tmp_path, "bad_images: drop")
        write_card(copy, self.BARE)
        file = copy / "devkit" / "data" / "map_clsloc.txt"
        file.write_text(self.NUMBERS.replace("green 7 green_thing\n", ""))
        refused(bare, tmp_path, r"map_clsloc\.txt has no number for the class 'green'.*image-net\.org")
        file.unlink()
        refused(bare, tmp_path, r"map_clsloc\.txt can't be read.*image-net\.org")


def test_boxes_found_in_a_view_are_boxes_of_the_stored_image(tmp_path, monkeypatch) -> None:
    """Two wide pictures; the object fills the square that a 1-crop test sees."""
    # The shorter side becomes 80, so the crop of 64 is 38.4 pixels wide, in the middle.
    pixels, output = np.zeros((48, 80, 3), np.uint8), tmp_path / "run"
    for stem in ("train", "val"):
        write_image(tmp_path, stem, pixels, [("red", 22, 6, 59, 43)])
        (tmp_path / "ImageSets" / f"{stem}.txt").write_text(f"{stem}\n")
    write_card(tmp_path)
    config = make_config(tmp_path, crop_shorter_side=80, rcnn_iterations=1)
    config = replace(config, solver=replace(config.solver, iterations=1, images_per_step=2))

    def errors(*share: float) -> list[float]:
        """Of the oracles, where the RPN proposes in every view the box with these shares of its sides, and no other."""

        def propose(_: ClassRPN, hidden: Any, sizes: Any, classes: Any) -> list[Detections]:
            (height, width), (labels,) = sizes[0].tolist(), classes
            count = len(labels) if share else 0
            boxes = torch.tensor([share] * count, dtype=torch.float32).reshape(-1, 4)
            sides = torch.tensor([width, height, width, height])
            return [Detections(boxes=boxes * sides, scores=torch.ones(count), labels=labels[:count])]

        monkeypatch.setattr(ClassRPN, "propose", propose)
        rows = rows_of(run(config, output)[0])
        (output / "localization.json").unlink()
        return [row["top1_error"] for name, row in rows.items() if "oracle" in name]

    # The middle of the image, 40 of 80 and 40 of 48 pixels; in the crop a fourth of that area.
    assert errors(0.25, 1 / 12, 0.75, 11 / 12)[:2] == [1, 0]
    index, _ = load_dataset(config.data.train, tmp_path)
    stored = read_proposals(output / "proposals.safetensors", index)
    assert len(stored.boxes) == 1  # the same box in both views
    torch.testing.assert_close(stored.boxes, torch.tensor([[20.0, 4.0, 60.0, 44.0]]), atol=0.05, rtol=0)
    assert errors(0, 0, 1, 1)[:2] == [0, 1]  # the whole image has IoU 0.38
    write_image(tmp_path, "val", pixels, [("red", 1, 1, 80, 40)])
    assert errors() == [0, 0, 0]  # no proposal is a guess at the whole image


def test_mistakes_are_named_before_any_time_is_lost(config, copy, tmp_path) -> None:
    torch.save(resnet18(num_classes=5).state_dict(), tmp_path / "five.pth")
    torch.save({"fc.bias": torch.zeros(3)}, tmp_path / "other.pth")
    described = ClassificationConfig(backbone=config.backbone)
    write_converted(tmp_path / "two", described, ("a", "b"), build_classifier(described, 2).state_dict())
    for name, match in (
        ("five.pth", r"five\.pth' tells 5 classes apart, the data set has 3"),
        ("other.pth", "do not fit"),
        ("two", r"was trained on 2 classes \('a', 'b'\), the data set has 3"),
    ):
        refused(with_classifier(config, tmp_path / name), tmp_path, match)
    refused(replace(config, data=replace(config.data, test=())), tmp_path, r"data\.test is empty")
    (copy / "ImageSets" / "val.txt").write_text("val12\n")
    refused(make_config(copy), tmp_path, "no image of .*squares.yaml:val has an object")
    write_image(copy, "train3", np.zeros((SIDE, SIDE, 3), np.uint8), [(name, 1, 1, 9, 9) for name in ("red", "blue")])
    refused(make_config(copy), tmp_path, r"train3\.png has objects of the classes blue, red")
    for name, value, match in (
        ("crop", 300, r"crop_shorter_side 256 must be at least the crop's side 300"),
        ("scales", (), r"scales\n.*at least 1"),
        ("scales", (256, 224), r"scales takes one or more rising"),
        ("proposals", 0, r"proposals\n.*greater than or equal to 1"),
    ):
        with pytest.raises(ValueError, match=match):
            replace(LocalizerConfig(), **{name: value})

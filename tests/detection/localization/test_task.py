"""Mirrors detection/localization/task.py: one whole run on pictures with one coloured square each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import resnet18

from backbones.classifier import Classifier
from detection.boxes import iou
from detection.classification.config import ClassificationConfig
from detection.classification.task import build_classifier
from detection.config.detection import AnchorConfig
from detection.config.load import load_config
from detection.config.sections import BackboneConfig, DataConfig, SolverConfig
from detection.data.cards import load_dataset
from detection.data.proposals import read_proposals
from detection.data.transforms import Augment, Resize
from detection.engine.checkpoint import read_checkpoint, write_converted
from detection.localization.config import ClassRPNConfig, LocalizationConfig, LocalizerConfig
from detection.localization.model import ClassRPN, RegionClassifier
from detection.localization.task import ROWS, format_errors, run_localization
from detection.structures import Detections, Target

SIDE = 64
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 40), "blue": (40, 60, 220)}


def draw(root: Path, split: str, count: int, seed: int) -> None:
    """A VOC split: grey noise and one square, about 28 pixels wide, in one of the four quarters; the last has none."""
    random = np.random.default_rng(seed)
    stems = [f"{split}{number}" for number in range(count)]
    for number, stem in enumerate(stems):
        name = list(COLOURS)[number % len(COLOURS)]
        side = int(random.integers(26, 31))
        x, y = (
            int(corner * SIDE // 2 + random.integers(0, SIDE // 2 - side + 1)) for corner in random.integers(0, 2, 2)
        )
        pixels = random.integers(100, 156, (SIDE, SIDE, 3), dtype=np.uint8)
        pixels[y : y + side, x : x + side] = COLOURS[name]
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{stem}.png")
        objects = [(name, (x + 1, y + 1, x + side, y + side))] if number + 1 < count else []
        write_xml(root / "Annotations" / f"{stem}.xml", objects)
    (root / "ImageSets" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))


def write_xml(
    path: Path, objects: Sequence[tuple[str, tuple[int, int, int, int]]], size: tuple[int, int] = (SIDE, SIDE)
) -> None:
    tree = ElementTree.Element("annotation")
    node = ElementTree.SubElement(tree, "size")
    for key, value in zip(("height", "width"), size, strict=True):
        ElementTree.SubElement(node, key).text = str(value)
    for name, box in objects:
        node = ElementTree.SubElement(tree, "object")
        ElementTree.SubElement(node, "name").text = name
        bounds = ElementTree.SubElement(node, "bndbox")
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ElementTree.SubElement(bounds, key).text = str(value)
    ElementTree.ElementTree(tree).write(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squares")
    for part in ("JPEGImages", "Annotations", "ImageSets"):
        (folder / part).mkdir()
    draw(folder, "train", 25, seed=0)
    draw(folder, "val", 13, seed=1)
    write_card(folder, "train", "val")
    torch.manual_seed(0)
    torch.save(resnet18(num_classes=len(COLOURS)).state_dict(), folder / "classifier.pth")
    return folder


def write_card(folder: Path, *splits: str) -> None:
    described = {split: {"list": f"ImageSets/{split}.txt"} for split in splits}
    card = {"format": "voc", "root": str(folder), "classes": list(COLOURS), "splits": described}
    (folder / "squares.yaml").write_text(yaml.safe_dump(card))


def make_config(root: Path, **localization: Any) -> LocalizationConfig:
    settings: dict[str, Any] = {
        "crop": SIDE,
        "crop_shorter_side": SIDE,
        "scales": (SIDE, 80),
        "proposals": 4,
        "rcnn_iterations": 2,
    }
    return LocalizationConfig(
        backbone=BackboneConfig(name="resnet18", norm="bn"),
        anchors=AnchorConfig(sizes=(28.0,), ratios=(1.0,)),
        rpn=ClassRPNConfig(channels=32, allow_outside=True, positive_iou=0.5, samples_per_image=4, min_size=4.0),
        data=DataConfig(
            train=(f"{root}/squares.yaml:train",),
            test=(f"{root}/squares.yaml:val",),
            root=str(root),
            shorter_side=SIDE,
            longer_side=SIDE,
            augment=(
                {"SmallestMaxSize": {"max_size": [SIDE, SIDE + 4]}},
                {"RandomCrop": {"height": SIDE, "width": SIDE}},
                {"HorizontalFlip": {"p": 0.5}},
            ),
            group_by_aspect=False,
            workers=0,
        ),
        solver=SolverConfig(iterations=24, images_per_step=12, base_lr=0.02, steps=(), checkpoint_every=0, log_every=4),
        localization=LocalizerConfig(rcnn_steps=(), **settings | localization),
        device="cpu",
    )


@pytest.fixture(scope="module")
def config(root: Path) -> LocalizationConfig:
    return make_config(root, classifier=str(root / "classifier.pth"))


@pytest.fixture(scope="module")
def finished(config: LocalizationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing interrupted."""
    output = tmp_path_factory.mktemp("runs") / "finished"
    run_localization(config, output, say=lambda text: None)
    return output


def result_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "localization.json").read_text())


def rows_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in result["rows"]}


@pytest.mark.slow
class TestWholeRun:
    """What the four steps leave behind."""

    def test_rpn_finds_the_squares(self, finished: Path) -> None:
        # The best anchor without looking is right in one of four pictures: an error of 0.75.
        rows = rows_of(result_of(finished))
        for name in ("RPN, 1-crop, oracle", "RPN, dense, oracle"):
            assert rows[name]["top5_error"] == rows[name]["top1_error"] <= 0.3
            assert rows[name]["top5_class_error"] == 0

    def test_rows_are_those_of_the_paper(self, finished: Path) -> None:
        result = result_of(finished)
        assert [(row["name"], row["paper"]) for row in result["rows"]] == [
            ("RPN, 1-crop, oracle", 0.133),
            ("RPN, dense, oracle", 0.117),
            ("RPN, dense, predicted", 0.144),
            ("RPN + R-CNN, dense, oracle", None),
            ("RPN + R-CNN, dense, predicted", 0.106),
        ]
        assert result["images"] == 12  # the picture without a square is left out

    def test_predicted_classes(self, finished: Path) -> None:
        # Three guesses of three classes hold the right one, whose box is the oracle's; the first guess is a random
        # classifier's.
        rows = rows_of(result_of(finished))
        for name in ("RPN, dense", "RPN + R-CNN, dense"):
            oracle, predicted = rows[f"{name}, oracle"], rows[f"{name}, predicted"]
            assert (predicted["top5_error"], predicted["top5_class_error"]) == (oracle["top5_error"], 0)
            assert predicted["top1_error"] >= oracle["top1_error"]
        assert rows["RPN, dense, predicted"]["top1_error"] > rows["RPN, dense, oracle"]["top1_error"]

    def test_stored_proposals_are_of_the_images_class(self, config: LocalizationConfig, finished: Path) -> None:
        index, _ = load_dataset(config.data.train, Path(str(config.data.root)))
        stored = read_proposals(finished / "proposals.safetensors", index)
        counts = [len(stored.of(row)) for row in range(len(index))]
        assert set(counts[:-1]) == {4}
        assert counts[-1] == 0  # no square, no class
        first = torch.stack([stored.of(row).boxes[0] for row in range(24)])
        assert (iou(first, index.boxes).diagonal() >= 0.5).float().mean() >= 0.7
        for row in range(24):
            scores = stored.of(row).scores
            assert torch.equal(scores, scores.sort(descending=True).values)

    def test_both_networks_know_their_classes(self, config: LocalizationConfig, finished: Path) -> None:
        for name, iterations in (("rpn", 24), ("rcnn", 2)):
            checkpoint = read_checkpoint(finished / name, LocalizationConfig)
            assert (checkpoint.class_names, checkpoint.iteration) == (tuple(COLOURS), iterations)

    def test_table(self, finished: Path) -> None:
        result = result_of(finished)
        rows_of(result)["RPN, dense, predicted"].update(top5_error=None, top1_error=0.123)
        lines = format_errors(result).splitlines()
        assert lines[0] == "localisation error (%), 12 images"
        assert lines[4].split() == ["RPN,", "dense,", "predicted", "-", "12.3", "0.0", "14.4"]
        assert lines[5].split()[-1] == "-"
        assert len(lines) == 7


@pytest.mark.slow
class TestGoingOn:
    """A second call does what is left."""

    def test_nothing_is_left(self, config: LocalizationConfig, finished: Path) -> None:
        said: list[str] = []
        assert run_localization(config, finished, say=said.append) == result_of(finished)
        assert [text.partition(":")[0] for text in said] == [f"step {number} is done" for number in (1, 2, 3, 4)]

    def test_from_step_2(self, config: LocalizationConfig, finished: Path, tmp_path: Path) -> None:
        shutil.copytree(finished / "rpn", tmp_path / "rpn")
        torch.manual_seed(12345)
        said: list[str] = []
        assert run_localization(config, tmp_path, say=said.append) == result_of(finished)
        assert [text.partition(":")[0] for text in said] == [
            "step 1 is done",
            "step 2 of 4",
            "step 3 of 4",
            "step 4 of 4",
        ]
        for name in ("proposals.safetensors", "rcnn/checkpoints/0000002.safetensors"):
            again, expected = load_file(tmp_path / name), load_file(finished / name)
            assert not [key for key, tensor in expected.items() if not torch.equal(again[key], tensor)]

    def test_classifier_of_a_run_counts_as_its_weights(
        self, config: LocalizationConfig, finished: Path, tmp_path: Path
    ) -> None:
        state = torch.load(str(config.localization.classifier), weights_only=True)
        classifier = build_classifier(ClassificationConfig(backbone=config.backbone), len(COLOURS))
        assert isinstance(classifier.network, Classifier)
        classifier.network.load_torchvision(state)
        write_converted(
            tmp_path / "classifier",
            ClassificationConfig(backbone=config.backbone),
            tuple(COLOURS),
            classifier.state_dict(),
        )
        output = Path(shutil.copytree(finished, tmp_path / "run"))
        (output / "localization.json").unlink()
        lengths = replace(config.localization, classifier=str(tmp_path / "classifier"))
        result = run_localization(replace(config, localization=lengths), output, say=lambda text: None)
        assert rows_of(result) == rows_of(result_of(finished))

    def test_classifier_of_a_run_with_other_classes(self, config: LocalizationConfig, tmp_path: Path) -> None:
        described = ClassificationConfig(backbone=config.backbone)
        write_converted(tmp_path / "run", described, ("a", "b"), build_classifier(described, 2).state_dict())
        lengths = replace(config.localization, classifier=str(tmp_path / "run"))
        with pytest.raises(ValueError, match=r"was trained on 2 classes \('a', 'b'\), the data set has 3"):
            run_localization(replace(config, localization=lengths), tmp_path / "out", say=lambda text: None)

    def test_without_a_classifier_its_rows_are_empty(
        self, config: LocalizationConfig, finished: Path, tmp_path: Path
    ) -> None:
        output = Path(shutil.copytree(finished, tmp_path / "run"))
        (output / "localization.json").unlink()
        lengths = replace(config.localization, classifier=None)
        rows = rows_of(run_localization(replace(config, localization=lengths), output, say=lambda text: None))
        expected = rows_of(result_of(finished))
        for name, row in rows.items():
            if "predicted" in name:
                assert [row[key] for key in ("top5_error", "top1_error", "top5_class_error")] == [None] * 3
            else:
                assert row == expected[name]

    def test_other_anchors_than_in_training_are_refused(
        self, config: LocalizationConfig, finished: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(finished / "rpn", tmp_path / "rpn")
        with pytest.raises(ValueError, match=r"anchors\.sizes is \[30\.0\] here, and was \[28\.0\]"):
            run_localization(replace(config, anchors=AnchorConfig(sizes=(30.0,), ratios=(1.0,))), tmp_path)

    def test_other_classes_than_in_training_are_refused(self, root: Path, finished: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(root, tmp_path / "root"))
        write_card(copy, "train", "val")
        card = copy / "squares.yaml"
        card.write_text(card.read_text().replace("- red\n- green\n", "- green\n- red\n"))
        shutil.copytree(finished / "rpn", tmp_path / "run" / "rpn")
        with pytest.raises(ValueError, match=r"was trained on 3 classes .*'red', 'green'"):
            run_localization(make_config(copy), tmp_path / "run", say=lambda text: None)


class TestWithoutGroundTruth:
    """Guesses at a test set without ground truth go into the file that the challenge's server reads."""

    NUMBERS = "n1 1 other\nred 30 red_thing\ngreen 7 green_thing\nblue 900 blue_thing\n"

    @pytest.fixture
    def bare(self, root: Path, tmp_path: Path) -> LocalizationConfig:
        """The squares, with those of val from the last to the first as a test set without annotations."""
        copy = Path(shutil.copytree(root, tmp_path / "root"))
        (copy / "ImageSets" / "bare.txt").write_text("".join(f"val{n} {13 - n}\n" for n in reversed(range(13))))
        (copy / "devkit" / "data").mkdir(parents=True)
        (copy / "devkit" / "data" / "map_clsloc.txt").write_text(self.NUMBERS)
        write_card(copy, "train", "val")
        self.change_card(copy, bare={"list": "ImageSets/bare.txt", "annotations": "none", "first_pixel": 0})
        config = make_config(copy, classifier=str(copy / "classifier.pth"))
        return replace(config, data=replace(config.data, test=(f"{copy}/squares.yaml:bare",)))

    def change_card(self, root: Path, keys: dict[str, Any] | None = None, **splits: Any) -> None:
        card = yaml.safe_load((root / "squares.yaml").read_text())
        card["splits"] |= splits
        (root / "squares.yaml").write_text(yaml.safe_dump(card | (keys or {})))

    def refused(self, config: LocalizationConfig, output: Path, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            run_localization(config, output / "run", say=lambda text: None)
        assert not (output / "run").exists()

    def test_file(
        self, bare: LocalizationConfig, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Two steps make no R-CNN; this one leaves the RPN's boxes, which are right, in their order.
        monkeypatch.setattr(
            RegionClassifier, "predict", lambda _, warped, boxes, labels: (torch.ones(len(boxes)), boxes)
        )
        output = Path(shutil.copytree(finished, tmp_path / "run"))
        (output / "localization.json").unlink()
        result = run_localization(bare, output, say=lambda text: None)
        file = output / "submission" / "clsloc_bare.txt"
        assert result == result_of(output) == {"images": 13, "rows": [], "submission": str(file)}
        assert format_errors(result) == f"guesses at 13 images without ground truth: {file}"
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
        assert len(lines) == 13
        assert hits >= 9  # of 12 squares; of another image or class, one in four

    def test_needs_a_classifier(self, bare: LocalizationConfig, tmp_path: Path) -> None:
        without = replace(bare, localization=replace(bare.localization, classifier=None))
        self.refused(without, tmp_path, r"localization\.classifier is null")

    def test_needs_the_devkit(self, bare: LocalizationConfig, tmp_path: Path) -> None:
        file = Path(str(bare.data.root)) / "devkit" / "data" / "map_clsloc.txt"
        file.write_text(self.NUMBERS.replace("green 7 green_thing\n", ""))
        self.refused(bare, tmp_path, r"map_clsloc\.txt has no number for the class 'green'.*image-net\.org")
        file.unlink()
        self.refused(bare, tmp_path, r"map_clsloc\.txt can't be read.*image-net\.org")

    def test_needs_one_whole_list(self, bare: LocalizationConfig, tmp_path: Path) -> None:
        root = Path(str(bare.data.root))
        two = (*bare.data.test, f"{root}/squares.yaml:val")
        self.refused(replace(bare, data=replace(bare.data, test=two)), tmp_path, "judges one whole list")
        self.change_card(root, {"bad_images": "drop"})
        self.refused(bare, tmp_path, "bad_images: drop")


class TestViews:
    """Boxes found in a view are boxes of the stored image."""

    WIDE = (48, 80)  # height, width

    @pytest.fixture
    def wide(self, tmp_path: Path) -> LocalizationConfig:
        """Two wide pictures; the object fills the square that a 1-crop test sees."""
        for part in ("JPEGImages", "Annotations", "ImageSets"):
            (tmp_path / part).mkdir()
        for stem in ("train", "val"):
            Image.fromarray(np.zeros((*self.WIDE, 3), np.uint8)).save(tmp_path / "JPEGImages" / f"{stem}.png")
            # The shorter side becomes 80, so the crop of 64 is 38.4 pixels wide, in the middle.
            write_xml(tmp_path / "Annotations" / f"{stem}.xml", [("red", (22, 6, 59, 43))], self.WIDE)
            (tmp_path / "ImageSets" / f"{stem}.txt").write_text(f"{stem}\n")
        write_card(tmp_path, "train", "val")
        config = make_config(tmp_path, crop_shorter_side=80, rcnn_iterations=1)
        return replace(config, solver=replace(config.solver, iterations=1, images_per_step=2))

    def run(self, config: LocalizationConfig, output: Path, share: tuple[float, float, float, float]) -> dict[str, Any]:
        """A run whose RPN proposes in every view the box with these shares of its width and height, and no other."""

        def propose(rpn: ClassRPN, hidden: Tensor, sizes: Tensor, classes: Sequence[Tensor]) -> list[Detections]:
            (height, width), (labels,) = sizes[0].tolist(), classes
            box = torch.tensor([share]).float() * torch.tensor([width, height, width, height])
            return [Detections(boxes=box.expand(len(labels), 4), scores=torch.ones(len(labels)), labels=labels)]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ClassRPN, "propose", propose)
            return run_localization(config, output, say=lambda text: None)

    def test_whole_view(self, wide: LocalizationConfig, tmp_path: Path) -> None:
        rows = rows_of(self.run(wide, tmp_path / "run", (0, 0, 1, 1)))
        assert rows["RPN, 1-crop, oracle"]["top1_error"] == 0
        assert rows["RPN, dense, oracle"]["top1_error"] == 1  # the whole image: IoU 0.38

    def test_dense_views_are_of_the_whole_image(self, wide: LocalizationConfig, tmp_path: Path) -> None:
        # The middle of the image, 40 of 80 and 40 of 48 pixels; in the crop a fourth of that area.
        rows = rows_of(self.run(wide, tmp_path / "run", (0.25, 1 / 12, 0.75, 11 / 12)))
        assert rows["RPN, 1-crop, oracle"]["top1_error"] == 1
        assert rows["RPN, dense, oracle"]["top1_error"] == 0
        index, _ = load_dataset(wide.data.train, Path(str(wide.data.root)))
        stored = read_proposals(tmp_path / "run" / "proposals.safetensors", index)
        assert len(stored.boxes) == 1  # the same box in both views
        torch.testing.assert_close(stored.boxes, torch.tensor([[20.0, 4.0, 60.0, 44.0]]), atol=0.05, rtol=0)

    def test_no_proposal_is_a_guess_at_the_whole_image(self, wide: LocalizationConfig, tmp_path: Path) -> None:
        self.run(wide, tmp_path / "run", (0, 0, 1, 1))
        (tmp_path / "run" / "localization.json").unlink()
        write_xml(tmp_path / "Annotations" / "val.xml", [("red", (1, 1, 80, 40))], self.WIDE)
        with pytest.MonkeyPatch.context() as patch:
            empty = Detections(boxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0).long())
            patch.setattr(ClassRPN, "propose", lambda *_: [empty])
            rows = rows_of(run_localization(wide, tmp_path / "run", say=lambda text: None))
        assert [rows[name]["top1_error"] for name in rows if "oracle" in name] == [0, 0, 0]


class TestRefusals:
    """Mistakes are named before any time is lost."""

    def refused(self, config: LocalizationConfig, output: Path, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            run_localization(config, output / "run", say=lambda text: None)
        assert not (output / "run").exists()

    def test_classifier_of_another_number_of_classes(self, config: LocalizationConfig, tmp_path: Path) -> None:
        path = tmp_path / "five.pth"
        torch.save(resnet18(num_classes=5).state_dict(), path)
        lengths = replace(config.localization, classifier=str(path))
        self.refused(
            replace(config, localization=lengths), tmp_path, r"five\.pth' tells 5 classes apart, the data set has 3"
        )

    def test_classifier_of_another_architecture(self, config: LocalizationConfig, tmp_path: Path) -> None:
        path = tmp_path / "other.pth"
        torch.save({"fc.bias": torch.zeros(3)}, path)
        lengths = replace(config.localization, classifier=str(path))
        self.refused(replace(config, localization=lengths), tmp_path, "do not fit")

    def test_image_with_two_classes(self, config: LocalizationConfig, root: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(root, tmp_path / "root"))
        write_xml(copy / "Annotations" / "train3.xml", [("red", (1, 1, 9, 9)), ("blue", (1, 1, 9, 9))])
        write_card(copy, "train", "val")
        self.refused(make_config(copy), tmp_path, r"train3\.png has objects of the classes blue, red")

    def test_no_test_set(self, config: LocalizationConfig, tmp_path: Path) -> None:
        self.refused(replace(config, data=replace(config.data, test=())), tmp_path, r"data\.test is empty")

    def test_test_set_without_objects(self, config: LocalizationConfig, root: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(root, tmp_path / "root"))
        (copy / "ImageSets" / "val.txt").write_text("val12\n")
        write_card(copy, "train", "val")
        self.refused(make_config(copy), tmp_path, "no image of .*squares.yaml:val has an object")

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"crop": 300}, r"crop_shorter_side 256 must be at least the crop's side 300"),
            ({"scales": ()}, r"scales\n.*at least 1"),
            ({"scales": (256, 224)}, r"scales takes one or more rising"),
            ({"proposals": 0}, r"proposals\n.*greater than or equal to 1"),
        ],
    )
    def test_values(self, options: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            LocalizerConfig(**options)


class TestPaperConfig:
    """configs/imagenet/loc_resnet101.yaml is the paper's recipe."""

    path = Path(__file__).parents[3] / "configs" / "imagenet" / "loc_resnet101.yaml"

    def test_what_the_paper_states(self) -> None:
        config = load_config(LocalizationConfig, self.path)
        assert (config.backbone.name, config.backbone.weights) == ("resnet101", "torchvision")
        assert (config.rpn.samples_per_image, config.rpn.positive_fraction) == (8, 0.5)
        assert (config.solver.images_per_step, config.localization.proposals, config.localization.crop) == (
            256,
            200,
            224,
        )
        assert config.localization.crop_shorter_side == 256
        header = self.path.read_text().partition("backbone:")[0]
        for row, figure in ROWS.items():
            assert figure is None or f"{100 * figure:.1f}" in header, row

    def test_crops(self) -> None:
        config = load_config(LocalizationConfig, self.path)
        augment = Augment(config.data.augment)
        target = Target(
            boxes=torch.tensor([[0.0, 0.0, 500.0, 375.0]]), labels=torch.tensor([7]), ignore=torch.tensor([False])
        )
        for position in range(5):
            image, cut = augment(np.zeros((375, 500, 3), np.uint8), target, seed=(0, position))
            assert image.shape == (224, 224, 3)
            torch.testing.assert_close(cut.boxes, torch.tensor([[0.0, 0.0, 224.0, 224.0]]))
            assert Resize(config.data.shorter_side, config.data.longer_side).size((224, 224)) == (224, 224)

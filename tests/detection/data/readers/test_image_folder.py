"""Mirrors detection/data/readers/image_folder.py."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from detection.data.class_labels import whole_images
from detection.data.images import ORIENTATION
from detection.data.index import AnnotationIndex
from detection.data.problems import Problem
from detection.data.readers.image_folder import read_image_folder

MakeIndex = Callable[..., AnnotationIndex]
BOX = (1.0, 2.0, 11.0, 22.0)
FILES = {"dog": ("b.png", "a.JPEG", "10.png", "2.png"), "ape": ("a.png",), "cat": ("x.bmp", "y.ppm")}


def draw(root: Path, files: Mapping[str, Sequence[str]] = FILES, size: tuple[int, int] = (6, 8)) -> Path:
    """Black pictures of ``size`` (height, width) at ROOT/train/CLASS/NAME."""
    for name, own in files.items():
        for file in own:
            path = root / "train" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)
    return root


def read(
    root: Path, *classes: str, folder: str = "train", exif: str = "apply"
) -> tuple[AnnotationIndex, list[Problem]]:
    assert exif in ("apply", "ignore")
    return read_image_folder(root, {"folder": folder}, classes, exif="apply" if exif == "apply" else "ignore")


def below(root: Path, index: AnnotationIndex) -> list[str]:
    return [str(Path(index.paths[row]).relative_to(root / "train")) for row in range(len(index))]


class TestOrder:
    """Which images there are, and in which order."""

    def test_folders_are_the_classes_and_files_go_by_name(self, tmp_path: Path) -> None:
        index, problems = read(draw(tmp_path))
        assert index.class_names == ("ape", "cat", "dog")
        assert below(tmp_path, index) == [
            *("ape/a.png", "cat/x.bmp", "cat/y.ppm"),
            *("dog/10.png", "dog/2.png", "dog/a.JPEG", "dog/b.png"),
        ]
        assert index.labels.tolist() == [0, 1, 1, 2, 2, 2, 2]
        assert problems == []

    def test_classes_of_the_card_keep_their_order(self, tmp_path: Path) -> None:
        index, problems = read(draw(tmp_path), "dog", "ape", "cat")
        assert (index.class_names, index.category_ids) == (("dog", "ape", "cat"), (1, 2, 3))
        assert index.labels.tolist() == [0, 0, 0, 0, 1, 2, 2]
        assert below(tmp_path, index)[4:] == ["ape/a.png", "cat/x.bmp", "cat/y.ppm"]
        assert problems == []

    def test_each_image_has_one_object_the_whole_of_it(self, tmp_path: Path) -> None:
        index, _ = read(draw(tmp_path, {"ape": ("a.png", "b.png")}, size=(6, 8)))
        assert index.image_ids.tolist() == [1, 2]
        assert index.sizes.tolist() == [[6, 8]] * 2
        assert index.ends.tolist() == [1, 2]
        assert index.boxes.tolist() == [[0, 0, 8, 6]] * 2
        assert index.areas.tolist() == [48, 48]
        assert not index.ignore.any()
        assert not index.fields

    def test_equals_torchvisions_image_folder(self, tmp_path: Path) -> None:
        draw(tmp_path)
        (tmp_path / "train" / "dog" / "notes.txt").write_text("no image")
        (tmp_path / "train" / "list.png").write_text("in no folder of a class")
        index, problems = read(tmp_path)
        theirs = ImageFolder(str(tmp_path / "train"))
        assert list(index.class_names) == theirs.classes
        assert [(index.paths[row], int(index.labels[row])) for row in range(len(index))] == theirs.samples
        assert problems == []

    def test_folders_below_a_class_count_as_in_torchvisions(self, tmp_path: Path) -> None:
        draw(tmp_path, {"ape": ("z.png",), "ape/small": ("a.png",), "cat/1/2": ("b.png",)})
        index, _ = read(tmp_path)
        theirs = ImageFolder(str(tmp_path / "train"))
        found = [(index.paths[row], int(index.labels[row])) for row in range(len(index))]
        assert sorted(found) == sorted(theirs.samples)
        assert below(tmp_path, index) == ["ape/small/a.png", "ape/z.png", "cat/1/2/b.png"]

    def test_folders_that_are_links_count_as_in_torchvisions(self, tmp_path: Path) -> None:
        draw(tmp_path, {"ape": ("z.png",)})
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "train" / "ape" / "z.png").rename(tmp_path / "elsewhere" / "a.png")
        (tmp_path / "train" / "ape" / "more").symlink_to(tmp_path / "elsewhere")
        index, problems = read(tmp_path)
        assert ([index.paths[0]], problems) == ([path for path, _ in ImageFolder(str(tmp_path / "train")).samples], [])


class TestSizes:
    """Height and width as the image is read."""

    @pytest.mark.parametrize(("exif", "sizes"), [("apply", [[6, 8], [8, 6]]), ("ignore", [[6, 8], [6, 8]])])
    def test_turned_by_exif(self, tmp_path: Path, exif: str, sizes: list[list[int]]) -> None:
        draw(tmp_path, {"ape": ("a.jpg",)})
        tag = Image.Exif()
        tag[ORIENTATION] = 6
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "train" / "ape" / "turned.jpg", exif=tag)
        index, _ = read(tmp_path, exif=exif)
        assert index.sizes.tolist() == sizes
        assert index.apply_exif.tolist() == [exif == "apply"] * 2
        assert index.boxes[1].tolist() == [0, 0, sizes[1][1], sizes[1][0]]


class TestMistakes:
    """What can be wrong is named."""

    def test_unknown_folder_names_the_nearest_class(self, tmp_path: Path) -> None:
        draw(tmp_path, {"ape": ("a.png",), "catt": ("a.png",), "cat": ("a.png",)})
        _, (problem,) = read(tmp_path, "ape", "cat")
        assert (problem.severity, problem.file) == ("error", str(tmp_path / "train" / "catt"))
        assert str(problem).endswith("folder of a class that the card lacks: 'catt'; did you mean 'cat'?")

    def test_class_without_an_image(self, tmp_path: Path) -> None:
        draw(tmp_path, {"ape": ("a.png",)})
        (tmp_path / "train" / "cat").mkdir()
        index, problems = read(tmp_path, "ape", "cat", "dog")
        assert [(p.severity, p.kind, p.file) for p in problems] == [
            ("error", "class without an image", str(tmp_path / "train" / name)) for name in ("cat", "dog")
        ]
        assert len(index) == 1

    def test_image_that_can_not_be_read(self, tmp_path: Path) -> None:
        draw(tmp_path, {"ape": ("a.png", "c.png"), "cat": ("a.png",)})
        bad = tmp_path / "train" / "ape" / "b.png"
        bad.write_bytes(b"no picture")
        index, (problem,) = read(tmp_path)
        assert (problem.severity, problem.kind, problem.file) == ("error", "image that can't be read", str(bad))
        assert below(tmp_path, index) == ["ape/a.png", "ape/c.png", "cat/a.png"]
        assert (index.image_ids.tolist(), index.labels.tolist()) == ([1, 2, 3], [0, 0, 1])

    def test_what_is_no_file_is_passed_over(self, tmp_path: Path) -> None:
        draw(tmp_path, {"ape": ("a.png",)})
        (tmp_path / "train" / "ape" / "folder.png").mkdir()
        os.mkfifo(tmp_path / "train" / "ape" / "pipe.png")  # to open it would wait for a writer
        found: list[AnnotationIndex] = []
        reader = threading.Thread(target=lambda: found.append(read(tmp_path)[0]), daemon=True)
        reader.start()
        reader.join(timeout=60)
        assert [below(tmp_path, index) for index in found] == [["ape/a.png"]]

    @pytest.mark.parametrize("made", [True, False], ids=["empty", "missing"])
    def test_no_folder_of_a_class(self, tmp_path: Path, made: bool) -> None:
        if made:
            (tmp_path / "train").mkdir()
        with pytest.raises(ValueError, match=r"train must hold a folder for each class, and there is none"):
            read(tmp_path)
        _, problems = read(tmp_path, "ape")
        assert [problem.kind for problem in problems] == ["class without an image"]

    @pytest.mark.parametrize("folder", ["../train", "a/../../train", "/data"])
    def test_folder_outside_the_data_set_is_refused(self, tmp_path: Path, folder: str) -> None:
        with pytest.raises(ValueError, match=re.escape(f"folder is below the data set's, got {folder!r}")):
            read(tmp_path, folder=folder)

    @pytest.mark.parametrize("name", ["", ".", "..", "../train", "ape/small", "/data"])
    def test_class_that_is_no_name_of_a_folder_is_refused(self, tmp_path: Path, name: str) -> None:
        draw(tmp_path)
        with pytest.raises(ValueError, match=re.escape(f"a class is the name of a folder in {tmp_path}")):
            read(tmp_path, "ape", name)

    def test_unknown_key_of_a_split_names_the_nearest(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no config key 'foldr'; did you mean 'folder'\?"):
            read_image_folder(tmp_path, {"foldr": "train"}, (), exif="apply")


class TestWholeImages:
    """A detection set as a classification set."""

    def test_by_hand(self, make_index: MakeIndex) -> None:
        other = (0.0, 0.0, 5.0, 5.0)
        index = make_index(
            [
                [(BOX, 1, False)],
                [],
                [(BOX, 0, False), (other, 0, False), (other, 1, True)],  # the ignored object has no say
                [(BOX, 1, True)],
            ],
            ids=[11, 12, 13, 14],
            sizes=[(60, 80), (10, 10), (30, 20), (10, 10)],
            paths=["a.jpg", "b.jpg", "ü.jpg", "d.jpg"],
        )
        index.apply_exif[2] = False
        whole = whole_images(index)
        assert [whole.paths[row] for row in range(len(whole))] == ["a.jpg", "ü.jpg"]
        assert whole.image_ids.tolist() == [11, 13]
        assert whole.sizes.tolist() == [[60, 80], [30, 20]]
        assert whole.apply_exif.tolist() == [True, False]
        assert whole.boxes.tolist() == [[0, 0, 80, 60], [0, 0, 20, 30]]
        assert whole.areas.tolist() == [4800, 600]
        assert (whole.labels.tolist(), whole.ends.tolist()) == ([1, 0], [1, 2])
        assert whole.ignore.tolist() == [False, False]
        assert (whole.class_names, whole.category_ids) == (index.class_names, index.category_ids)
        assert (whole.boxes.dtype, whole.areas.dtype) == (torch.float32, torch.float32)
        assert whole.num_wanted().tolist() == [1, 1]

    def test_of_a_classification_set_is_the_same(self, tmp_path: Path) -> None:
        index, _ = read(draw(tmp_path))
        whole = whole_images(index)
        for name in ("image_ids", "sizes", "apply_exif", "ends", "boxes", "labels", "ignore", "areas"):
            assert torch.equal(getattr(whole, name), getattr(index, name)), name
        assert below(tmp_path, whole) == below(tmp_path, index)

    def test_two_classes_in_one_image_are_refused(self, make_index: MakeIndex) -> None:
        index = make_index([[(BOX, 0, False)], [(BOX, 0, False), (BOX, 1, False)]])
        with pytest.raises(ValueError, match=r"1\.jpg has objects of the classes cat, dog; .* one class"):
            whole_images(index)

    @pytest.mark.parametrize("images", [[], [[]], [[(BOX, 0, True)], []]])
    def test_no_image_with_a_class_is_refused(
        self, make_index: MakeIndex, images: list[list[tuple[object, int, bool]]]
    ) -> None:
        with pytest.raises(ValueError, match="no image has an object that is not ignored, so none has a class"):
            whole_images(make_index(images))


class TestListed:
    """A folder of images and a file of their classes, as Tiny-ImageNet's validation images lie."""

    LINES = "val_1.JPEG\tn02\t0\t32\t44\t62\nval_0.JPEG\tn01\t52\t55\t57\t59\nval_10.JPEG\tn02\t4\t0\t60\t55\n"

    def write(self, root: Path, lines: str = LINES) -> Path:
        (root / "val" / "images").mkdir(parents=True)
        for number in (0, 1, 10):
            Image.new("RGB", (8, 6)).save(root / "val" / "images" / f"val_{number}.JPEG")
        (root / "val" / "val_annotations.txt").write_text(lines)
        for name in ("n01", "n02"):
            (root / "train" / name / "images").mkdir(parents=True)
            (root / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t5\t5\n")
            Image.new("RGB", (8, 6)).save(root / "train" / name / "images" / f"{name}_0.JPEG")
        return root

    def read(self, root: Path, *classes: str) -> tuple[AnnotationIndex, list[Problem]]:
        entry = {"folder": "val/images", "labels": "val/val_annotations.txt"}
        return read_image_folder(root, entry, classes, exif="apply")

    def test_classes_are_those_of_the_folders(self, tmp_path: Path) -> None:
        index, problems = self.read(self.write(tmp_path))
        train, train_problems = read(tmp_path)
        assert index.class_names == train.class_names == ("n01", "n02")
        assert [Path(path).name for path in index.paths.all()] == ["val_0.JPEG", "val_1.JPEG", "val_10.JPEG"]
        assert index.labels.tolist() == [0, 1, 1]
        assert index.boxes.tolist() == [[0, 0, 8, 6]] * 3
        assert problems == train_problems == []

    @pytest.mark.parametrize(
        ("line", "kind"),
        [
            ("val_0.JPEG\tn03\n", "class that the card lacks"),
            ("val_0.JPEG\n", "image without a class"),
            ("val_2.JPEG\tn01\n", "image that can't be read"),
            ("../images/val_0.JPEG\tn01\n", "image outside the folder"),
        ],
    )
    def test_a_bad_line_is_named(self, tmp_path: Path, line: str, kind: str) -> None:
        index, problems = self.read(self.write(tmp_path, line + "val_1.JPEG\tn02\n"), "n01", "n02")
        assert [(problem.severity, problem.kind) for problem in problems] == [("error", kind)]
        assert len(index) == 1

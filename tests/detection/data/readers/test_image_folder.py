"""Mirrors detection/data/readers/image_folder.py and detection/data/class_labels.py."""

import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.datasets import ImageFolder

from detection.data.class_labels import whole_images
from detection.data.readers.image_folder import read_image_folder

BOX, OTHER = (1.0, 2.0, 11.0, 22.0), (0.0, 0.0, 5.0, 5.0)
FILES = "dog/b.png dog/a.JPEG dog/10.png dog/2.png ape/a.png cat/x.bmp cat/y.ppm"


@pytest.fixture
def make(draw, tmp_path):
    """Draws pictures of 6x8 at tmp_path/train/CLASS/NAME."""

    def make(files=FILES):
        for name in files.split():
            draw(tmp_path / "train" / name, size=(6, 8))
        return tmp_path

    return make


def read(root, *classes, exif: Any = "apply", **entry):
    return read_image_folder(root, {"folder": "train", **entry}, classes, exif=exif)


def below(root, index):
    return [str(Path(path).relative_to(root / "train")) for path in index.paths.all()]


def test_folders_are_the_classes_and_each_image_has_one_object_the_whole_of_it(make) -> None:
    root = make()
    index, problems = read(root)
    assert (index.class_names, index.labels.tolist(), problems) == (("ape", "cat", "dog"), [0, 1, 1, 2, 2, 2, 2], [])
    assert below(root, index) == ["ape/a.png", "cat/x.bmp", "cat/y.ppm", *sorted(FILES.split()[:4])]
    assert (index.image_ids.tolist(), index.ends.tolist()) == ([*range(1, 8)], [*range(1, 8)])
    assert (index.sizes.tolist(), index.boxes.tolist()) == ([[6, 8]] * 7, [[0, 0, 8, 6]] * 7)
    assert (index.areas.tolist(), index.ignore.any().item(), index.fields) == ([48] * 7, False, {})
    index, problems = read(root, "dog", "ape", "cat")  # the card's order
    assert (index.class_names, index.category_ids, problems) == (("dog", "ape", "cat"), (1, 2, 3), [])
    assert (index.labels.tolist(), below(root, index)[4:]) == (
        [0] * 4 + [1, 2, 2],
        ["ape/a.png", "cat/x.bmp", "cat/y.ppm"],
    )


def test_equals_torchvisions_image_folder(make) -> None:
    root = make(FILES + " ape/small/a.png cat/1/2/b.png")
    (root / "train/dog/notes.txt").write_text("no image")
    (root / "train/list.png").write_text("in no folder of a class")
    (root / "elsewhere").mkdir()
    (root / "train/ape/a.png").rename(root / "elsewhere/a.png")
    (root / "train/ape/more").symlink_to(root / "elsewhere")
    (index, problems), theirs = read(root), ImageFolder(str(root / "train"))
    assert (list(index.class_names), problems) == (theirs.classes, [])
    found = [(index.paths[row], int(index.labels[row])) for row in range(len(index))]
    assert sorted(found) == sorted(theirs.samples)
    assert below(root, index)[:5] == ["ape/more/a.png", "ape/small/a.png", "cat/1/2/b.png", "cat/x.bmp", "cat/y.ppm"]


def test_sizes_are_those_of_turned_photographs(make, draw) -> None:
    root = make("ape/a.jpg")
    draw(root / "train/ape/turned.jpg", size=(6, 8), orientation=6)
    for exif, size in (("apply", [8, 6]), ("ignore", [6, 8])):
        index, _ = read(root, exif=exif)
        assert (index.sizes.tolist(), index.apply_exif.tolist()) == ([[6, 8], size], [exif == "apply"] * 2)
        assert index.boxes[1].tolist() == [0, 0, size[1], size[0]]


# mistakes


def test_folders_images_and_classes_that_do_not_fit_are_errors(make) -> None:
    root = make("ape/a.png ape/c.png catt/a.png dog/x.png")
    (root / "train/ape/b.png").write_bytes(b"no picture")
    (root / "train/ox").mkdir()
    index, problems = read(root, "ape", "cat", "ox", "dog")
    assert {problem.severity for problem in problems} == {"error"}
    assert sorted((Path(problem.file).name, problem.kind) for problem in problems) == [
        ("b.png", "image that can't be read"),
        ("cat", "class without an image"),
        ("catt", "folder of a class that the card lacks"),
        ("ox", "class without an image"),
    ]
    assert any("'catt'; did you mean 'cat'?" in problem.detail for problem in problems)
    assert below(root, index) == ["ape/a.png", "ape/c.png", "dog/x.png"]
    assert (index.image_ids.tolist(), index.labels.tolist()) == ([1, 2, 3], [0, 0, 3])


def test_what_is_no_file_is_passed_over(make) -> None:
    root, found = make("ape/a.png"), []
    (root / "train/ape/folder.png").mkdir()
    os.mkfifo(root / "train/ape/pipe.png")  # to open it would wait for a writer
    reader = threading.Thread(target=lambda: found.append(read(root)[0]), daemon=True)
    reader.start()
    reader.join(timeout=60)
    assert [below(root, index) for index in found] == [["ape/a.png"]]


def test_what_is_no_folder_of_classes_is_refused(make, tmp_path) -> None:
    for classes in ((), ("ape",)):
        with pytest.raises(ValueError, match=r"no folder .*train\. Where to get it: asked of Ada"):
            read_image_folder(tmp_path, {"folder": "train"}, classes, exif="apply", source="asked of Ada")
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"train must hold a folder for each class, and there is none"):
        read(tmp_path)
    assert [problem.kind for problem in read(tmp_path, "ape")[1]] == ["class without an image"]
    for folder in ("../train", "a/../../train", "/data"):
        with pytest.raises(ValueError, match=re.escape(f"folder is below the data set's, got {folder!r}")):
            read(tmp_path, folder=folder)
    make()
    for name in ("", ".", "..", "../train", "ape/small", "/data"):
        with pytest.raises(ValueError, match=re.escape(f"a class is the name of a folder in {tmp_path}")):
            read(tmp_path, "ape", name)
    with pytest.raises(ValueError, match=r"no config key 'foldr'; did you mean 'folder'\?"):
        read(tmp_path, foldr="train")


# a detection set as a classification set


def test_whole_images_by_hand(make_index) -> None:
    objects = [[(BOX, 1, False)], [], [(BOX, 0, False), (OTHER, 0, False), (OTHER, 1, True)], [(BOX, 1, True)]]
    sizes, paths = [(60, 80), (10, 10), (30, 20), (10, 10)], ["a.jpg", "b.jpg", "ü.jpg", "d.jpg"]
    index = make_index(objects, ids=[11, 12, 13, 14], sizes=sizes, paths=paths)
    index.apply_exif[2] = False
    whole = whole_images(index)
    assert (list(whole.paths.all()), whole.image_ids.tolist()) == (["a.jpg", "ü.jpg"], [11, 13])
    assert (whole.sizes.tolist(), whole.apply_exif.tolist()) == ([[60, 80], [30, 20]], [True, False])
    assert (whole.boxes.tolist(), whole.areas.tolist()) == ([[0, 0, 80, 60], [0, 0, 20, 30]], [4800, 600])
    assert (whole.labels.tolist(), whole.ends.tolist(), whole.ignore.tolist()) == ([1, 0], [1, 2], [False, False])
    assert (whole.class_names, whole.category_ids) == (index.class_names, index.category_ids)
    assert (whole.boxes.dtype, whole.areas.dtype) == (torch.float32, torch.float32)
    again = whole_images(whole)
    for name in ("image_ids", "sizes", "apply_exif", "ends", "boxes", "labels", "ignore", "areas"):
        assert torch.equal(getattr(again, name), getattr(whole, name)), name
    with pytest.raises(ValueError, match=r"1\.jpg has objects of the classes cat, dog; .* one class"):
        whole_images(make_index([[(BOX, 0, False)], [(BOX, 0, False), (BOX, 1, False)]]))
    for images in ([], [[]], [[(BOX, 0, True)], []]):
        with pytest.raises(ValueError, match="no image has an object"):
            whole_images(make_index(images))


def test_classes_of_a_list_are_those_of_the_folders(make, draw) -> None:
    """As Tiny-ImageNet's validation images lie."""

    def read_listed(lines, *classes):
        (root / "val/val_annotations.txt").write_text(lines)
        return read(root, *classes, folder="val/images", labels="val/val_annotations.txt")

    root = make("n01/images/n01_0.JPEG n02/images/n02_0.JPEG")
    (root / "train/n01/n01_boxes.txt").write_text("n01_0.JPEG\t0\t0\t5\t5\n")
    for number in (0, 1, 10):
        draw(root / f"val/images/val_{number}.JPEG", size=(6, 8))
    lines = "val_1.JPEG\tn02\t0\t32\t44\t62\nval_0.JPEG\tn01\t52\t55\t57\t59\nval_10.JPEG\tn02\t4\t0\t60\t55\n"
    (index, problems), (train, train_problems) = read_listed(lines), read(root)
    assert index.class_names == train.class_names == ("n01", "n02")
    assert [Path(path).name for path in index.paths.all()] == ["val_0.JPEG", "val_1.JPEG", "val_10.JPEG"]
    assert (index.labels.tolist(), index.boxes.tolist()) == ([0, 1, 1], [[0, 0, 8, 6]] * 3)
    assert problems == train_problems == []
    for line, kind in [
        ("val_0.JPEG\tn03\n", "class that the card lacks"),
        ("val_0.JPEG\n", "image without a class"),
        ("val_2.JPEG\tn01\n", "image that can't be read"),
        ("../images/val_0.JPEG\tn01\n", "image outside the folder"),
    ]:
        index, (problem,) = read_listed(line + "val_1.JPEG\tn02\n", "n01", "n02")
        assert (problem.severity, problem.kind, len(index)) == ("error", kind, 1)

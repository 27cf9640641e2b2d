"""Mirrors data/selection.py, by cards of COCO and VOC folders."""

from pathlib import Path

import pytest

from detection.data.cards import load_dataset

NAMES = {number: f"photo{number}.jpg" for number in range(10)}


def cat(image):
    return {"id": image + 1, "image_id": image, "category_id": 3, "bbox": [image, 2, 20, 20]}


@pytest.fixture
def names_of(make_coco, write_card, tmp_path):
    """File names that a split takes of ten images, by its keys; every image must keep its own object."""
    make_coco(NAMES, [cat(image) for image in NAMES])

    def names(**keys):
        entry = {"annotations": "train.json", "images": "train", **keys}
        index, _ = load_dataset([f"{write_card('coco', splits={'train': entry})}:train"], tmp_path)
        found = [Path(path).name for path in index.paths]
        assert [f"photo{int(index.target(row).boxes[0, 0])}.jpg" for row in range(len(index))] == found
        return found

    return names


def test_fractions_divide_the_images(names_of) -> None:
    assert names_of() == [*NAMES.values()]
    first, second = names_of(fraction=[0, 0.7]), names_of(fraction=[0.7, 1])
    assert (len(first), len(second), sorted(first + second)) == (7, 3, [*NAMES.values()])
    assert names_of(fraction=0.7) == first != names_of(fraction=0.7, seed=1)
    for fraction in (-0.1, 1.5, "half", [0.5], [0, 0.5, 1]):
        with pytest.raises(ValueError, match="fraction"):
            names_of(fraction=fraction)


def test_a_list_names_images_with_or_without_folder_and_suffix(names_of, tmp_path) -> None:
    file = tmp_path / "coco/few.txt"
    for lines in ("photo7.jpg\nphoto2.jpg\n", "train/photo7.jpg\n./train/photo2.jpg\n", "photo7\n\ntrain/photo2\n"):
        file.write_text(lines)
        assert names_of(list="few.txt") == names_of(list=str(file)) == ["photo7.jpg", "photo2.jpg"]
    for lines, kind in (("photo1.jpg\nnone.jpg", "listed image that"), ("photo1.jpg\nphoto1", "duplicate image")):
        file.write_text(lines)
        with pytest.raises(ValueError, match=f"few.txt: {kind}"):
            names_of(list="few.txt")
    with pytest.raises(ValueError, match=r"none.txt: split list can't be read"):
        names_of(list="none.txt")


def test_voc_takes_fractions_and_does_without_a_list(make_voc, write_card, tmp_path) -> None:
    folder = make_voc({f"photo{number}": [("cat", (1, 1, 20, 20), False)] for number in range(10)})
    (folder / "JPEGImages/photo3.jpg").unlink()
    card = write_card("voc", splits={"all": {}, "half": {"fraction": 0.5}}, classes=None)
    index, problems = load_dataset([f"{card}:all"], tmp_path)
    assert (len(index), index.class_names) == (9, ("cat",))
    kinds = {problem.kind: problem.severity for problem in problems}
    assert kinds == {"annotation without its image": "dropped", "classes taken from the data: cat": "note"}
    assert len(load_dataset([f"{card}:half"], tmp_path)[0]) == 4


def test_classes_of_the_data_are_those_of_all_splits(make_coco, write_card, tmp_path) -> None:
    make_coco({1: "a.jpg"}, [cat(1)], categories={3: "cat"})
    make_coco({1: "b.jpg"}, [], categories={5: "dog"}, split="val")
    splits = {name: {"annotations": f"{name}.json", "images": name} for name in ("train", "val")}
    card = write_card("coco", splits=splits, classes=None)
    assert load_dataset([f"{card}:train"], tmp_path)[0].class_names == ("cat", "dog")

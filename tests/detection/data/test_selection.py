"""Mirrors data/selection.py, by cards of COCO and VOC folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detection.data.cards import load_dataset

MakeCOCO = Callable[..., Path]
WriteCard = Callable[..., str]

NAMES = {number: f"photo{number}.jpg" for number in range(10)}


def cat(image: int) -> dict[str, Any]:
    return {"id": image + 1, "image_id": image, "category_id": 3, "bbox": [image, 2, 20, 20]}


@pytest.fixture
def names_of(make_coco: MakeCOCO, write_card: WriteCard, tmp_path: Path) -> Callable[..., list[str]]:
    """File names that a split takes of ten images, by its keys; every image must keep its own object."""
    make_coco(NAMES, [cat(image) for image in NAMES])

    def names(**keys: Any) -> list[str]:
        entry = {"annotations": "train.json", "images": "train", **keys}
        index, _ = load_dataset([f"{write_card('coco', splits={'train': entry})}:train"], tmp_path)
        found = [Path(path).name for path in index.paths]
        assert [f"photo{int(index.target(row).boxes[0, 0])}.jpg" for row in range(len(index))] == found
        return found

    return names


def test_without_keys_all_images_are_taken(names_of: Callable[..., list[str]]) -> None:
    assert names_of() == [*NAMES.values()]


def test_fractions_divide_the_images(names_of: Callable[..., list[str]]) -> None:
    first, second = names_of(fraction=[0, 0.7]), names_of(fraction=[0.7, 1])
    assert (len(first), len(second)) == (7, 3)
    assert sorted(first + second) == [*NAMES.values()]
    assert names_of(fraction=0.7) == first
    assert names_of(fraction=0.7, seed=1) != first


@pytest.mark.parametrize(
    "lines", ["photo7.jpg\nphoto2.jpg\n", "train/photo7.jpg\n./train/photo2.jpg\n", "photo7\n\ntrain/photo2\n"]
)
def test_a_list_names_images_with_or_without_folder_and_suffix(
    names_of: Callable[..., list[str]], tmp_path: Path, lines: str
) -> None:
    (tmp_path / "coco" / "few.txt").write_text(lines)
    assert names_of(list="few.txt") == ["photo7.jpg", "photo2.jpg"]
    assert names_of(list=str(tmp_path / "coco" / "few.txt")) == ["photo7.jpg", "photo2.jpg"]


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        ("photo1.jpg\nnone.jpg\n", "listed image that the data set lacks"),
        ("photo1.jpg\nphoto1\n", "duplicate image"),
        (None, "split list can't be read"),
    ],
)
def test_a_list_that_can_not_be_used_is_an_error(
    names_of: Callable[..., list[str]], tmp_path: Path, lines: str | None, kind: str
) -> None:
    if lines is not None:
        (tmp_path / "coco" / "few.txt").write_text(lines)
    with pytest.raises(ValueError, match=f"few.txt: {kind}"):
        names_of(list="few.txt")


@pytest.mark.parametrize("fraction", [-0.1, 1.5, "half", [0.5], [0, 0.5, 1]])
def test_what_is_no_fraction_is_refused(names_of: Callable[..., list[str]], fraction: Any) -> None:
    with pytest.raises(ValueError, match="fraction"):
        names_of(fraction=fraction)


def test_voc_takes_fractions_and_does_without_a_list(
    make_voc: Callable[..., Path], write_card: WriteCard, tmp_path: Path
) -> None:
    folder = make_voc({f"photo{number}": [("cat", (1, 1, 20, 20), False)] for number in range(10)})
    (folder / "JPEGImages" / "photo3.jpg").unlink()
    card = write_card("voc", splits={"all": {}, "half": {"fraction": 0.5}}, classes=None)
    index, problems = load_dataset([f"{card}:all"], tmp_path)
    assert (len(index), index.class_names) == (9, ("cat",))
    kinds = {problem.kind: problem.severity for problem in problems}
    assert kinds == {"annotation without its image": "dropped", "classes taken from the data: cat": "note"}
    assert len(load_dataset([f"{card}:half"], tmp_path)[0]) == 4


def test_classes_of_the_data_are_those_of_all_splits(
    make_coco: MakeCOCO, write_card: WriteCard, tmp_path: Path
) -> None:
    make_coco({1: "a.jpg"}, [cat(1)], categories={3: "cat"})
    make_coco({1: "b.jpg"}, [], categories={5: "dog"}, split="val")
    splits = {name: {"annotations": f"{name}.json", "images": name} for name in ("train", "val")}
    card = write_card("coco", splits=splits, classes=None)
    assert load_dataset([f"{card}:train"], tmp_path)[0].class_names == ("cat", "dog")

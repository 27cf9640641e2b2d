"""Mirrors detection/data/readers/image_tags.py, on the layout of the Amazon's chips."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from detection.data.cards import load_dataset
from detection.data.class_labels import image_tags

CARD = """
format: image_tags
root: ROOT
classes: [clear, haze, primary, water]
splits:
  train: {tags: train_v2.csv, images: train-jpg}
  half: {tags: train_v2.csv, images: train-jpg, fraction: [0, 0.5]}
"""
ROWS = ("train_0,haze primary", "train_1,clear primary water", "train_2,clear", "train_10,")


def write(folder: Path, rows: tuple[str, ...] = ROWS) -> str:
    (folder / "train-jpg").mkdir()
    for name in ("train_0", "train_1", "train_2", "train_10"):
        Image.new("RGB", (8, 6)).save(folder / "train-jpg" / f"{name}.jpg")
    (folder / "train_v2.csv").write_text("\n".join(("image_name,tags", *rows)) + "\n")
    card = folder / "chips.yaml"
    card.write_text(CARD.replace("ROOT", str(folder)))
    return str(card)


def test_every_tag_is_an_object_the_whole_image(tmp_path: Path) -> None:
    index, problems = load_dataset([f"{write(tmp_path)}:train"], tmp_path)
    assert [Path(path).stem for path in index.paths.all()] == ["train_0", "train_1", "train_2", "train_10"]
    assert image_tags(index).int().tolist() == [[0, 1, 1, 0], [1, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert index.boxes.tolist() == [[0, 0, 8, 6]] * 6
    assert problems == []
    assert len(load_dataset([f"{tmp_path}/chips.yaml:half"], tmp_path)[0]) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("train_3,clear", "image that is missing.*row 6: 'train_3' is not below 'train-jpg'"),
        ("train_0,clear", "image with two rows.*row 6: 'train_0'"),
        ("train_0", "row 6 has 1 columns"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_dataset([f"{write(tmp_path, (*ROWS, row))}:train"], tmp_path)


def test_a_tag_that_the_card_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'wat'; did you mean 'water'"):
        load_dataset([f"{write(tmp_path, ('train_0,wat',))}:train"], tmp_path)

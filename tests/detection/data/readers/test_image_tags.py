"""Mirrors detection/data/readers/image_tags.py, on the layout of the Amazon's chips."""

from pathlib import Path

import pytest

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
NAMES = ["train_0", "train_1", "train_2", "train_10"]


@pytest.fixture
def load(draw, tmp_path):
    def load(*rows, split="train"):
        for name in NAMES:
            draw(tmp_path / f"train-jpg/{name}.jpg", size=(6, 8))
        (tmp_path / "train_v2.csv").write_text("\n".join(("image_name,tags", *rows)) + "\n")
        (tmp_path / "chips.yaml").write_text(CARD.replace("ROOT", str(tmp_path)))
        return load_dataset([f"{tmp_path / 'chips.yaml'}:{split}"], tmp_path)

    return load


def test_every_tag_is_an_object_the_whole_image(load) -> None:
    index, problems = load(*ROWS)
    assert ([Path(path).stem for path in index.paths.all()], problems) == (NAMES, [])
    assert image_tags(index).int().tolist() == [[0, 1, 1, 0], [1, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert index.boxes.tolist() == [[0, 0, 8, 6]] * 6
    assert len(load(*ROWS, split="half")[0]) == 2


def test_a_bad_row_is_named(load) -> None:
    for rows, row, message in [
        (ROWS, "train_3,clear", "image that is missing.*row 6: 'train_3' is not below 'train-jpg'"),
        (ROWS, "train_0,clear", "image with two rows.*row 6: 'train_0'"),
        (ROWS, "train_0", "row 6 has 1 columns"),
        ((), "train_0,wat", "'wat'; did you mean 'water'"),
    ]:
        with pytest.raises(ValueError, match=f"(?s){message}"):
            load(*rows, row)

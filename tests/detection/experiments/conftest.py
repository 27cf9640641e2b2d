"""A tiny data set, and small scripts in the place of trainings."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def card(make_coco, write_card) -> str:
    """Four images of training, three of test and one of validation, with cats and dogs."""
    for split, numbers in (("train", range(1, 5)), ("test", range(5, 8)), ("val", range(8, 9))):
        cats = [{"id": n, "image_id": n, "category_id": 3, "bbox": [9, 9, 20, 20], "area": 400} for n in numbers]
        make_coco({number: f"{number}.jpg" for number in numbers}, cats, split=split)
    splits = {split: {"annotations": f"{split}.json", "images": split} for split in ("train", "test", "val")}
    return write_card("coco", splits=splits)


@pytest.fixture
def write_swap(tmp_path):
    """Writes a base config and an experiment over it; keys given as None are left out."""

    def write(base: str, /, **keys: Any) -> Path:
        (tmp_path / "base.yaml").write_text(base)
        values = {"base": "base.yaml", "seeds": [0], "allowed": ["backbone.name"]} | keys
        kept = {key: value for key, value in values.items() if value is not None}
        (tmp_path / "swap.yaml").write_text(yaml.safe_dump(kept, sort_keys=False))
        return tmp_path / "swap.yaml"

    return write


@pytest.fixture
def program(tmp_path):
    """A command that runs a script; it has ``option`` and ``config`` of a training's command line, and ``run``."""

    def make(script: str) -> tuple[str, ...]:
        path = tmp_path / "trainer.py"
        start = "import json, os, pathlib, sys, yaml\nplace = sys.argv.index('--output-dir')\nrest = sys.argv[place:]\n"
        start += "option = dict(zip(rest[::2], rest[1::2]))\nrun = pathlib.Path(option['--output-dir'])\n"
        start += "config = yaml.load(open(sys.argv[1]), yaml.CSafeLoader) if place == 2 else {}\n"
        path.write_text(start + script)
        # Without the packages of the site it starts sooner.
        return sys.executable, "-S", "-c", f"import sys; sys.path = {sys.path!r}; exec(open({str(path)!r}).read())"

    return make

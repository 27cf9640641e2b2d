"""Mirrors detection/edges/task.py and model.py: whole runs on a stand-in for BSDS500."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from detection.config.load import load_config
from detection.data.cards import load_dataset
from detection.edges.config import EdgesConfig
from detection.edges.model import agreed
from detection.edges.task import run_edges
from detection.masks import decode
from detection.padded import Targets

CONFIG = Path(__file__).parents[3] / "configs" / "bsds" / "hed_vgg16.yaml"
SMALL = [
    *("backbone.name=vgg11_bn", "backbone.weights=null", "backbone.norm=bn", "backbone.roi_size=1"),
    *("data.workers=0", "device=cpu", "solver.images_per_step=2", "solver.accumulate=2", "edges.thresholds=9"),
]


def draw(folder: Path, name: str, split: str, random: np.random.Generator) -> None:
    """A bright rectangle, upright or lying, whose border three annotators drew, one of them beside it."""
    size = (48, 64) if random.random() < 0.5 else (64, 48)
    top, left = random.integers(8, 14, 2)
    bottom, right = size[0] - random.integers(8, 14), size[1] - random.integers(8, 14)
    pixels = random.normal(60, 10, (*size, 3))
    pixels[top:bottom, left:right] += 120
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / "images" / split / f"{name}.jpg")
    cells = np.empty((1, 3), dtype=object)
    for annotator in range(3):
        inside = np.zeros(size, dtype=bool)
        inside[top:bottom, left : right + (annotator == 2)] = True
        inner = np.zeros(size, dtype=bool)
        inner[top + 1 : bottom - 1, left + 1 : right + (annotator == 2) - 1] = True
        segments = 1 + inside.astype(np.uint16)
        cells[0, annotator] = {"Segmentation": segments, "Boundaries": (inside & ~inner).astype(np.uint8)}
    savemat(folder / "groundTruth" / split / f"{name}.mat", {"groundTruth": cells})


@pytest.fixture(scope="module")
def bsds(tmp_path_factory) -> Path:
    """The data root; 4 images for training, 2 for testing."""
    root = tmp_path_factory.mktemp("data")
    folder, random = root / "BSR" / "BSDS500" / "data", np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 1), ("test", 2)):
        for kind in ("images", "groundTruth"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            draw(folder, f"{1000 + number}", split, random)
    (folder / "images" / "train" / "Thumbs.db").write_bytes(b"")
    return root


def test_every_annotator_is_an_object_and_pixels_count_that_enough_of_them_draw(bsds) -> None:
    index, problems = load_dataset(["bsds500:trainval"], bsds, fields=("masks",))
    assert (len(index), index.class_names, len(index.boxes), problems) == (5, ("boundary",), 15, [])
    height, width = index.sizes[0].tolist()
    assert index.boxes[0].tolist() == [0, 0, width, height]
    first, second, third = decode(index.stored("masks", 0), (height, width))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    same = [row for row in range(len(index)) if torch.equal(index.sizes[row], index.sizes[0])]
    targets = [index.target(row, fields=("masks",)) for row in same]
    targets[0] = targets[0][torch.tensor([0, 2])]  # two annotators: both must agree
    masks = [target.masks.bool() for target in targets if target.masks is not None]
    for own, drawn in zip(agreed(Targets.pad(targets), 3), masks, strict=True):
        assert torch.equal(own[0].bool(), drawn.all(dim=0))
    assert torch.equal(agreed(Targets.pad(targets), 1)[0, 0].bool(), masks[0].any(dim=0))


@pytest.mark.slow
def test_learns_the_borders_and_writes_its_maps(bsds, tmp_path, resdet) -> None:
    steps = ["solver.iterations=40", "solver.steps=[30]", "solver.base_lr=0.003", "solver.checkpoint_every=0"]
    changes = [*SMALL, *steps, f"data.root={bsds}"]
    trained = resdet("edges", CONFIG, "--output-dir", tmp_path / "run", *changes)
    assert trained.status == 0, trained.err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result["edges"]) == {"ODS", "OIS", "AP"}
    assert result["edges"]["ODS"] > 0.5
    assert f"ODS {result['edges']['ODS']:.3f}" in trained.out
    tested = resdet("edges", CONFIG, "--test", tmp_path / "run", *changes)
    assert tested.status == 0, tested.err
    again = json.loads((tmp_path / "run" / "test" / "result.json").read_text())
    assert (again["edges"], again["images"]) == (result["edges"], 2)
    index, _ = load_dataset(["bsds500:test"], bsds, fields=("masks",))
    with Image.open(tmp_path / "run" / "test" / "edges" / "1000.png") as picture:
        found = np.asarray(picture) / 255
    drawn = index.target(0, fields=("masks",)).masks
    assert drawn is not None
    assert found[drawn[0].numpy()].mean() > 2 * found[~drawn.any(dim=0).numpy()].mean()


def test_mistakes_are_named(bsds, tmp_path) -> None:
    changes = [*SMALL, f"data.root={bsds}", "solver.iterations=1"]
    with pytest.raises(ValueError, match=r"best_metric 'edges\.ODD' names no figure"):
        run_edges(load_config(EdgesConfig, CONFIG, [*changes, "solver.best_metric=edges.ODD"]), tmp_path)
    folder = bsds / "BSR" / "BSDS500" / "data"
    card = tmp_path / "broken.yaml"
    splits = "{all: {images: images/train, boundaries: images/train}}"
    card.write_text(f"format: bsds\nroot: {folder}\nsplits: {splits}\n")
    with pytest.raises(ValueError, match=r"1000\.mat: labels that are missing: it belongs to .*1000\.jpg"):
        run_edges(load_config(EdgesConfig, CONFIG, [*changes, f"data.train=[{card}:all]"]), tmp_path)

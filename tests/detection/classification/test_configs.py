"""Configs of classification on small stand-ins in the layouts of their data: each trains a step and is tested."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detection.classification.config import ClassificationConfig
from detection.classification.task import run_pretraining
from detection.config.load import load_config

CONFIGS = Path(__file__).parents[3] / "configs"
TINY = sorted(path.stem for path in (CONFIGS / "tiny_imagenet").glob("*.yaml") if path.stem != "recipe")
AMAZON = sorted(path.stem for path in (CONFIGS / "amazon").glob("*.yaml") if path.stem != "recipe")
QUICK = ["solver.iterations=1", "solver.images_per_step=2", "solver.checkpoint_every=0", "data.workers=0", "device=cpu"]
LIBRARY = ("densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mobilenet_v2", "xception")


def picture(path: Path, side: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def run(path: Path, root: Path, output: Path, *changes: str) -> dict[str, Any]:
    config = load_config(ClassificationConfig, path, [*QUICK, f"data.root={root}", *changes])
    result = run_pretraining(config, output)
    losses = (output / "metrics.jsonl").read_text()
    assert "NaN" not in losses
    return result


@pytest.fixture(scope="module")
def tiny_imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    folder, lines = root / "tiny-imagenet-200", list[str]()
    for number, name in enumerate(("n01443537", "n01629819", "n01641577")):
        for image in range(2):
            picture(folder / "train" / name / "images" / f"{name}_{image}.JPEG", 64)
        (folder / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t10\t63\t58\n")
        picture(folder / "val" / "images" / f"val_{number}.JPEG", 64)
        lines.append(f"val_{number}.JPEG\t{name}\t0\t32\t44\t62")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    picture(folder / "test" / "images" / "test_0.JPEG", 64)
    (folder / "wnids.txt").write_text("n01641577\nn01443537\nn01629819\n")
    return root


@pytest.fixture(scope="module")
def amazon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    lines = ["image_name,tags"]
    for number in range(20):
        picture(root / "amazon" / "train-jpg" / f"train_{number}.jpg", 256)
        lines.append(f"train_{number},{'haze primary' if number % 2 else 'clear primary water'}")
    (root / "amazon" / "train_v2.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize(
    "name", [name if name == "net5_5x5" else pytest.param(name, marks=pytest.mark.slow) for name in TINY]
)
def test_tiny_imagenet(tiny_imagenet: Path, tmp_path: Path, name: str) -> None:
    result = run(CONFIGS / "tiny_imagenet" / f"{name}.yaml", tiny_imagenet, tmp_path)
    assert (result["images"], result["classification"]["top5"]) == (3, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", AMAZON)
def test_amazon(amazon: Path, tmp_path: Path, name: str) -> None:
    small = ("backbone.weights=null", "data.augment=[{RandomCrop: {height: 64, width: 64}}]", "data.shorter_side=64")
    views = (
        "data.longer_side=64",
        "classification.crop=64",
        "classification.shorter_side=64",
        "solver.evaluate_every=0",
    )
    cells = ("backbone.roi_size=1",) if name.startswith("vgg") else ()  # of fc6, which has most of the parameters
    result = run(CONFIGS / "amazon" / f"{name}.yaml", amazon, tmp_path, *small, *views, *cells)
    assert result["images"] == 2
    assert len(result["thresholds"]) == 17
    assert math.isfinite(result["tags"]["F2"])


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARY)
def test_networks_of_libraries(tiny_imagenet: Path, tmp_path: Path, name: str) -> None:
    sets = ("data.train=[tiny_imagenet:train]", "data.test=[tiny_imagenet:val]", "data.augment=[]")
    side = 299 if name == "inception_v3" else 64  # its auxiliary classifier takes no less
    sizes = (f"data.shorter_side={side}", f"data.longer_side={side}")
    views = (f"classification.crop={side}", f"classification.shorter_side={side}")
    result = run(CONFIGS / "imagenet" / f"cls_{name}.yaml", tiny_imagenet, tmp_path, *sets, *sizes, *views)
    assert result["images"] == 3

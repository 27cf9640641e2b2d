"""Configs of classification on small stand-ins in the layouts of their data: each trains a step and is tested."""

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


def run(name: str, root: Path, output: Path, *changes: str) -> dict[str, Any]:
    config = load_config(ClassificationConfig, CONFIGS / f"{name}.yaml", [*QUICK, f"data.root={root}", *changes])
    result = run_pretraining(config, output)
    assert "NaN" not in (output / "metrics.jsonl").read_text()
    return result


@pytest.fixture(scope="module")
def tiny_imagenet(tmp_path_factory) -> Path:
    root, lines = tmp_path_factory.mktemp("data"), list[str]()
    folder = root / "tiny-imagenet-200"
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


@pytest.mark.parametrize("name", [n if n == "net5_5x5" else pytest.param(n, marks=pytest.mark.slow) for n in TINY])
def test_tiny_imagenet(tiny_imagenet, tmp_path: Path, name: str) -> None:
    result = run(f"tiny_imagenet/{name}", tiny_imagenet, tmp_path)
    assert (result["images"], result["classification"]["top5"]) == (3, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", AMAZON)
def test_amazon(tmp_path: Path, name: str) -> None:
    for number in range(20):
        picture(tmp_path / "amazon" / "train-jpg" / f"train_{number}.jpg", 256)
    lines = [f"train_{number},{'haze primary' if number % 2 else 'clear primary water'}" for number in range(20)]
    (tmp_path / "amazon" / "train_v2.csv").write_text("\n".join(["image_name,tags", *lines]) + "\n")
    small = ("backbone.weights=null", "data.augment=[{RandomCrop: {height: 64, width: 64}}]", "data.shorter_side=64")
    views = ("data.longer_side=64", "classification.crop=64", "classification.shorter_side=64")
    cells = ("backbone.roi_size=1",) if name.startswith("vgg") else ()  # of fc6, which has most of the parameters
    changes = (*small, *views, *cells, "solver.evaluate_every=0")
    result = run(f"amazon/{name}", tmp_path, tmp_path / "run", *changes)
    assert (result["images"], len(result["thresholds"])) == (2, 17)
    assert math.isfinite(result["tags"]["F2"])


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARY)
def test_networks_of_libraries(tiny_imagenet, tmp_path: Path, name: str) -> None:
    sets = ("data.train=[tiny_imagenet:train]", "data.test=[tiny_imagenet:val]", "data.augment=[]")
    side = 299 if name == "inception_v3" else 64  # its auxiliary classifier takes no less
    keys = ("data.shorter_side", "data.longer_side", "classification.crop", "classification.shorter_side")
    changes = (*sets, *(f"{key}={side}" for key in keys))
    assert run(f"imagenet/cls_{name}", tiny_imagenet, tmp_path, *changes)["images"] == 3

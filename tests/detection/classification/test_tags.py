"""Mirrors tags.py, and whole runs on a small stand-in in the layout of the Amazon's chips."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.classifier import Classifier
from backbones.registry import build_backbone
from detection.classification.compare import read_shares
from detection.classification.config import ClassificationConfig
from detection.classification.model import ImageClassifier
from detection.classification.tags import choose_thresholds, f_beta, tag_figures
from detection.classification.task import evaluate_classifiers, format_accuracy, run_pretraining
from detection.config.load import parse_config
from detection.engine.checkpoint import read_checkpoint
from detection.padded import Targets
from detection.structures import ImageBatch

SIDE = 16
CARD = """
format: image_tags
root: ROOT
classes: [red, green, blue]
splits:
  train: {tags: train_v2.csv, images: train-jpg, fraction: [0, 0.6]}
  val: {tags: train_v2.csv, images: train-jpg, fraction: [0.6, 0.8]}
  test: {tags: train_v2.csv, images: train-jpg, fraction: [0.8, 1]}
"""
CONFIG = f"""
backbone: {{name: cifar_resnet20, norm: bn}}
data: {{train: [ROOT/chips.yaml:train], val: [ROOT/chips.yaml:val], test: [ROOT/chips.yaml:test],
       shorter_side: {SIDE}, longer_side: {SIDE}, workers: 0}}
solver: {{iterations: 60, images_per_step: 12, base_lr: 0.05, steps: [45], best_metric: tags.F2, evaluate_every: 60}}
classification: {{crop: {SIDE}, shorter_side: {SIDE}, tags: true, loss: LOSS}}
device: cpu
"""


def bits(*rows: str) -> torch.Tensor:
    return torch.tensor([[mark == "1" for mark in row] for row in rows])


def test_f2_by_hand() -> None:
    found, truth = bits("110", "000", "000", "111", "011"), bits("100", "010", "000", "111", "110")
    # p 1/2, r 1: 5 * 0.5 / (4 * 0.5 + 1); nothing found; nothing to find; all; p = r = 1/2
    assert f_beta(found, truth).tolist() == pytest.approx([5 / 6, 0, 1, 1, 1 / 2])
    figures = tag_figures(found.double(), truth, torch.tensor([0.5, 0.5, 0.5]).double())
    assert figures == {"F2": pytest.approx(2 / 3), "precision": pytest.approx(5 / 7), "recall": pytest.approx(5 / 7)}


def test_chosen_thresholds_are_as_good_as_any_of_the_grid() -> None:
    random = torch.Generator().manual_seed(0)
    truth = torch.rand(60, 2, generator=random) < torch.tensor([0.5, 0.2])
    shift = torch.tensor([0.0, -0.3])  # the second class has lower probabilities
    probabilities = (0.5 * truth + 0.5 * torch.rand(60, 2, generator=random) + shift).clamp(0.0, 0.99)
    thresholds, grid = choose_thresholds(probabilities, truth), torch.arange(1, 100) / 100
    every = [f_beta(probabilities > torch.stack([a, b]), truth).mean() for a in grid for b in grid]
    own = f_beta(probabilities > thresholds, truth).mean()
    assert own == pytest.approx(float(max(every)), abs=5e-3)
    assert own > max(f_beta(probabilities > step, truth).mean() for step in grid)  # a threshold that all share


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_losses_by_hand(loss, make_target) -> None:
    network = Classifier(build_backbone("cifar_resnet20"), 3)
    network.fc.weight.data.zero_()
    network.fc.bias.data = logits = torch.tensor([0.5, -1.0, 2.0])
    model = ImageClassifier(network, loss=loss, tags=True).eval()
    images, box = ImageBatch.from_images([torch.zeros(3, 8, 8, dtype=torch.uint8)] * 3), (0.0, 0.0, 8.0, 8.0)
    # two classes share the first image; the last has none
    none = make_target([box], [2], ignore=[True])
    targets = Targets.pad([make_target([box] * 3, [0, 1, 0]), make_target([box], [2]), none])
    if loss == "softmax":
        shares, log = logits.softmax(0), logits.log_softmax(0)
        expected = -(0.5 * (log[0] + log[1]) + log[2]) / 3
    else:
        shares, wanted = logits.sigmoid(), torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
        expected = -(wanted * shares.log() + (1 - wanted) * (1 - shares).log()).mean()
    assert model(images, targets)["classification"].item() == pytest.approx(float(expected), rel=1e-5)
    assert model(images)[0].tolist() == pytest.approx(shares.tolist())


def make_config(folder: Path, loss: str) -> ClassificationConfig:
    """Pictures in which every colour is there or not, and a run on them."""
    random, lines = np.random.default_rng(0), ["image_name,tags"]
    (folder / "train-jpg").mkdir(parents=True)
    for number in range(100):
        marks = random.permutation([True, random.random() < 0.5, random.random() < 0.3])
        pixels = np.clip(60 + 150 * marks + random.normal(0, 20, (SIDE, SIDE, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "train-jpg" / f"train_{number}.jpg")
        tags = [name for name, mark in zip(("red", "green", "blue"), marks, strict=True) if mark]
        lines.append(f"train_{number},{' '.join(tags)}")
    (folder / "train_v2.csv").write_text("\n".join(lines) + "\n")
    (folder / "chips.yaml").write_text(CARD.replace("ROOT", str(folder)))
    return parse_config(ClassificationConfig, CONFIG.replace("ROOT", str(folder)).replace("LOSS", loss))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_learns_the_colours_and_two_runs_are_an_ensemble(loss: str, tmp_path: Path) -> None:
    config = make_config(tmp_path / "data", loss)
    result = run_pretraining(config, tmp_path / "run")
    assert result["tags"]["F2"] > 0.9
    assert (result["images"], result["thresholds_chosen_on"]) == (20, list(config.data.val))
    assert set(result["thresholds"]) == {"red", "green", "blue"}
    shares = read_shares(tmp_path / "run")[1]["tags.F2"]
    assert sum(shares) / len(shares) == pytest.approx(result["tags"]["F2"])
    other = run_pretraining(replace(config, seed=1), tmp_path / "other")
    runs = [read_checkpoint(tmp_path / name, ClassificationConfig) for name in ("run", "other")]
    both = evaluate_classifiers(config, runs, tmp_path / "both")
    assert both["tags"]["F2"] >= min(result["tags"]["F2"], other["tags"]["F2"]) - 0.05
    assert f"20 images, views: crop, thresholds chosen on {config.data.val[0]}" in format_accuracy(both)
    unchosen = evaluate_classifiers(replace(config, data=replace(config.data, val=())), runs[:1], tmp_path / "fixed")
    assert (set(unchosen["thresholds"].values()), unchosen["thresholds_chosen_on"]) == ({0.2}, [])
    wrong = replace(config, solver=replace(config.solver, best_metric="classification.top1"))
    with pytest.raises(ValueError, match=r"best_metric 'classification\.top1' names no figure"):
        run_pretraining(wrong, tmp_path / "no")

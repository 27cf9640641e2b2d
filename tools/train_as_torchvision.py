"""Trains configs/bccd/fpn_resnet18.yaml and torchvision's builder of the same network side by side; prints AP and AP50.

Both see the same images in the same order and learn with the same optimizer; initial weights and samples differ.

    RESDET_DATA_ROOT=DATA python tools/train_as_torchvision.py --seeds 0,1,2 --output output/as_torchvision
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FasterRCNN

from detection.config.detection import DetectionConfig, DetectorDataConfig
from detection.config.load import load_config
from detection.data.index import AnnotationIndex
from detection.data.loader import build_test_loader, build_train_loader, load_data
from detection.engine.device import choose_device
from detection.engine.evaluate import evaluate, predict
from detection.engine.trainer import Trainer
from detection.padded import Regions, Targets
from detection.structures import Detections, ImageBatch
from detection.tasks.train import run_training

CONFIG = Path(__file__).parents[1] / "configs" / "bccd" / "fpn_resnet18.yaml"


class Theirs(nn.Module):
    """torchvision's Faster R-CNN behind our call."""

    def __init__(self, num_classes: int, data: DetectorDataConfig) -> None:
        super().__init__()
        norm = partial(nn.GroupNorm, 32)
        body = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=norm, trainable_layers=5)
        # Images come resized; torchvision leaves them so in training if told to, in tests if the size is what it makes.
        sides = {"min_size": data.shorter_side, "max_size": data.longer_side}
        self.model = FasterRCNN(body, num_classes + 1, _skip_resize=True, **sides)

    def forward(
        self, images: ImageBatch, targets: Targets | None = None, _proposals: Regions | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        pixels = [
            image[:, :h, :w].float() / 255 for image, (h, w) in zip(images.pixels, images.size_list(), strict=True)
        ]
        if targets is not None:
            rows = zip(targets.boxes, targets.labels, targets.wanted, strict=True)
            wanted = [{"boxes": boxes[own], "labels": labels[own] + 1} for boxes, labels, own in rows]
            return self.model(pixels, wanted)
        found = self.model(pixels)
        return [Detections(image["boxes"], image["scores"], image["labels"] - 1) for image in found]


def train_theirs(config: DetectionConfig, output: Path) -> dict[str, Any]:
    """Returns the result of torchvision's network under ``config``'s data and solver."""
    sets = load_data(config.data, say=print)
    index, test = sets["train"], sets["test"]
    return Trainer(
        config,
        output,
        index,
        build=lambda fresh: Theirs(len(index.class_names), config.data),
        load=partial(build_train_loader, index, config.data),
        test=lambda model, facts: test_theirs(config, model, test) | facts,
    ).run()


def test_theirs(config: DetectionConfig, model: nn.Module, index: AnnotationIndex) -> dict[str, Any]:
    """Tests torchvision's network; all but the network is ours."""
    records = predict(model, build_test_loader(index, config.data), index, device=choose_device(config.device)).records
    return evaluate(records, index.class_names, "area")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--output", type=Path, default=Path("output/as_torchvision"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    config = load_config(DetectionConfig, CONFIG, args.overrides)
    table: dict[str, list[tuple[float, float]]] = {"ours": [], "torchvision": []}
    for seed in map(int, args.seeds.split(",")):
        seeded = replace(config, seed=seed)
        for name, run in (("ours", run_training), ("torchvision", train_theirs)):
            torch.manual_seed(seed)
            bbox = run(seeded, args.output / f"{name}_{seed}")["bbox"]
            table[name].append((bbox["AP"], bbox["AP50"]))
            print(f"seed {seed} {name:12} AP {bbox['AP']:.3f}  AP50 {bbox['AP50']:.3f}", flush=True)
    for name, rows in table.items():
        means = [statistics.mean(column) for column in zip(*rows, strict=True)]
        deviations = [statistics.stdev(column) if len(rows) > 1 else 0.0 for column in zip(*rows, strict=True)]
        cells = "  ".join(f"{k} {m:.3f} +- {d:.3f}" for k, m, d in zip(("AP", "AP50"), means, deviations, strict=True))
        print(f"{name:12} {cells}  ({len(rows)} seeds)")
    (args.output / "comparison.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

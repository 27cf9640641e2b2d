"""Losses and gradients where every anchor and region is drawn, so that nothing is left to chance.

Recorded with the core that matched, drew and pooled image by image (commit a8e339f), which drew by torch's generators:
with everything drawn the batched core, whose draws are hashes, has to reach the same numbers.  All is in float64, so
that the order of sums does not show, and what differs is another choice.  ``python tests/test_everything_drawn.py``
records again, also at that commit.  One-stage detectors, which draw nothing, came later: theirs are numbers of then.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from detection.build import build_detector
from detection.config.detection import DetectionConfig
from detection.config.load import build_dataclass
from detection.engine.checkpoint import load_detector_weights, read_checkpoint
from detection.structures import ImageBatch, Target

RECORDED = Path(__file__).parent / "everything_drawn.json"
OLD = Path(__file__).parent / "old_runs" / "format1"
OLD_RUNS = ("c4/at_60.safetensors", "cascade", "fpn_mask")
ALL = 100_000
# Sections are those of the config named first, with changes.
CONFIGS_YAML = """
c4: [null, {backbone: {name: resnet18, norm: gn, roi_size: 4}, anchors: {sizes: [16, 32]}, rpn: {channels: 32,
  allow_outside: true, pre_nms_train: 200, post_nms_train: 20, min_size: 2}}]
c4, inside: [c4, {rpn: {allow_outside: false}}]
c4, context: [c4, {box: {pool: roi_align, context: true}}]
c4, hard negatives: [c4, {box: {negative_iou_low: 0.1, class_agnostic: true}}]
c4, masks: [c4, {architecture: mask_rcnn, mask: {channels: 8, geometry: torchvision}}]
vgg: [c4, {backbone: {name: vgg11, norm: null, roi_size: 2, dropout: 0}}]
pyramid: [c4, {backbone: {roi_size: null, fpn: true, fpn_channels: 32}, anchors: {sizes: [8, 16, 32, 64, 128]},
  box: {head: fc, pool: roi_align, head_channels: 32}, architecture: mask_rcnn, mask: {pool_size: 4, convs: 1,
  channels: 8, geometry: torchvision}}]
pyramid, giou: [pyramid, {box: {loss: giou, sampling_ratio: 0}}]
retinanet: [pyramid, {backbone: {fpn_coarse: p5}, anchors: {sizes: [16, 32, 64, 128, 256]}, architecture: retinanet,
  dense: {convs: 1, norm: gn}}]
retinanet, giou: [retinanet, {dense: {loss: giou, normalizer: running}}]
fcos: [retinanet, {architecture: fcos, dense: {normalizer: batch}}]
cascade, masks: [pyramid, {architecture: cascade_mask_rcnn, box: {class_agnostic: true}}]
"""


def read_configs():
    trees: dict[str | None, dict[str, Any]] = {None: {}}
    for name, (base, changes) in yaml.safe_load(CONFIGS_YAML).items():
        tree = trees[base]
        changed = {key: {**tree.get(key, {}), **new} if isinstance(new, dict) else new for key, new in changes.items()}
        trees[name] = tree | changed
    return {name: build_dataclass(DetectionConfig, tree) for name, tree in trees.items() if name}


CONFIGS = read_configs()


def make_detector(name):
    checkpoint = read_checkpoint(OLD / name) if name in OLD_RUNS else None
    config = checkpoint.config if checkpoint else CONFIGS[name]
    every: Any = {"samples_per_image": ALL, "positive_fraction": 1.0}
    torch.manual_seed(0)
    config = replace(config, rpn=replace(config.rpn, **every), box=replace(config.box, **every))
    detector = build_detector(config, 2, pretrained=False)
    if checkpoint:
        load_detector_weights(detector, checkpoint, ("cat", "dog"))
    # The old core makes single precision of the pixels whatever the precision of the weights.
    detector.normalize.register_forward_hook(lambda _module, _images, pixels: pixels.double())
    return detector.train().double()


def make_target(boxes, ignore, size):
    """Objects of the classes 0, 1, ...; every mask is the left part of its box."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for row, (x1, y1, x2, y2) in enumerate(boxes):
        masks[row, int(y1) : int(y2), int(x1) : int(x2) - 5] = True
    rows = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    return Target(rows, torch.arange(len(boxes)), torch.tensor(ignore, dtype=torch.bool), masks)


def measure(name):
    """Losses, and the length of the gradient of their sum, of three images of different sizes.

    One has an ignored object, and one has none; no box lies where anchors of equal IoU are the best, because which of
    them are positive is decided otherwise now (``TIE`` of the matcher).
    """
    y, x = torch.meshgrid(torch.arange(64), torch.arange(80), indexing="ij")
    image = torch.stack([2 * x + y, 3 * y, (x * y) % 256]).clamp(0, 255).to(torch.uint8)
    images = ImageBatch.from_images([image, image[:, :48, :64].flip(2), image.flip(1)])
    targets = [
        make_target([[7.3, 9.1, 41.7, 38.2], [39.4, 21.3, 72.9, 53.6]], [False, False], (64, 80)),
        make_target([[4.2, 12.9, 29.3, 41.1], [31.2, 1.3, 62.8, 21.4]], [False, True], (48, 64)),
        make_target([], [], (64, 80)),
    ]
    detector = make_detector(name)
    losses: Mapping[str, Tensor] = detector(images, targets)
    torch.stack(list(losses.values())).sum().backward()
    gradients = [parameter.grad.norm() for parameter in detector.parameters() if parameter.grad is not None]
    return {key: loss.item() for key, loss in losses.items()} | {"gradient": torch.stack(gradients).norm().item()}


@pytest.mark.parametrize("name", [*CONFIGS, *OLD_RUNS])
def test_losses_and_gradients_are_those_of_single_images(name) -> None:
    expected = json.loads(RECORDED.read_text())[name]
    assert measure(name) == pytest.approx(expected, rel=1e-6, abs=1e-12)


if __name__ == "__main__":
    RECORDED.write_text(json.dumps({name: measure(name) for name in [*CONFIGS, *OLD_RUNS]}, indent=1) + "\n")

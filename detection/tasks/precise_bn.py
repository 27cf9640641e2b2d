"""Recomputes the batch-norm statistics of a backbone as averages over a training set, to be frozen afterwards.

Training keeps a running average over its last few hundred batches, while the weights still change.  "Deep Residual
Learning", appendix A, recomputes the statistics on the training set before it fixes them for detection.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

from backbones.base import Backbone
from detection.build_trunk import build_plain_backbone
from detection.config.detection import DetectionConfig
from detection.config.schema import checked
from detection.config.sections import BackboneConfig, ProgramConfig
from detection.data.loader import build_test_loader, load_index
from detection.engine.checkpoint import Checkpoint, write_weights
from detection.engine.device import choose_device
from detection.model.normalize import Normalize
from detection.structures import ImageBatch

__all__ = ["recompute_statistics"]


def recompute_statistics(config: DetectionConfig, path: Path, *, images: int, folder: Path | None = None) -> int:
    """Recomputes the statistics of the config's backbone on a training set, and writes the backbone to ``path``.

    ``backbone.weights`` loads the file, with ``backbone.norm: frozen_bn``.  It holds a classifier without its last
    layer, and the config that describes what its weights need.

    Args:
        config: config of a run; its backbone and weights are used.
        path: the .safetensors file to write.
        images: maximum number of training images.
        folder: a classification set, one subfolder per class, such as ImageNet in the paper; None:
            ``config.data.train`` at the detector's scale.

    Returns:
        The number of images used.

    Raises:
        ValueError: bad data or config, a backbone without batch normalisation, or another kind of file.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"--output takes a .safetensors file, got {str(path)!r}")
    batches = _detection_set(config, images) if folder is None else _image_folder(folder, images)
    # Trunk and tail together are the whole network, whatever head the config has.
    plain = BackboneConfig(**{f.name: getattr(config.backbone, f.name) for f in fields(BackboneConfig)})
    backbone = build_plain_backbone(replace(plain, norm="bn", freeze_at=0), pretrained=True)
    network = _WholeImages(backbone)
    if not get_bn_modules(network.train()):
        raise ValueError(f"backbone {config.backbone.name!r} has no batch normalisation to recompute")
    device = choose_device(config.device)
    network.to(device)
    used = 0

    def on_device() -> Iterator[ImageBatch]:
        nonlocal used
        for batch in batches:
            batch_images = batch if isinstance(batch, ImageBatch) else batch.images
            used += len(batch_images)
            yield batch_images.to(device)

    with torch.no_grad():
        update_bn_stats(network, on_device(), num_iters=len(batches))
    parts = {"backbone": network.backbone, "tail": network.tail}
    weights = {
        f"network.{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_weights(Checkpoint(path, weights, _Statistics(backbone=plain), class_names=(), iteration=0))
    return used


def _detection_set(config: DetectionConfig, images: int) -> DataLoader[Any]:
    index = load_index(config.data, config.data.train, key="data.train", say=print, limit=config.data.limit)
    # One image at a time: padding would count as pixels.
    return build_test_loader(index, config.data, rows=range(min(images, len(index))))


def _image_folder(folder: Path, images: int) -> DataLoader[Any]:
    """Loads images of all classes, resized to a shorter side of 256 and cropped to the central 224 x 224 pixels."""
    try:
        found = ImageFolder(folder, transform=Compose([Resize(256), CenterCrop(224), PILToTensor()]))
    except OSError as error:
        raise ValueError(f"{folder} must be a folder with a subfolder of images per class: {error}") from error
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    rows = Subset(found, order[:images].tolist())
    return DataLoader(rows, batch_size=32, collate_fn=_collate, num_workers=min(4, os.cpu_count() or 1))


def _collate(samples: list[tuple[Tensor, int]]) -> ImageBatch:
    return ImageBatch.from_images([image for image, _ in samples])


@checked
class _Statistics(ProgramConfig):
    """The config beside the weights, which are those of a classifier without its last layer."""

    program: ClassVar[str] = "classification"


class _WholeImages(nn.Module):
    """A backbone's trunk and tail, run on whole images as in classification."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.tail = backbone, backbone.tail()
        self.normalize = Normalize(backbone.input_stats, divisor=backbone.size_divisor)

    def forward(self, images: ImageBatch) -> Tensor:
        features = self.backbone(self.normalize(images))
        return self.tail(self.tail.pool_whole_image(list(features.values())[-1]))

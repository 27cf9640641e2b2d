"""Batch-norm statistics of a backbone as a true average over a training set, to be frozen afterwards.

Training keeps a running average over its last few hundred batches, made while the weights still moved.  "Deep Residual
Learning", appendix A, recomputes the statistics on the training set before it fixes them for detection.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from safetensors.torch import save_file
from torch import Tensor, nn

from backbones.base import Tail
from detection.build import build_detector
from detection.config import Config
from detection.data.build import build_test_loader
from detection.files import write_whole
from detection.model.detector import Detector
from detection.structures import ImageBatch
from detection.testing import choose_device, load_index

__all__ = ["recompute_statistics"]


def recompute_statistics(config: Config, path: Path, *, images: int) -> int:
    """Writes the config's backbone, its statistics recomputed on ``config.data.train``, to ``path``.

    The file is one that ``backbone.weights`` takes, with ``backbone.norm: frozen_bn``.

    Args:
        config: of a run; its backbone, weights and training set are used, at the config's scale.
        path: a .safetensors file to write.
        images: how many of the training set at most.

    Returns:
        How many images were used.

    Raises:
        ValueError: bad data or config, or a backbone without batch normalisation.
    """
    index = load_index(config, config.data.train, key="data.train", say=print)
    backbone = replace(config.backbone, norm="bn", freeze_at=0)
    detector = build_detector(replace(config, backbone=backbone), len(index.class_names))
    network = _WholeImages(detector)
    if not get_bn_modules(network.train()):
        raise ValueError(f"backbone {config.backbone.name!r} has no batch normalisation to recompute")
    device = choose_device(config)
    network.to(device)
    rows = range(min(images, len(index)))
    loader = build_test_loader(index, config.data, rows=rows)  # one at a time: padding would count as colour

    def batches() -> Iterator[ImageBatch]:
        for batch in loader:
            yield batch.images.to(device)

    with torch.no_grad():
        update_bn_stats(network, batches(), num_iters=len(loader))
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {**detector.backbone.state_dict(), **network.tail.state_dict()}
    weights = {name: value.cpu().contiguous() for name, value in state.items()}
    write_whole(path, lambda temporary: save_file(weights, temporary))
    return len(rows)


class _WholeImages(nn.Module):
    """A detector's trunk and tail, run on whole images as in classification."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        head = detector.box_stage.head
        assert isinstance(head, Tail)
        self.detector, self.tail = detector, head

    def forward(self, images: ImageBatch) -> Tensor:
        return self.tail(self.tail.pool_whole_image(self.detector.features(images)))

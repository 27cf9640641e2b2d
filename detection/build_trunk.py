"""Builds a trunk with its weights, also those of a run, from the backbone section of a config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from backbones.adapters.fx import TracedBackbone
from backbones.base import Backbone
from backbones.classifier import backbone_weights
from backbones.deformable import OFFSETS
from backbones.registry import build_backbone
from backbones.weights.load import load_matching
from backbones.weights.packages import PACKAGES
from detection.config.schema import different_meaning
from detection.config.sections import BackboneConfig
from detection.engine.checkpoint import read_weights, resolve_weights, stored_backbone
from detection.hub import local_path

__all__ = ["LIBRARIES", "build_plain_backbone", "file_of_a_run", "local_weights", "weights_of_run"]

LIBRARIES = ("torchvision", "timm", *PACKAGES)  # as weights: not a folder that has such a name


def build_plain_backbone(
    config: BackboneConfig, *, pretrained: bool, out_features: Sequence[str] | None = None
) -> Backbone:
    """Returns the backbone that ``config`` describes, without its pyramid.

    Args:
        config: of the backbone; its weights may be the directory of a run of ``resdet pretrain``, or a checkpoint
            of it, if its options that change the meaning of weights were the same; or an address hf://NAME/REPO.
        pretrained: load the weights; False where those of a whole model follow.
        out_features: stages to return; None for the backbone's own default.

    Raises:
        ValueError: an option that the backbone lacks, or weights that do not fit it.
    """
    if pretrained and config.weights is not None:
        config = replace(config, weights=local_weights(config.weights))
    options = asdict(config)
    name, weights, source = options.pop("name"), options.pop("weights"), options.pop("weights_source")
    for of_the_pyramid in ("fpn", "fpn_channels", "fpn_norm", "fpn_coarse"):
        options.pop(of_the_pyramid, None)
    run = file_of_a_run(config, check=pretrained)
    backbone = build_backbone(
        name,
        weights=None if run else weights,
        weights_source=source,
        load_weights=pretrained,
        out_features=out_features,
        **options,
    )
    if run and pretrained:
        dropped = backbone.dropped if isinstance(backbone, TracedBackbone) else ()
        load_matching(backbone, weights_of_run(run), source=str(run), unused_ok=dropped, missing_ok=OFFSETS)
    return backbone


def local_weights(weights: str) -> str:
    """Returns ``weights`` unchanged if they have a library's name, else their path on this machine.

    Raises:
        ValueError, ConnectionError, ImportError: as ``local_path``.
    """
    return weights if weights in LIBRARIES else str(local_path(weights))


def weights_of_run(run: Path) -> dict[str, Tensor]:
    """Returns the backbone's weights of the classifier whose run or checkpoint is ``run``.

    Raises:
        ValueError: it is no classifier.
    """
    found = backbone_weights(read_weights(run))
    if not found:
        raise ValueError(
            f"{run} is no classifier; leave backbone.weights unset and give a detector to go on from as init"
        )
    return found


def file_of_a_run(config: BackboneConfig, *, check: bool) -> Path | None:
    """Returns the weights file of ``config`` if a run of ours made it; None for others, and for a missing run.

    Raises:
        ValueError: with ``check``, it trained a network of other options.
    """
    if config.weights is None or config.weights in LIBRARIES or not Path(config.weights).exists():
        return None
    file = resolve_weights(config.weights)
    trained = stored_backbone(file)
    if trained is None:
        return None
    changed = different_meaning(trained, config, "backbone") if check else []
    if changed:
        raise ValueError(f"{file} can't be backbone.weights: {'; '.join(f'backbone.{line}' for line in changed)}")
    return file

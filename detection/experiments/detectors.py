"""The kind of network ``detector`` of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from detection.build import build_detector, data_parts, deciding_metric
from detection.config.detection import DetectionConfig
from detection.data.index import AnnotationIndex
from detection.data.loader import load_index
from detection.experiments.costs import measure_costs
from detection.experiments.kind import Kind, network_facts
from detection.experiments.proof import hash_file
from detection.files import digest
from detection.weights.origin import origin_file

__all__ = ["DETECTORS"]


def _read(config: DetectionConfig, specs: Sequence[str], key: str, say: Callable[[str], None]) -> AnnotationIndex:
    return load_index(config.data, specs, key=key, say=say, limit=config.data.limit, **data_parts(config))


def _facts(config: DetectionConfig, num_classes: int) -> dict[str, Any]:
    with torch.device("meta"):  # shapes are enough
        detector = build_detector(config, num_classes, pretrained=False)
    backbone = detector.backbone
    body = getattr(backbone, "body", backbone)  # of a pyramid
    facts = {
        "total stride": max(spec.stride for spec in body.specs.values()),
        "features": ", ".join(f"{name}: {s.channels} at stride {s.stride}" for name, s in body.specs.items()),
        **detector.facts(),
        "backbone parameters": sum(p.numel() for p in backbone.parameters()),
        "head parameters": sum(p.numel() for part in detector.head_modules() for p in part.parameters()),
        **network_facts(detector, config.backbone, backbone.input_stats),
        "sides padded to multiples of": backbone.size_divisor,
    }
    return facts | ({"pre-training data": f"a detector: {config.init}"} if config.init else {})


def _hash_weights(config: DetectionConfig, num_classes: int) -> str:
    """Returns the hash of the initial weights; with ``config.init``, of that file.

    Raises:
        ValueError: weights that can't be read or do not fit.
    """
    if config.init is not None:
        return hash_file(origin_file(config.init))
    torch.manual_seed(config.seed)
    return digest(build_detector(config, num_classes).state_dict())


DETECTORS = Kind(
    schema=DetectionConfig,
    command="train",
    metric=deciding_metric,
    read=_read,
    facts=_facts,
    hash_weights=_hash_weights,
    measure_costs=measure_costs,
)

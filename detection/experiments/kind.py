"""The interface to the compared networks, so that detectors and classifiers share one runner.

Detectors are in detectors.py, classifiers in detection/report/classifiers.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from torch import nn

from backbones.base import InputStats
from detection.config.sections import BackboneConfig, ProgramConfig
from detection.data.index import AnnotationIndex
from detection.engine.checkpoint import Checkpoint
from detection.model.normalize import Normalize

__all__ = ["Kind", "network_facts"]

ConfigT = TypeVar("ConfigT", bound=ProgramConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[ConfigT]):
    """One kind of networks.

    Attributes:
        schema: config class of the base and its variants.
        command: command of resdet that trains and tests a network.
        metric: figure of result.json by which a config's learning rates are chosen where solver.best_metric names none.
        read: images of a config from "card:split" names; takes the key that messages name, and takes lines to show.
        facts: facts about the network of a config for so many classes, by name; needs no weights.
        hash_weights: SHA-256 of the initial weights of a run of a config, for so many classes.
        measure_costs: content of costs/VARIANT.json, with trained weights if there are any.
    """

    schema: type[ConfigT]
    command: str
    metric: Callable[[ConfigT], str]
    read: Callable[[ConfigT, Sequence[str], str, Callable[[str], None]], AnnotationIndex]
    facts: Callable[[ConfigT, int], dict[str, Any]]
    hash_weights: Callable[[ConfigT, int], str]
    measure_costs: Callable[[ConfigT, Checkpoint[ConfigT] | None], dict[str, Any]]


def network_facts(network: nn.Module, config: BackboneConfig, stats: InputStats) -> dict[str, Any]:
    """Returns facts of any ``network`` whose backbone is that of ``config`` and is shown images of ``stats``."""
    names = (type(module).__name__ for module in network.modules() if not isinstance(module, Normalize))
    counts = Counter(name for name in names if "Norm" in name)
    weights = config.weights
    source = "ImageNet-1k, torchvision's" if weights == "torchvision" else f"{weights}, {config.weights_source}"
    return {
        "fixed parameters": sum(p.numel() for p in network.parameters() if not p.requires_grad),
        "normalisation layers": ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none",
        "pre-training data": source if weights else "none",
        "input": str(asdict(stats)),
    }

"""What the report of an experiment shows beside the results: what differs, what changes along, and what was equal."""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torchvision

import backbones
import detection
from detection.build import build_detector, data_parts
from detection.config.detection import DetectionConfig
from detection.data.index import AnnotationIndex, index_digest
from detection.data.loader import load_index
from detection.experiments.experiment import Experiment, differences, flatten, resolve_base
from detection.files import digest
from detection.model.architecture import Architecture
from detection.model.normalize import Normalize
from detection.weights.origin import origin_file

__all__ = ["also_changes", "check_apart", "describe", "hash_code", "hash_weights"]


def describe(
    experiment: Experiment, configs: Mapping[str, DetectionConfig], *, say: Callable[[str], None]
) -> dict[str, Any]:
    """The content of experiment.json.

    Args:
        experiment: as read.
        configs: variant -> its config as it is trained, at the first seed.
        say: takes a line for data sets with dropped objects.

    Raises:
        ValueError: bad data, weights that can't be read, or a detector that can't be built.
    """
    first = next(iter(configs.values()))
    specs = dict.fromkeys(spec for config in configs.values() for spec in (*config.data.train, *config.data.test))
    data = {
        spec: load_index(first.data, (spec,), key="data", say=say, limit=first.data.limit, **data_parts(first))
        for spec in specs
    }
    classes = len(next(iter(data.values())).class_names)
    return {
        "name": experiment.name,
        "protocol": asdict(experiment.protocol),
        "seeds": list(experiment.seeds),
        **({"heads": experiment.arms_by_head} if experiment.heads else {}),
        "pool_seeds": experiment.pool_seeds,
        "allow_leakage": experiment.allow_leakage,
        "detections": {name: list(files) for name, files in experiment.detections.items()},
        "allowed": list(experiment.allowed),
        "base": flatten(resolve_base(experiment)),
        "differences": [asdict(difference) for difference in differences(configs)],
        "also_changes": also_changes(configs, classes),
        "hashes": {
            "code": hash_code(),
            "data": {spec: index_digest(index) for spec, index in data.items()},
            "initial_weights": {variant: hash_weights(config, classes) for variant, config in configs.items()},
            "detections": {file: _hash_file(Path(file)) for files in experiment.detections.values() for file in files},
        },
        "environment": _environment(),
    }


def check_apart(names: tuple[str, str], first: AnnotationIndex, second: AnnotationIndex) -> None:
    """Raises ValueError when two data sets, called ``names``, share an image file."""
    common = {str(Path(path).resolve()) for path in first.paths} & {str(Path(path).resolve()) for path in second.paths}
    if common:
        raise ValueError(
            f"{names[0]} and {names[1]} share {len(common)} images, such as {min(common)}: a learning rate chosen on "
            f"{names[1]}'s images proves nothing; name other splits in the protocol"
        )


def also_changes(configs: Mapping[str, DetectionConfig], num_classes: int) -> list[dict[str, Any]]:
    """What differs between the detectors of ``configs`` (variant -> config), whatever the config keys say.

    Raises:
        ValueError: a detector that can't be built.
    """
    facts = {}
    for variant, config in configs.items():
        with torch.device("meta"):  # shapes are enough
            facts[variant] = _facts(config, build_detector(config, num_classes, pretrained=False))
    names = dict.fromkeys(name for values in facts.values() for name in values)
    listed = [{"what": name, "values": {v: values.get(name, "none") for v, values in facts.items()}} for name in names]
    return [entry for entry in listed if len(set(map(str, entry["values"].values()))) > 1]


def _facts(config: DetectionConfig, detector: Architecture) -> dict[str, Any]:
    """What a reader must know of a detector to judge a comparison, by name."""
    backbone = detector.backbone
    body = getattr(backbone, "body", backbone)  # of a pyramid
    parameters = list(detector.parameters())
    weights = config.backbone.weights
    source = (
        "ImageNet-1k, torchvision's" if weights == "torchvision" else f"{weights}, {config.backbone.weights_source}"
    )
    return {
        "total stride": max(spec.stride for spec in body.specs.values()),
        "features": ", ".join(f"{name}: {s.channels} at stride {s.stride}" for name, s in body.specs.items()),
        **detector.facts(),
        "backbone parameters": sum(p.numel() for p in backbone.parameters()),
        "head parameters": sum(p.numel() for part in detector.head_modules() for p in part.parameters()),
        "fixed parameters": sum(p.numel() for p in parameters if not p.requires_grad),
        "normalisation layers": _count_norms(detector),
        "pre-training data": "a detector: " + config.init if config.init else source if weights else "none",
        "input": str(asdict(backbone.input_stats)),
        "sides padded to multiples of": backbone.size_divisor,
    }


def _count_norms(detector: Architecture) -> str:
    names = (type(module).__name__ for module in detector.modules() if not isinstance(module, Normalize))
    counts = Counter(name for name in names if "Norm" in name)
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def hash_code() -> str:
    """Returns the SHA-256 of all Python files of the two packages, with their names."""
    roots = [Path(str(package.__file__)).parent for package in (backbones, detection)]
    return digest(
        {f"{root.name}/{path.relative_to(root)}": path.read_bytes() for root in roots for path in root.rglob("*.py")}
    )


def hash_weights(config: DetectionConfig, num_classes: int) -> str:
    """Returns the SHA-256 of the weights that a run of ``config`` starts from; with ``config.init``, of that file.

    Raises:
        ValueError: weights that can't be read or do not fit.
    """
    if config.init is not None:
        return _hash_file(origin_file(config.init))
    torch.manual_seed(config.seed)
    return digest(build_detector(config, num_classes).state_dict())


def _hash_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")  # Linux; platform.processor() is empty there
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())

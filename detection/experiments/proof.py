"""Records what differs, what changes along, and what is equal between the variants of an experiment."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
import torchvision

import backbones
import detection
from detection.config.schema import flatten
from detection.config.sections import ProgramConfig
from detection.data.index import AnnotationIndex, index_digest
from detection.experiments.experiment import Experiment, differences, resolve_base
from detection.experiments.kind import Kind
from detection.files import digest

__all__ = ["also_changes", "check_apart", "describe", "hash_code", "hash_file"]

ConfigT = TypeVar("ConfigT", bound=ProgramConfig)


def describe(
    experiment: Experiment,
    configs: Mapping[str, ConfigT],
    kind: Kind[ConfigT],
    *,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Returns the content of experiment.json.

    Args:
        experiment: the experiment, as read from its file.
        configs: variant -> its config as it is trained, at the first seed.
        kind: kind of the networks.
        say: takes a line for data sets with dropped objects.

    Raises:
        ValueError: bad data, weights that can't be read, or a network that can't be built.
    """
    first = next(iter(configs.values()))
    specs = dict.fromkeys(spec for config in configs.values() for spec in (*config.data.train, *config.data.test))
    data = {spec: kind.read(first, (spec,), "data", say) for spec in specs}
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
        "base": flatten(resolve_base(experiment, kind.schema)),
        "differences": [asdict(difference) for difference in differences(configs)],
        "also_changes": also_changes(configs, classes, kind),
        "hashes": {
            "code": hash_code(),
            "data": {spec: index_digest(index) for spec, index in data.items()},
            "initial_weights": {variant: kind.hash_weights(config, classes) for variant, config in configs.items()},
            "detections": {file: hash_file(Path(file)) for files in experiment.detections.values() for file in files},
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


def also_changes(configs: Mapping[str, ConfigT], num_classes: int, kind: Kind[ConfigT]) -> list[dict[str, Any]]:
    """Returns the differences between the networks of ``configs`` (variant -> config) other than config keys.

    Raises:
        ValueError: a network that can't be built.
    """
    facts = {variant: kind.facts(config, num_classes) for variant, config in configs.items()}
    names = dict.fromkeys(name for values in facts.values() for name in values)
    listed = [{"what": name, "values": {v: values.get(name, "none") for v, values in facts.items()}} for name in names]
    return [entry for entry in listed if len(set(map(str, entry["values"].values()))) > 1]


def hash_code() -> str:
    """Returns the SHA-256 of all Python files of the two packages, with their names."""
    roots = [Path(str(package.__file__)).parent for package in (backbones, detection)]
    return digest(
        {f"{root.name}/{path.relative_to(root)}": path.read_bytes() for root in roots for path in root.rglob("*.py")}
    )


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of the content of ``path``."""
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

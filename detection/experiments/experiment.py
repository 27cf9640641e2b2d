"""Experiment files: a base config, variants, seeds, and the keys in which variants may differ.

Fairness is checked on resolved configs: every key in which two variants differ must be on the allowed list.  With
several heads every variant runs under each head, and the list applies within each head.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

from detection.config.load import build_dataclass, load_config, parse_yaml
from detection.config.schema import checked, flatten, leaves
from detection.config.sections import ProgramConfig

__all__ = [
    "PROTOCOL_KEYS",
    "Experiment",
    "KeyDifference",
    "Protocol",
    "check_fair",
    "differences",
    "load_experiment",
    "resolve_base",
    "resolve_variants",
]

ConfigT = TypeVar("ConfigT", bound=ProgramConfig)

# Keys that a protocol itself changes; nothing else may change them.
PROTOCOL_KEYS: dict[str, tuple[str, ...]] = {
    "equal_steps": (),
    "equal_time": ("solver.iterations", "solver.steps", "solver.warmup_iterations"),
    "learning_rate_grid": ("solver.base_lr",),
}

# Keys that only the experiment may set.
NEVER_ALLOWED = {
    "seed": "`seeds` sets it for every variant alike",
    "output_dir": "--output-dir sets it",
    "data.test": "all variants are tested on the same images",
}


@checked
class Protocol:
    """The quantity that is equal between variants.

    Attributes:
        name: "equal_steps", the same schedule; "equal_time", as many iterations as fit into ``minutes``, with the
            schedule scaled with them; "learning_rate_grid", the same schedule at each variant's own best rate out of
            the same list, searched with the same number of runs.
        minutes: equal_time only: minutes of training per run.
        factors: learning_rate_grid only: factors of solver.base_lr.
        train: learning_rate_grid only: training set of the search; empty: data.train.
        validation: learning_rate_grid only: data set that chooses the rate; must share no image with data.test.
        extend: learning_rate_grid only: how many times the grid grows, for all variants alike, beyond an edge at which
            the best rate of one of them lies.
    """

    name: Literal["equal_steps", "equal_time", "learning_rate_grid"] = "equal_steps"
    minutes: float | None = None
    factors: tuple[float, ...] = ()
    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    extend: int = 0

    def __post_init__(self) -> None:
        timed, searched = self.name == "equal_time", self.name == "learning_rate_grid"
        if timed != (self.minutes is not None) or (self.minutes is not None and not self.minutes > 0):
            raise ValueError(
                f"protocol.minutes is the training time of a run under equal_time, above 0, and is left out under the "
                f"others; got {self.minutes} under {self.name}"
            )
        if searched != bool(self.factors) or searched != bool(self.validation) or (self.train and not searched):
            raise ValueError(
                "learning_rate_grid takes protocol.factors, such as [0.5, 1, 2], protocol.validation and perhaps "
                f"protocol.train, and the others take none of them; got factors {list(self.factors)}, validation "
                f"{list(self.validation)} and train {list(self.train)} under {self.name}"
            )
        if self.extend < 0 or (self.extend and len(self.factors) < 2):
            raise ValueError(
                f"protocol.extend is a number from 0 and takes two or more factors of learning_rate_grid, got "
                f"{self.extend} with factors {list(self.factors)}"
            )
        if len(set(self.factors)) < len(self.factors) or min(self.factors, default=1) <= 0:
            raise ValueError(f"protocol.factors are different positive numbers, got {list(self.factors)}")


@checked
class Experiment:
    """The keys of an experiment file; docs/compare.md explains them.

    Attributes:
        base: config file, relative to the experiment file.
        variants: name -> its changes: a mapping as in a config, or a list of key=value.
        heads: name -> its changes of the base, for all variants; the arms are then HEAD.VARIANT.
        seeds: every variant runs once with each seed.
        name: name of the experiment; default: that of the file.
        overrides: key=value changes of the base, for all variants.
        allowed: config keys in which variants may differ; a section's name stands for all keys below it.
        protocol: what is equal between variants.
        pool_seeds: use one seed deviation for all variants in claims about methods; the report tests this assumption.
        detections: name -> files of detections of any program on data.test, in COCO's results format and relative to
            the experiment file: an arm that is compared and not trained; several files are its seeds.
        allow_leakage: compare even if test images are copies of training images; the report warns.
    """

    base: str
    variants: dict[str, Any]
    seeds: tuple[int, ...]
    name: str
    overrides: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    protocol: Protocol = field(default_factory=Protocol)
    pool_seeds: bool = False
    detections: dict[str, tuple[str, ...]] = field(default_factory=dict)
    allow_leakage: bool = False
    heads: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.variants or len(self.variants) + len(self.detections) < 2:
            raise ValueError(
                f"variants needs two or more to compare, or one beside detections; got variants {list(self.variants)} "
                f"and detections {list(self.detections)}"
            )
        if self.heads and (len(self.heads) < 2 or len(self.variants) < 2 or self.detections):
            raise ValueError(
                f"heads takes two or more, each with two or more variants and without detections; got heads "
                f"{list(self.heads)}, variants {list(self.variants)} and detections {list(self.detections)}"
            )
        for name in self.heads:
            if not re.fullmatch(r"\w[\w+-]*", name):
                raise ValueError(
                    f"{name!r} names a head, and its arms are HEAD.VARIANT: it takes letters, digits and _ + -"
                )
        twice = self.variants.keys() & self.detections.keys()
        if twice:
            raise ValueError(f"variants and detections share the names {sorted(twice)}; name each arm otherwise")
        for name in (self.name, *self.variants, *self.detections):
            if not re.fullmatch(r"\w[\w.+-]*", name):
                raise ValueError(f"{name!r} names a folder: it takes letters, digits and . _ + -")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds takes one or more different numbers from 0, got {list(self.seeds)}")
        for key in self.allowed:
            reason = next((reason for fixed, reason in NEVER_ALLOWED.items() if covers(key, fixed)), None)
            if reason:
                raise ValueError(f"allowed has {key!r}, which can't differ between variants: {reason}")

    @property
    def arms_by_head(self) -> dict[str, dict[str, str]]:
        """Head -> variant -> the name of the arm; empty without heads."""
        return {head: {variant: f"{head}.{variant}" for variant in self.variants} for head in self.heads}

    @property
    def arms(self) -> dict[str, tuple[Any, ...]]:
        """The name of every arm that is trained -> its changes of the base, in their order."""
        if not self.heads:
            return {name: (changes,) for name, changes in self.variants.items()}
        return {
            arm: (self.heads[head], self.variants[variant])
            for head, arms in self.arms_by_head.items()
            for variant, arm in arms.items()
        }


@dataclass(frozen=True, slots=True)
class KeyDifference:
    """A config key in which variants differ, and the value of each."""

    key: str
    values: dict[str, Any]


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Returns the experiment in the YAML file at ``path``; ``overrides`` (key=value) follow those of the file.

    Raises:
        ValueError: no such file, or an unknown key or value; the message names the file.
    """
    path = Path(path)
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"experiment {path} can't be read: {error}") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"experiment {path} must hold a YAML mapping with base, variants and seeds")
    try:
        experiment = build_dataclass(Experiment, {"name": path.stem, **values})
    except ValueError as error:
        raise ValueError(f"experiment {path}: {error}") from error
    base = str(path.parent / experiment.base)
    arms = {name: tuple(str(path.parent / file) for file in files) for name, files in experiment.detections.items()}
    for name, file in ((name, file) for name, files in arms.items() for file in files or ("",)):
        if not Path(file).is_file():
            raise ValueError(f"experiment {path}: detections.{name} is {file!r}, expected files of detections")
    for name, files in arms.items():
        if len({Path(file).resolve() for file in files}) < len(files):
            raise ValueError(
                f"experiment {path}: detections.{name} has a file twice, expected those of different seeds"
            )
    return replace(experiment, base=base, overrides=(*experiment.overrides, *overrides), detections=arms)


def resolve_base(experiment: Experiment, schema: type[ConfigT]) -> ConfigT:
    """Returns the config that all variants start from, of ``schema``.

    Raises:
        ValueError: no such config, or an invalid override.
    """
    return load_config(schema, experiment.base, experiment.overrides)


def resolve_variants(experiment: Experiment, schema: type[ConfigT]) -> dict[str, ConfigT]:
    """Returns the whole config of every variant (under each head, where there are heads), at the base's seed.

    Raises:
        ValueError: an unknown key or value (the message names the variant), or no data to test on.
    """
    _check_allowed(experiment, schema)
    configs = dict[str, ConfigT]()
    for name, changes in experiment.arms.items():
        try:
            overrides = [*experiment.overrides, *chain.from_iterable(map(_as_overrides, changes))]
            configs[name] = load_config(schema, experiment.base, overrides)
        except ValueError as error:
            raise ValueError(f"variant {name!r}: {error}") from error
        if patience := configs[name].solver.patience:
            raise ValueError(
                f"variant {name!r}: solver.patience {patience} ends runs after different numbers of steps, which no "
                "protocol makes equal; set it to 0"
            )
        if not configs[name].data.test:
            raise ValueError(f"variant {name!r}: data.test is empty, and a comparison needs a test set; name one")
    return configs


def check_fair(experiment: Experiment, configs: Mapping[str, ProgramConfig]) -> tuple[KeyDifference, ...]:
    """Returns the differences between ``configs``, all allowed by the experiment; heads are compared one by one.

    Heads may differ in all keys but those that only the experiment may set.

    Raises:
        ValueError: a key outside the allowed list differs; the message has the values of all variants.
    """
    found = differences(configs)
    groups = [[*arms.values()] for arms in experiment.arms_by_head.values()] or [[*configs]]
    within = [difference for arms in groups for difference in differences({arm: configs[arm] for arm in arms})]
    for difference in (*within, *(d for d in found if d.key in NEVER_ALLOWED)):
        if not any(covers(allowed, difference.key) for allowed in experiment.allowed):
            values = ", ".join(f"{variant} has {value!r}" for variant, value in difference.values.items())
            fix = NEVER_ALLOWED.get(difference.key)
            where = "variants and heads" if experiment.heads else "variants"
            raise ValueError(
                f"experiment {experiment.name}: {difference.key} differs and is not allowed to: {values}. "
                + (f"Take it out of the {where}; {fix}" if fix else _fix(experiment, difference.key))
            )
    return found


def differences(configs: Mapping[str, ProgramConfig]) -> tuple[KeyDifference, ...]:
    """Returns the keys in which ``configs`` (variant -> config) are not all equal."""
    flat = {variant: flatten(config) for variant, config in configs.items()}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    found = (KeyDifference(key, {variant: values.get(key) for variant, values in flat.items()}) for key in keys)
    return tuple(d for d in found if any(value != next(iter(d.values.values())) for value in d.values.values()))


def covers(allowed: str, key: str) -> bool:
    """Returns whether ``allowed`` is ``key`` or a section around it."""
    return key == allowed or key.startswith(allowed + ".")


def _fix(experiment: Experiment, key: str) -> str:
    if key in PROTOCOL_KEYS[experiment.protocol.name]:
        return f"The protocol {experiment.protocol.name} sets it; take it out of the variants"
    return f"Take it out of the variants, or add {key} to `allowed`, which puts it into the report"


def _check_allowed(experiment: Experiment, schema: type[ProgramConfig]) -> None:
    known = list(flatten(schema()))
    sections = {key.rpartition(".")[0] for key in known} - {""}
    for key in experiment.allowed:
        if key not in known and key not in sections:
            nearest = difflib.get_close_matches(key, [*known, *sections], n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else "it takes section.key, such as backbone.name"
            raise ValueError(f"experiment {experiment.name}: allowed has {key!r}, which is no config key; {hint}")


def _as_overrides(changes: Any) -> list[str]:
    """Returns ``changes``, a mapping or a list, as key=value overrides."""
    if isinstance(changes, Mapping):
        return [f"{key}={json.dumps(value)}" for key, value in leaves(changes)]
    if isinstance(changes, list):
        return [str(change) for change in changes]
    raise ValueError(f"it takes a mapping, such as {{backbone: {{name: resnet18}}}}, or [key=value], got {changes!r}")

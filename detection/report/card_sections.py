"""Sections of a model card on the making of a detector: data, recipe, costs, licences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detection.evaluation.metrics import NONE
from detection.pages.page import Section, Table, Text
from detection.report.recorded import DataSet, Recorded
from detection.report.words import number
from detection.weights.origin import origin_of

__all__ = ["costs_section", "data_section", "licence_section", "names", "recipe_section"]

UNRECORDED = "not recorded"


def data_section(recorded: Recorded) -> Section:
    """Returns the section on data sets: counts at the newest start of the training, and sources."""
    counts, tested = recorded.starts[-1]["data"] if recorded.starts else {}, recorded.tested
    rows = [
        [
            {"train": "trained on", "val": "watched in training"}[key],
            names(sets),
            *(_counted(counts.get(key, {}).get(what)) for what in ("images", "objects")),
        ]
        for key, sets in recorded.data.items()
    ]
    if tested is not None:
        objects = None if tested.objects is None else sum(tested.objects.values())
        rows.append(["tested on", names(tested.sets), _counted(tested.result["images"]), _counted(objects)])
    found = {one.card: one.source for one in recorded.sets}
    sources = [[name, source or "no source and no licence in its card"] for name, source in found.items()]
    return Section(
        "Data",
        [
            Table("Sets, and what was in them.", ["", "set", "images", "objects"], rows, words=True),
            Table("Where the data come from, as their cards say.", ["data set", "source"], sources, words=True),
        ],
    )


def recipe_section(recorded: Recorded) -> Section:
    """Returns the section on the training recipe."""
    config = recorded.checkpoint.config
    solver, source = config.solver, origin_of(config)[0]
    norm = f", norm {config.backbone.norm}" if config.backbone.norm else ""
    rows = [
        ["architecture", config.architecture],
        ["backbone", f"{config.backbone.name}{norm}{', feature pyramid' if config.backbone.fpn else ''}"],
        ["starts from", source or "random weights"],
        ["steps", f"{recorded.checkpoint.iteration:,} of {solver.iterations:,}, {solver.images_per_step} images each"],
        ["epochs", _epochs(recorded)],
        ["optimizer", f"{solver.optimizer}, learning rate {solver.base_lr:g} ({solver.schedule})"],
        ["weight decay", f"{solver.weight_decay:g}"],
        ["augmentation", ", ".join(map(_augmentation, config.data.augment)) or "none"],
        ["precision", solver.precision],
        ["seed", f"{config.seed}{', deterministic' if config.deterministic else ''}"],
        ["versions", _versions(recorded)],
        ["all options", "config.yaml"],
    ]
    return Section("Recipe", [Table("How it was trained.", ["", "value"], rows, words=True)])


def names(sets: Sequence[DataSet]) -> str:
    """Returns the names of ``sets``."""
    return ", ".join(one.name for one in sets) or "none"


def costs_section(recorded: Recorded) -> Section:
    """Returns the section on measured costs of training and test."""
    result: dict[str, Any] = {} if recorded.tested is None else dict(recorded.tested.result)
    hours, costs = recorded.hours, recorded.costs or {}
    latency = costs.get("latency_ms")
    seconds, memory = result.get("seconds_per_image"), result.get("peak_memory_gib")
    rows = [
        ["parameters", f"{recorded.parameters:,}"],
        ["file", f"{recorded.checkpoint.path.stat().st_size / 2**20:.1f} MiB"],
        ["multiply-adds", f"{costs['gflops']:.1f} billion; {costs['flops_note']}" if "gflops" in costs else UNRECORDED],
        ["latency", UNRECORDED if latency is None else f"{latency['p50']:.0f} ms (p50), {latency['device']}"],
        ["test", UNRECORDED if seconds is None else f"{seconds:.3f} s an image, without reading it"],
        ["memory of the test", UNRECORDED if memory is None else f"{memory:.2f} GiB at the peak"],
        ["training", UNRECORDED if hours is None else f"{_time(hours)} from start to end, with tests"],
        ["hardware", _hardware(recorded)],
    ]
    return Section("Costs", [Table("As measured, on the machine of the run.", ["", "value"], rows, words=True)])


def licence_section(recorded: Recorded, licence: str | None) -> Section:
    """Returns the section on licences of the weights, of the weights they start from, and of the data."""
    source, known = origin_of(recorded.checkpoint.config)
    origin = "none: trained from random weights" if source is None else f"{source}: {known or 'not known'}"
    rows = [["these weights", licence or "not stated"], ["weights that training started from", origin]]
    return Section(
        "Licence",
        [Table("Licences.", ["of", "licence"], rows, words=True), Text("Those of the data stand under Data.")],
    )


def _augmentation(entry: str | Mapping[str, Any]) -> str:
    return entry if isinstance(entry, str) else next(iter(entry))


def _counted(count: int | None) -> str:
    return NONE if count is None else f"{count:,}"


def _epochs(recorded: Recorded) -> str:
    images = recorded.starts[-1]["data"].get("train", {}).get("images") if recorded.starts else None
    seen = recorded.checkpoint.iteration * recorded.checkpoint.config.solver.images_per_step
    return UNRECORDED if not images else number(seen / images)


def _versions(recorded: Recorded) -> str:
    versions = recorded.starts[-1].get("versions", {}) if recorded.starts else {}
    return (
        ", ".join(f"{name} {versions[name]}" for name in ("resdet", "torch", "python") if name in versions)
        or UNRECORDED
    )


def _hardware(recorded: Recorded) -> str:
    if not recorded.starts:
        return UNRECORDED
    hardware = recorded.starts[-1].get("hardware", {})
    return ", ".join(f"{name} {hardware[name]}" for name in ("device", "cores", "threads") if name in hardware)


def _time(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"

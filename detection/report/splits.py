"""Checks that detectors were tested on the stated images, and not on training images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detection.engine.manifest import read_manifest
from detection.pages.page import Block, Text
from detection.report.reading import ExperimentFolder, RunFolder

__all__ = ["copies_text", "split_numbers", "split_warnings"]


def split_numbers(experiment: ExperimentFolder) -> dict[str, Any]:
    """Returns the data sets that the runs recorded.

    "tested_on" holds the test set of the results if the experiment names another one; "shared" the training sets that
    are also tested; "unlike" the runs, as variant and seed, whose images or objects under the same name differ from
    those of most runs.
    """
    base, done = experiment.plan["base"], [run for run in experiment.runs if run.state == "done"]
    varied = {difference["key"] for difference in experiment.plan["differences"]}
    planned, tested = tuple(base["data.test"]), {run.tested_on for run in done}
    return {
        "planned": planned,
        "tested_on": None if tested <= {planned} else min(tested),
        "shared": [spec for spec in base.get("data.train", ()) if any(spec in specs for specs in tested)],
        "unlike": {
            "train": _unlike(done, "train", one_set="data.train" not in varied),
            "test": _unlike(done, "test", one_set=True),
        },
    }


def split_warnings(numbers: dict[str, Any]) -> list[str]:
    """Returns warnings about images that should not have been tested, a sentence each."""
    found, leakage, warnings = numbers.get("splits"), numbers.get("leakage"), list[str]()
    if found and found["tested_on"]:
        warnings.append(
            f"Tested on another split than the experiment says: {', '.join(found['tested_on'])} instead of "
            f"{', '.join(found['planned'])}."
        )
    if found and found["shared"]:
        warnings.append(
            f"Tested on images of the training: {', '.join(found['shared'])} is in both sets, so that AP says nothing "
            "of new images."
        )
    for name, runs in found["unlike"].items() if found else ():
        if runs:
            warnings.append(f"Other images or objects in data.{name} than the other runs had: {', '.join(runs)}.")
    if leakage and leakage["copies"]["count"] and not (found and found["shared"]):
        warnings.append(f"{_said(leakage, 'copies')} copies of training images, so that AP on them proves nothing.")
    if leakage and (leakage["near_copies"] or {"count": 0})["count"]:
        warnings.append(
            f"{_said(leakage, 'near_copies')} nearly the same as training images, as frames of one scene are: AP on "
            "new images may be lower."
        )
    return warnings


def copies_text(numbers: dict[str, Any]) -> list[Block]:
    """Returns a sentence on the copies that were searched for among the test images."""
    leakage = numbers.get("leakage")
    if not leakage:
        return [Text("Whether test images are copies of training images was not looked for.")]
    near, unread = leakage["near_copies"], leakage["unread"]
    text = (
        f"Of {leakage['test_images']:,} test images {leakage['copies']['count']:,} are copies of one of "
        f"{leakage['train_images']:,} images of training, "
        + ("near copies were not looked for" if near is None else f"{near['count']:,} nearly the same")
        + (f"; {unread:,} files could not be read" if unread else "")
    )
    return [Text(f"{text}.")]


def _said(leakage: dict[str, Any], kind: str) -> str:
    found = leakage[kind]
    examples = ", ".join(f"{Path(one).name} of {Path(other).name}" for one, other in found["examples"])
    return f"{found['count']:,} of {leakage['test_images']:,} test images (such as {examples}) are"


def _unlike(runs: Sequence[RunFolder], name: str, *, one_set: bool) -> list[str]:
    """Returns the runs whose data set ``name`` differs from that of most runs; skips runs without a manifest.

    Seeds of a variant must have identical data.  Variants of ``one_set`` must have the same numbers of images and
    objects; their hashes may differ in masks, which not every detector reads.
    """
    known = {run: entries[-1]["data"][name] for run in runs if (entries := _starts(run, name))}
    counts = {run: (entry["images"], entry["objects"]) for run, entry in known.items() if one_set}
    seeds = {run: (run.variant, entry["sha256"]) for run, entry in known.items()}
    usual = {run.variant: _mode([seeds[other] for other in known if other.variant == run.variant]) for run in known}
    most = _mode([*counts.values()]) if counts else None
    unlike = (run for run in known if seeds[run] != usual[run.variant] or (counts and counts[run] != most))
    return [f"{run.variant}, seed {run.seed}" for run in unlike]


def _starts(run: RunFolder, name: str) -> list[dict[str, Any]]:
    return [entry for entry in read_manifest(run.folder) if name in entry["data"]]


def _mode(values: Sequence[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]

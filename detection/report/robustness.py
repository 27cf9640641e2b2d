"""AP on corrupted images, and the loss against clean images, with intervals.

For label maps, mIoU or PQ replaces AP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detection.data.corruptions import CORRUPTIONS
from detection.data.index import AnnotationIndex
from detection.engine.label_counts import label_classes
from detection.evaluation.average_precision import average_precision, mean_over_classes
from detection.evaluation.inference import compare_samples
from detection.evaluation.jackknife import Sample, Statistic, jackknife
from detection.evaluation.matching import match
from detection.evaluation.metrics import named
from detection.evaluation.record import Record
from detection.evaluation.run_figures import label_statistics
from detection.evaluation.text_table import text_table
from detection.files import write_text
from detection.pages.page import Section, Table
from detection.report.numbers import as_json
from detection.report.words import claimed, percent_interval
from detection.tasks.robustness import FOLDER, corrupted_files, read_corrupted
from detection.tasks.test import read_records

__all__ = ["robustness_numbers", "robustness_section", "write_robustness"]

AP = "bbox.AP"


def write_robustness(run: Path) -> str:
    """Writes robustness.json into the folder of a test that ``run_corrupted`` completed; returns its table.

    Raises:
        ValueError: a corruption was not tested, or a file can't be used.
    """
    numbers = robustness_numbers([run])
    if numbers is None:
        raise ValueError(f"{run / FOLDER} lacks detections of some corruptions; run resdet test --robustness again")
    write_text(run / f"{FOLDER}.json", json.dumps(numbers, indent=2) + "\n")
    figure = numbers["figure"]
    rows = [[name, percent_interval(row[figure]), claimed(row["loss"])] for name, row in numbers["corruptions"].items()]
    rows.insert(0, ["clean", percent_interval(numbers["clean"]), ""])
    return text_table(["images", f"{figure} [95 %]", "loss [95 %]"], rows)


def robustness_numbers(runs: Sequence[Path]) -> dict[str, Any] | None:
    """Returns AP, or the figure of label maps, on clean and on corrupted images, mean over ``runs`` (seeds of
    one variant), and each loss.

    Intervals cover the choice of images and, with several runs, of seeds; each holds alone.  None if corrupted images
    were not tested.

    Raises:
        ValueError: a file that can't be used.
    """
    files = [corrupted_files(run) for run in runs]
    if not runs or None in files:
        return None
    read = [read_records(run, say=lambda _: None) for run in runs]
    clean = [_sample(index, records) for index, records in read]
    metric, corruptions = named(clean[0].names[0]), dict[str, Any]()
    for corruption in CORRUPTIONS:
        corrupted = [
            _sample(index, read_corrupted(index, found[corruption.name]))
            for (index, _), found in zip(read, files, strict=True)
            if found is not None
        ]
        comparison = compare_samples({"clean": clean, "corrupted": corrupted})
        arm, (pair,) = comparison.variants["corrupted"], comparison.pairs
        corruptions[corruption.name] = {
            "strength": corruption.strength,
            metric.name: (arm.methods or arm.detectors)[metric.key],
            "loss": (pair.methods or pair.detectors)[metric.key],
        }
    arm = compare_samples({"clean": clean}).variants["clean"]
    on_clean = (arm.methods or arm.detectors)[metric.key]
    return as_json({"seeds": len(runs), "figure": metric.name, "clean": on_clean, "corruptions": corruptions})


def robustness_section(variants: Mapping[str, dict[str, Any] | None], confidence: float) -> Section:
    """Returns the section on the tested variants (name -> ``robustness_numbers``); empty without any."""
    known = {name: numbers for name, numbers in variants.items() if numbers is not None}
    if not known:
        return Section("Corrupted images", [])
    level, figure = f"{100 * confidence:g} %", next(iter(known.values()))["figure"]
    names = [corruption.name for corruption in CORRUPTIONS]
    ap = [["clean", *(percent_interval(numbers["clean"]) for numbers in known.values())]]
    ap += [[n, *(percent_interval(numbers["corruptions"][n][figure]) for numbers in known.values())] for n in names]
    loss = [[n, *(claimed(numbers["corruptions"][n]["loss"]) for numbers in known.values())] for n in names]
    scope = "other images and, where there are several seeds, other seeds; each interval stands alone"
    lost = (
        f"Change of {figure} from clean to corrupted images, in points: Gaussian blur and noise, JPEG, darker images, "
        f"each at three strengths (docs/compare.md), with {level} intervals over {scope}. *: more than chance."
    )
    reached = f"{figure} on clean and corrupted images in percent, with {level} intervals over the same."
    header = ["images", *known]
    tables = [Table(caption, header, rows, fixed=True) for caption, rows in ((lost, loss), (reached, ap))]
    return Section("Corrupted images", tables)


def _sample(index: AnnotationIndex, records: Sequence[Record]) -> Sample:
    """Returns the deciding figure of ``records``."""
    labels = label_classes(index)
    if labels is not None:
        deciding, *_ = label_statistics(records, labels)
        return jackknife(deciding, len(records))
    matches = match(records, index.class_names)
    with_objects = np.stack([found.num_objects > 0 for found in matches.classes]).any(axis=0)
    ap = Statistic(
        names=(AP,),
        compute=lambda weights: mean_over_classes(average_precision(matches, weights).mean(axis=2))[:, None],
        images=np.array([with_objects.sum()]),
    )
    return jackknife(ap, len(records))

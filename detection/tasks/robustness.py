"""Tests a detector on corrupted images and writes OUTPUT/robustness/NAME.json for each corruption.

The files hold detections in COCO's results format, or the content of segmentation.json for label maps.

Existing files are kept, so that an interrupted test continues.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from detection.config.detection import DetectionConfig
from detection.data.corruptions import CORRUPTIONS
from detection.data.index import AnnotationIndex
from detection.engine.checkpoint import Checkpoint
from detection.engine.device import choose_device
from detection.engine.distributed import is_main, only_main, start, together
from detection.evaluation.coco import coco_results
from detection.evaluation.metrics import deciding_key, figures, named
from detection.evaluation.record import Record
from detection.files import write_text
from detection.progress import SCREEN
from detection.tasks.evaluate import read_detections, without_objects
from detection.tasks.label_files import read_counts, write_counts
from detection.tasks.test import load_test_set, measure, restore_detector

__all__ = ["FOLDER", "corrupted_files", "read_corrupted", "run_corrupted"]

FOLDER = "robustness"


def run_corrupted(
    config: DetectionConfig,
    checkpoint: Checkpoint[DetectionConfig],
    output: Path,
    *,
    limit: int | None = None,
    say: Callable[[str], None] = SCREEN.print,
) -> None:
    """Tests ``checkpoint`` on ``config.data.test`` under each corruption at each strength.

    Args:
        config: config of the run.
        checkpoint: weights of a detector that ``config`` describes.
        output: directory for robustness/.
        limit: number of images, the first ones; None: all.
        say: called with each line of progress.

    Raises:
        ValueError: bad data or config, or weights that do not fit.
    """
    start(choose_device(config.device))
    say = only_main(say)
    index = load_test_set(config, say)
    detector = restore_detector(config, checkpoint, index.class_names)
    for corruption in CORRUPTIONS:
        path = output / FOLDER / f"{corruption.name}.json"
        if path.is_file():
            continue
        measured = measure(config, [detector], index, limit=limit, corrupt=corruption)
        known = figures(measured.result)
        metric = named(deciding_key(known))
        say(f"{corruption.name}: {metric.name} {metric.format(known[metric.key])}")
        with together("writing detections on corrupted images"):
            if is_main():
                path.parent.mkdir(parents=True, exist_ok=True)
                if index.label_maps is not None:
                    write_counts(path, measured.records, index.label_maps)
                else:
                    write_text(path, json.dumps(coco_results(measured.records, index.category_ids)))


def read_corrupted(index: AnnotationIndex, path: Path) -> list[Record]:
    """Reads one of the files into a record for each image of ``index``.

    Raises:
        ValueError: a file that can't be used.
    """
    if index.label_maps is not None:
        return read_counts(path, without_objects(index), index.label_maps)
    return read_detections(index, path, source="the images that were tested")


def corrupted_files(run: Path) -> dict[str, Path] | None:
    """Returns the file of each corruption by its name; None unless all exist."""
    files = {corruption.name: run / FOLDER / f"{corruption.name}.json" for corruption in CORRUPTIONS}
    return files if all(path.is_file() for path in files.values()) else None

"""Downloads, checks and converts published detectors by name; published.py has their table.

A file is checked against the digits of the checksum in its name.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from backbones.weights.load import read_state_dict
from detection.config.detection import DetectionConfig
from detection.data.download import Archive, Progress
from detection.data.download import fetch as download
from detection.engine.checkpoint import write_converted
from detection.weights.detectron2 import convert_detectron2
from detection.weights.detectron2_panoptic import object_classes
from detection.weights.published import REFUSED, ZOO, Entry
from detection.weights.torchvision import convert_torchvision

__all__ = ["REFUSED", "ZOO", "Entry", "fetch", "find_entry"]


def find_entry(name: str) -> Entry:
    """Returns the row of ``ZOO`` called ``name``.

    Raises:
        ValueError: there is no such row (the message has the nearest name), or it does not load here (with the reason).
    """
    if name in REFUSED:
        raise ValueError(f"{name} of Detectron2's model zoo does not load here: {REFUSED[name]}")
    known = {entry.name: entry for entry in ZOO}
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise ValueError(f"no detector {name!r} in the zoo; {hint}known: {', '.join(known)}")
    return known[name]


def fetch(entry: Entry, folder: Path, *, progress: Progress | None = None, attempts: int = 5) -> Path:
    """Returns the run directory of ``entry`` in ``folder``, with config.yaml and checkpoints/.

    If it is missing, the file is downloaded, checked and converted; a later call resumes an interrupted download.

    Raises:
        ValueError: the server refuses the address, the checksum is wrong, or the file does not fit.
        ConnectionError: every connection was dropped; the bytes received so far are kept.
    """
    run = folder / entry.name
    if any((run / "checkpoints").glob("*.safetensors")):
        return run
    file = download(Archive(entry.url), run, progress=progress, attempts=attempts)
    _check(entry, file)
    config, state = _convert(entry, file)
    test = (entry.data,) if entry.has_card else ()
    names = object_classes(config, entry.class_names)
    write_converted(run, replace(config, data=replace(config.data, test=test)), names, state)
    return run


def _check(entry: Entry, file: Path) -> None:
    algorithm, digits = entry.checksum
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, algorithm).hexdigest()
    if not found.startswith(digits):
        file.unlink()
        raise ValueError(
            f"{file.name}: {algorithm} is {found}, expected {digits}..; the download was deleted: run the command "
            f"again, and if it fails again, {entry.url} holds another file than its name says"
        )


def _convert(entry: Entry, file: Path) -> tuple[DetectionConfig, dict[str, Tensor]]:
    state = read_state_dict(file)
    if entry.source == "torchvision":
        return convert_torchvision(state, class_names=entry.class_names, norm_eps=entry.norm_eps)
    return convert_detectron2(state, class_names=entry.class_names, settings=entry.settings)

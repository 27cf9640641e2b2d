"""Caches the index of a large annotation file as a file of tensors, which processes map into memory.

Mapped tensors are in memory once, however many ranks and workers there are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from detection.data.index import AnnotationIndex
from detection.data.kept import content_digest, kept_file, store, taken, use
from detection.data.label_maps import LabelMaps
from detection.data.packed_strings import PackedStrings
from detection.data.problems import Problem
from detection.files import digest
from detection.keypoints import KeypointSpec

__all__ = ["Found", "kept_index"]

LEAST_BYTES = 8 << 20  # smaller files are read in less than 0.1 s
PACKED = ("characters", "ends")
LABEL_STRINGS = ("files", "segments", "objects")  # of label maps
TENSORS = ("image_ids", "sizes", "apply_exif", "ends", "boxes", "labels", "ignore", "areas", "unjudged")
REPAIR = "set $RESDET_CACHE to another folder, or to off"

# An index, what is wrong with it, and whether it depends on the annotation file and on the names of images alone.
Found = tuple[AnnotationIndex, list[Problem], bool]


def kept_index(file: Path, facts: Any, read: Callable[[], Found]) -> tuple[AnnotationIndex, list[Problem]]:
    """Returns the index and the problems of the annotation file ``file``, from the cache or from ``read``.

    A cached index is valid while the file has the same content and no folder of its images has changed.  An index with
    errors is never cached.  A broken cache file is rewritten, with a note.

    Args:
        file: annotation file.
        facts: what else the index depends on.
        read: reads the file.
    """
    path = None
    with suppress(OSError):  # ``read`` reports it
        if kept_file("") is not None and file.stat().st_size >= LEAST_BYTES:
            path = kept_file(".safetensors", content_digest(file), facts)
    if path is None:
        return read()[:2]
    with taken(path):
        notes = list[Problem]()
        try:
            kept = _load(path)
            if kept is not None:
                use(path)
                return kept
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            notes.append(_note("kept index that can't be used; it is written anew", path, str(error)))
        started = time.time_ns()
        index, problems, keep = read()
        folders = _folders(index) if keep and not any(problem.severity == "error" for problem in problems) else {}
        if not folders or max(changed for changed, _ in folders.values()) >= started:
            return index, problems + notes
        try:
            store(path, lambda temporary: _save(index, problems, folders, temporary))
            return (_load(path) or (index, problems))[0], problems + notes
        except (OSError, SafetensorError) as error:
            notes.append(_note(f"index that can't be kept for the next run; {REPAIR}", path, str(error)))
    return index, problems + notes


def _note(kind: str, path: Path, detail: str) -> Problem:
    return Problem("note", kind, str(path), detail)


def _folders(index: AnnotationIndex) -> dict[str, tuple[int, int]]:
    """Returns the last change of each folder of images and label images; empty if one is missing."""
    files = [*index.paths.all(), *([] if index.label_maps is None else index.label_maps.files.all())]
    try:
        return {folder: _changed(folder) for folder in {file.rpartition("/")[0] for file in files if file}}
    except OSError:
        return {}


def _changed(folder: str) -> tuple[int, int]:
    found = Path(folder).stat()
    return found.st_mtime_ns, found.st_ctime_ns


def _save(index: AnnotationIndex, problems: list[Problem], folders: dict[str, tuple[int, int]], path: Path) -> None:
    maps = index.label_maps
    strings = {"paths": index.paths, **{f"fields.{name}": packed for name, packed in index.fields.items()}}
    if maps is not None:
        named = {name: getattr(maps, name) for name in LABEL_STRINGS}
        strings |= {f"label_maps.{name}": packed for name, packed in named.items() if packed is not None}
    facts = {
        "class_names": index.class_names,
        "category_ids": index.category_ids,
        "has_ground_truth": index.has_ground_truth,
        "keypoints": None if index.keypoints is None else asdict(index.keypoints),
        "label_maps": None if maps is None else [maps.class_names, [*maps.values.items()], maps.num_things],
        "problems": [asdict(problem) for problem in problems],
        "folders": folders,
    }
    tensors: dict[str, Tensor] = {
        **{name: getattr(index, name).contiguous() for name in TENSORS},
        **{f"{name}.{part}": getattr(packed, part) for name, packed in strings.items() for part in PACKED},
        "facts": torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8),
    }
    save_file(tensors, path, {"digest": digest(tensors)})


def _load(path: Path) -> tuple[AnnotationIndex, list[Problem]] | None:
    """Returns the index and problems stored in ``path``; None if it is missing or a folder of the images has changed.

    Raises:
        ValueError: the file has changed since it was written.
    """
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        if digest(tensors) != (file.metadata() or {}).get("digest"):
            raise ValueError("its content is not what was written")
    facts = json.loads(tensors["facts"].numpy().tobytes())
    try:
        if any(_changed(folder) != tuple(times) for folder, times in facts["folders"].items()):
            return None
    except OSError:
        return None
    strings = {
        name.removesuffix(".ends"): PackedStrings(tensors[f"{name.removesuffix('.ends')}.characters"], ends)
        for name, ends in tensors.items()
        if name.endswith(".ends")
    }
    labels = {name: strings.pop(f"label_maps.{name}", None) for name in LABEL_STRINGS}
    index = AnnotationIndex(
        class_names=tuple(facts["class_names"]),
        category_ids=tuple(facts["category_ids"]),
        has_ground_truth=facts["has_ground_truth"],
        keypoints=_spec(facts["keypoints"]),
        label_maps=_label_maps(facts["label_maps"], labels),
        paths=strings.pop("paths"),
        fields={name.removeprefix("fields."): packed for name, packed in strings.items()},
        **{name: tensors[name] for name in TENSORS},
    )
    return index, [_problem(values) for values in facts["problems"]]


def _spec(values: dict[str, Any] | None) -> KeypointSpec | None:
    if values is None:
        return None
    return KeypointSpec(tuple(values["names"]), tuple((a, b) for a, b in values["edges"]), tuple(values["sigmas"]))


def _label_maps(facts: list[Any] | None, strings: dict[str, PackedStrings | None]) -> LabelMaps | None:
    files = strings.pop("files")
    if facts is None or files is None:
        return None
    names, values, num_things = facts
    known = {int(value): int(label) for value, label in values}
    return LabelMaps(class_names=tuple(names), files=files, values=known, num_things=num_things, **strings)


def _problem(values: dict[str, Any]) -> Problem:
    return Problem(**{**values, "images": tuple(values["images"]), "boxes": tuple(map(tuple, values["boxes"]))})

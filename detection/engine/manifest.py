"""RUN/manifest.json: the origin of a run, with an entry for every start."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from detection.config.load import dump_config
from detection.data.index import AnnotationIndex, index_digest
from detection.engine.distributed import is_main, world_size
from detection.engine.loop import TrainState
from detection.files import digest, write_text

__all__ = ["made_by", "manifest_entry", "read_manifest"]

PACKAGES = ("resdet", "torch", "torchvision", "numpy", "albumentations", "opencv-python-headless", "safetensors")
REPOSITORY = Path(__file__).parents[2]


@contextmanager
def manifest_entry(
    folder: Path,
    config: Any,
    state: TrainState,
    data: Mapping[str, AnnotationIndex],
    device: torch.device,
) -> Iterator[list[str]]:
    """Writes an entry for this start of a run; its end is added at exit, unless the process is killed.

    Yields a warning for every data set that has changed since the start before, and one for a broken manifest, which is
    put aside.

    Args:
        folder: of the run.
        config: of the run.
        state: before the first step of this start.
        data: the data sets by purpose, such as "train".
        device: device of the run.
    """
    if not is_main():
        yield []
        return
    entries, warnings = _earlier(folder)
    entry = {
        "started": _now(),
        "ended": None,
        "exit": None,
        "first_iteration": state.iteration,
        "last_iteration": None,
        **made_by(device),
        "config_sha256": digest(dump_config(config)),
        "data": {name: _described(index) for name, index in data.items()},
        "weights_sha256": digest(state.model.state_dict()),
        "layout": state.layout,
        "world_size": world_size(),
    }
    warnings += _changes(entries[-1]["data"], entry["data"]) if entries and state.iteration else []

    def write(**end: Any) -> None:
        write_text(folder / "manifest.json", json.dumps([*entries, entry | end], indent=2) + "\n")

    write()
    try:
        yield warnings
    except BaseException as error:
        with suppress(OSError):  # a full disk may be the error
            write(ended=_now(), exit=f"{type(error).__name__}: {error}", last_iteration=state.iteration)
        raise
    write(ended=_now(), exit="finished", last_iteration=state.iteration)


def made_by(device: torch.device) -> dict[str, Any]:
    """Returns the origin of a figure: command, commit, versions and hardware."""
    return {
        "command": sys.argv,
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "hardware": _hardware(device),
    }


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """Returns the entries of the run in ``folder``, the first start first.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("data"), dict) for e in entries
    ):
        raise ValueError(f"{path} can't be read: it is no list of the starts of a run")
    return entries


def _earlier(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the entries of earlier starts, and a warning if they can't be read."""
    path = folder / "manifest.json"
    try:
        return read_manifest(folder), []
    except ValueError as error:
        aside = path.with_name(path.name + ".damaged")
        path.replace(aside)
        return [], [f"warning: {error}; it is renamed to {aside.name}, and earlier starts are not compared"]


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns a warning for every data set whose description has changed."""
    lines = []
    for name in sorted(before.keys() & now.keys()):
        old, new = before[name], now[name]
        if old != new:
            counts = [
                f"{old.get(what)} -> {new[what]} {what}" for what in ("images", "objects") if old.get(what) != new[what]
            ]
            said = ", ".join(counts) or "equally many images and objects, but other file names, sizes, boxes or labels"
            lines.append(f"warning: data.{name} has changed since the last start: {said}")
    return lines


def _described(index: AnnotationIndex) -> dict[str, Any]:
    return {"images": len(index), "objects": len(index.boxes), "sha256": index_digest(index)}


def _hardware(device: torch.device) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": platform.processor() or platform.machine(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }


def _commit() -> str | None:
    """Returns the commit of this checkout, "-dirty" after it where files differ; None for an installed package."""
    if not (REPOSITORY / ".git").exists():
        return None
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or a checkout of another user
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

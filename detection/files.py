"""Writes files whole or not at all, computes checksums of contents, and checks files before they are opened."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from stat import S_ISREG
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

__all__ = ["digest", "require_file", "write_text", "write_whole"]


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets ``write`` fill a temporary file next to ``path``, syncs and renames it; an error leaves ``path`` alone.

    Raises:
        OSError: it can't be written; the message says how much space is left.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)  # leftovers of a killed process may be for their owner alone
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors' files are for their owner alone
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)  # else a power cut may take the new name back
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's and safetensors' words for a full disk
        space = f"; {shutil.disk_usage(path.parent).free >> 20} MiB are free there" if path.parent.is_dir() else ""
        raise OSError(f"{path} can't be written: {error}{space}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Makes ``text`` the content of ``path``, whole or not at all."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def require_file(path: str | Path) -> None:
    """Raises unless ``path`` is a file: to open a pipe would wait for a writer.

    Raises:
        OSError: there is nothing, or something else.
        ValueError: no file can have this name.
    """
    if not S_ISREG(os.stat(path).st_mode):  # noqa: PTH116  # each training image asks, and Path takes its time
        raise OSError(f"{path} is no file but a folder, a pipe or a device")


def digest(tree: Any) -> str:
    """Returns SHA-256, hexadecimal, of ``tree``: mappings in any order, lists, tuples, tensors, plain values."""
    found = hashlib.sha256()
    for part in _parts(tree):
        found.update(part)
    return found.hexdigest()


def _parts(tree: Any) -> Iterator[bytes | memoryview]:
    if isinstance(tree, Tensor):
        yield f"{tree.dtype}{tuple(tree.shape)}".encode()
        if tree.numel():  # torch can't view an empty tensor that came from numpy, whose stride is 0
            yield tree.detach().cpu().reshape(-1).view(torch.uint8).numpy().data
    elif isinstance(tree, Mapping):
        yield f"mapping of {len(tree)}".encode()
        for name, value in sorted(tree.items(), key=lambda item: str(item[0])):
            yield repr(name).encode()
            yield from _parts(value)
    elif isinstance(tree, (list, tuple)):
        yield f"sequence of {len(tree)}".encode()
        for value in tree:
            yield from _parts(value)
    else:
        yield repr(tree).encode()


def _sync(path: Path) -> None:
    try:
        opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows syncs nothing read-only
    except PermissionError:
        if path.is_dir():  # Windows opens none, nor would it lose the name
            return
        raise
    try:
        os.fsync(opened)
    finally:
        os.close(opened)

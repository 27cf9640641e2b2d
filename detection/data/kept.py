"""The cache of results about data sets that took long to compute, shared by later runs and other processes.

Its folder is $RESDET_CACHE, else $XDG_CACHE_HOME/resdet, else ~/.cache/resdet; ``RESDET_CACHE=off`` disables it.  A
file is named by a digest of all that its content depends on, so a change leads to another file.  Beyond 10 GiB the
least recently used files are removed.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from detection.files import digest, write_whole

__all__ = ["content_digest", "kept_file", "store", "taken", "use"]

try:
    import fcntl
except ImportError:  # Windows, where every process computes by itself
    fcntl = None

OFF = "off"
MOST_BYTES = 10 << 30
PART = 16 << 20  # bytes read at a time
THREADS = min(8, os.cpu_count() or 1)
LONGEST_WAIT, POLL = 900.0, 0.1  # seconds


def kept_file(suffix: str, *facts: Any) -> Path | None:
    """Returns the cache file for content that depends on ``facts`` and on this program; None if the cache is off.

    Args:
        suffix: suffix of the file name.
        facts: arguments of ``detection.files.digest``.
    """
    named = os.environ.get("RESDET_CACHE", "")
    if named.lower() == OFF:
        return None
    above = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = Path(named or f"{above}/resdet").expanduser()
    except RuntimeError:  # the user has no home folder
        return None
    return folder / "data" / f"{digest([_program(), *facts])}{suffix}"


@contextmanager
def taken(path: Path) -> Iterator[None]:
    """Locks ``path``, so that one process makes it and the others find it; creates its folder.

    The system releases the lock when its process ends.  Where locking fails, as in a read-only folder, every process
    continues without the lock.
    """
    held = None
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if fcntl is not None:
            held = path.with_suffix(".lock").open("ab")
    try:
        until = time.monotonic() + LONGEST_WAIT
        while held is not None and fcntl is not None and time.monotonic() < until:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(POLL)
            except OSError:  # the file system has no locks
                break
        yield
    finally:
        if held is not None:
            held.close()


def use(path: Path) -> None:
    """Marks ``path`` as recently used."""
    with suppress(OSError):
        os.utime(path)


def store(path: Path, write: Callable[[Path], Any]) -> None:
    """Makes the file ``path`` with ``write``, whole or not at all, and removes files beyond the size limit.

    Raises:
        OSError: the file can't be written.
    """
    write_whole(path, write)
    with suppress(OSError):
        files = [(entry.stat(), Path(entry.path)) for entry in os.scandir(path.parent)]
        room = MOST_BYTES - path.stat().st_size
        for found, file in sorted(files, key=lambda one: one[0].st_mtime, reverse=True):
            if file.stem == path.stem:
                continue
            room -= found.st_size
            if room < 0:
                with suppress(OSError):  # Windows can't remove an open file
                    file.unlink()
                    file.with_suffix(".lock").unlink(missing_ok=True)


def content_digest(path: Path) -> str:
    """Returns a digest of the bytes of ``path``, read in several parts at a time.

    Raises:
        OSError: the file can't be read.
    """

    def part(start: int) -> bytes:
        with path.open("rb", buffering=0) as stream:
            stream.seek(start)
            return hashlib.sha256(stream.read(PART)).digest()

    with ThreadPoolExecutor(THREADS) as pool:
        return digest([path.stat().st_size, *pool.map(part, range(0, path.stat().st_size, PART))])


@lru_cache(maxsize=1)
def _program() -> str:
    """Returns a digest of the program that reads data sets, so that no cache file of another version is used."""
    package = Path(__file__).parents[1]
    files = [*sorted(package.glob("*.py")), *sorted(package.glob("data/**/*.py")), *sorted(package.glob("fields/*.py"))]
    return digest([[str(file.relative_to(package)), file.read_bytes()] for file in files])

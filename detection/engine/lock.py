"""Locks a run directory for one process: RUN/lock names the process that trains into it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from detection.engine.distributed import is_main, together

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None

__all__ = ["locked"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other programs from training into ``folder``, which is made if needed.

    The system releases the lock when its process ends in any way, so that none is ever stale.  A folder that is still
    empty is removed.

    Raises:
        ValueError: another process has the lock; the message says which.
    """
    path, made, held = folder / "lock", not folder.is_dir(), None
    with together("locking the run directory"):
        if is_main():
            folder.mkdir(parents=True, exist_ok=True)
            held = _take(path)
    try:
        yield
    finally:
        if held is not None:
            path.unlink(missing_ok=True)  # while it is held: nobody else's
            held.close()
            if made:
                with suppress(OSError):
                    folder.rmdir()


def _take(path: Path) -> IO[str] | None:
    """Returns the open file, locked; None where the system has no such locks.

    Locks of POSIX are not inherited by the loader's workers.
    """
    while fcntl is not None:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise ValueError(
                f"{path.parent} is in use by {holder}; wait until it has ended, or choose another directory"
            ) from error
        except OSError:  # a file system without locks
            return file
        if _is_same(file, path):
            _sign(file)
            return file
        file.close()  # its holder removed it meanwhile
    return None


def _sign(file: IO[str]) -> None:
    with suppress(OSError):  # a full disk
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n")
        file.flush()


def _is_same(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False

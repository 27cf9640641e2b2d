"""Loader workers that end with their loader, and whose failures raise an error instead of blocking training.

Workers ignore signals; the training process saves a checkpoint and then ends them.
"""

from __future__ import annotations

import atexit
import os
import pickle
import shutil
import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import cv2
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling
from torch.utils.data._utils.pin_memory import pin_memory
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from detection.waiting import longest_wait

__all__ = ["Loader", "start_worker"]

LONGEST_WAIT = longest_wait("RESDET_BATCH_MINUTES").total_seconds()  # timeout of one batch
POLL = 1.0  # seconds
NOT_HANDED_OVER = 74  # exit status of a worker, sysexits' "input/output error"
SHARED = "/dev/shm"  # shared memory in which workers pass batches
SMALL = 1 << 30  # bytes; with less, such as Docker's default of 64 MiB, batches are sent through pipes instead


class Loader(DataLoader[Any]):  # its stubs yield samples, as they ignore collate_fn
    """A loader that ends its own workers, at the latest at the end of the program."""

    def _get_iterator(self) -> _BaseDataLoaderIter:
        if not self.num_workers:
            return super()._get_iterator()
        self.check_worker_number_rationality()
        if _shared_is_small() and not isinstance(self.collate_fn, _Pickled):
            self.collate_fn = _Pickled(self.collate_fn)
        iterator = _Batches(self)
        end = partial(_end_workers, weakref.ref(iterator), iterator._workers)
        atexit.register(end)  # exit handlers run backwards: before those of torch and multiprocessing
        weakref.finalize(iterator, _finish, end)
        return iterator


class _Batches(_MultiProcessingDataLoaderIter):
    """Waits for a batch at most LONGEST_WAIT, and notices a dead worker at once."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._asked: dict[int, Any] = {}  # keys of the outstanding batches, by number
        super().__init__(loader)
        # torch's own check for dead workers would raise in the middle of a step.
        signal_handling._remove_worker_pids(id(self))  # pyright: ignore[reportPrivateImportUsage]  # no public way
        self._worker_pids_set = False

    def _next_index(self) -> Any:
        keys = super()._next_index()
        self._asked[self._send_idx] = keys
        return keys

    def _next_data(self) -> Any:
        batch = super()._next_data()
        if isinstance(batch, bytes):
            batch = pickle.loads(batch)  # of our own worker
            return pin_memory(batch) if self._pin_memory else batch
        return batch

    def _get_data(self) -> Any:
        until = time.monotonic() + LONGEST_WAIT
        while time.monotonic() < until:
            try:
                success, data = self._try_get_data(POLL)
            except (RuntimeError, OSError, EOFError) as error:  # the latter two if a dead worker left half a batch
                ended = wait([worker.sentinel for worker in self._workers], timeout=POLL)
                if not ended:
                    raise
                raise ChildProcessError(self._why([w for w in self._workers if w.sentinel in ended])) from error
            if success and data is not None:
                self._asked.pop(data[0], None)
                return data
        raise ChildProcessError(
            f"no loader worker has returned a batch for {LONGEST_WAIT:.0f} s; {self._awaited()}. Check that its disk "
            f"responds; data.workers=0 (now {self._num_workers}) reads in the main process, and RESDET_BATCH_MINUTES "
            "gives it more time"
        )

    def _why(self, dead: Sequence[BaseProcess]) -> str:
        """Returns how the workers ``dead`` ended."""
        for worker in dead:
            worker.join(POLL)  # its exit status is known shortly after its end
        status = dead[0].exitcode
        named = f"loader worker {', '.join(str(worker.pid) for worker in dead)}"
        if status in (NOT_HANDED_OVER, _killed_by("SIGBUS")) and Path(SHARED).is_dir():
            disk = shutil.disk_usage(SHARED)
            return (
                f"{named} had no room for a batch in {SHARED}, {disk.free >> 20} MiB free of {disk.total >> 20}: give "
                f"it more (docker run --shm-size=4g), or lower data.workers (now {self._num_workers}); 0 needs none"
            )
        if status == _killed_by("SIGKILL"):
            return (
                f"{named} was killed, as the system does when memory runs out: lower data.workers (now "
                f"{self._num_workers})"
            )
        return f"{named} ended with status {status}; set data.workers=0 (now {self._num_workers}) to see its error"

    def _awaited(self) -> str:
        """Returns the files of the batch that is waited for."""
        keys: Iterable[Any] = self._asked.get(self._rcvd_idx, ())
        paths = getattr(getattr(self._dataset, "index", None), "paths", None)
        files = [str(key) if paths is None else paths[key[1]] for key in keys]
        return f"it was to read {', '.join(files) or 'nothing'}"


def _shared_is_small() -> bool:
    measurable = hasattr(os, "statvfs") and Path(SHARED).is_dir()  # on Linux
    return measurable and shutil.disk_usage(SHARED).total < SMALL


class _Pickled:
    """Collates a batch into bytes, which a worker sends without shared memory."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self._collate = collate

    def __call__(self, samples: Any) -> bytes:
        return pickle.dumps(self._collate(samples), pickle.HIGHEST_PROTOCOL)


def start_worker(_worker: int) -> None:
    """Prepares a worker process."""
    for name in ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP"):
        if hasattr(signal, name):  # Windows lacks two of them
            signal.signal(signal.Signals[name], signal.SIG_IGN)
    cv2.setNumThreads(0)  # there is already one worker process per core
    Queue._on_queue_feeder_error = staticmethod(_lose)  # pyright: ignore[reportAttributeAccessIssue]  # no public way


def _killed_by(name: str) -> int | None:
    """Returns the exit status of a process ended by the signal ``name``; None if the system lacks the signal."""
    return -signal.Signals[name] if hasattr(signal, name) else None


def _lose(error: Exception, _batch: Any) -> None:
    """Ends a worker that can't send a batch; otherwise the batch would be lost and the main process wait forever."""
    print(f"loader worker {os.getpid()}: {error}", file=sys.stderr, flush=True)  # noqa: T201  # no log reaches here
    os._exit(NOT_HANDED_OVER)


def _finish(end: Callable[[], None]) -> None:
    atexit.unregister(end)
    end()


def _end_workers(iterator: weakref.ref[_Batches], workers: Sequence[BaseProcess]) -> None:
    """Ends the ``workers`` of one iteration by a message, or by SIGKILL if they do not react.

    torch and Python would send SIGTERM, which they ignore, and wait forever.
    """
    running = iterator()
    if running is not None:
        running._shutdown_workers()
    for worker in workers:
        if worker.is_alive():
            worker.kill()
            worker.join()

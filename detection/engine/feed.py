"""The batches of a run, read one step ahead, and the one exchange of flags per step between processes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import islice

from detection.data.dataset import Batch
from detection.engine.distributed import any_rank, gather, together, world_size
from detection.engine.signals import StopRequest, StopWaiting

__all__ = ["Feed"]


class Feed:
    """Provides the batches of each step, and tells all processes about an error or a signal of one.

    The next batches are read while a GPU computes the backward pass of the step before.  The same exchange thus decides
    whether the step can be taken and whether another one follows, and all processes end after the same step.

    Args:
        batches: as the loader gives them.
        parts: number of batches per step.
        steps: number of steps left; nothing is read after the last one.
        stop: records a signal to this process.
    """

    def __init__(self, batches: Iterable[Batch], *, parts: int, steps: int, stop: StopRequest) -> None:
        self._batches, self._parts, self._stop = islice(batches, parts * steps), parts, stop
        self._next: list[Batch] = []
        self._error: Exception | None = None
        self._stopped = False
        self.failed = False  # some process can't read its next batches
        self.seconds = 0.0  # spent waiting for batches

    @property
    def stops(self) -> bool:
        """Tells whether a signal has asked some process to end."""
        return self._stopped or (world_size() == 1 and self._stop.name is not None)

    @property
    def signal(self) -> str | None:
        """The name of the signal that has come to this process."""
        return self._stop.name

    def begin(self) -> None:
        """Reads the batches of the first step.

        Raises:
            Exception: as ``check``.
        """
        self.read()
        self.agree(None)
        self.check()

    def take(self) -> Sequence[Batch]:
        """Returns the batches that ``read`` has read."""
        parts, self._next = self._next, []
        return parts

    def read(self) -> None:
        """Reads the batches of the next step, all before the first is computed; ``check`` raises an error later.

        A signal ends the wait for them, since there will be no next step.
        """
        if self._stop.name is not None:
            return
        before = time.perf_counter()
        self._stop.waiting = True
        try:
            self._next = list(islice(self._batches, self._parts))
        except StopWaiting:
            pass
        except Exception as error:  # noqa: BLE001  # whatever it is, all processes have to know
            self._error = error
        finally:
            self._stop.waiting = False
        self.seconds += time.perf_counter() - before

    def agree(self, problem: str | None) -> str | None:
        """Exchanges the flags of a step; returns the ``problem`` of its numbers, if any process has one.

        Raises:
            RankError: a process did not respond in time, or has ended.
        """
        mine = (problem is not None, self._stop.name is not None, self._error is not None)
        not_finite, self._stopped, self.failed = any_rank(*mine, doing="training")
        if not not_finite:
            return None
        problems = [found for found in gather(problem, doing="training") if found]
        return next((found for found in problems if found.startswith("loss")), problems[0])

    def check(self) -> None:
        """Raises on all processes if one can't read its next batches.

        Raises:
            Exception: the error of reading, in the process where it arose.
            RankError: in the others; the message has its rank and its error.
        """
        if self.failed:
            with together("reading a batch"):
                if self._error is not None:
                    raise self._error

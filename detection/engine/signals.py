"""Signals that ask a training to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["EXIT_STOPPED", "StopRequest", "StopWaiting", "StoppedError", "stop_request"]

# Exit status of a program whose run a signal ended and which is saved: sysexits' "try again later".
EXIT_STOPPED = 75

# Those that the system has: Windows lacks two.
STOPPING = [signal.Signals[name] for name in ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP") if hasattr(signal, name)]


class StoppedError(RuntimeError):
    """A signal ended the run; it is saved, and the same command with --resume continues."""


class StopWaiting(BaseException):
    """A signal has come while ``StopRequest.waiting`` was set."""


class StopRequest:
    """The signal that has come, if one has."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.waiting = False  # for something that may never come: the signal raises StopWaiting


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Records the first SIGTERM, SIGUSR1, SIGINT or SIGHUP for the loop; a second one acts as usual.

    SIGHUP, sent when a terminal is closed, stays ignored under nohup.  Outside the main thread, where Python delivers
    no signals, none is recorded.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    before = {number: handler for number, handler in before.items() if not _is_under_nohup(number, handler)}

    def note(number: int, _frame: FrameType | None) -> None:
        request.name = signal.Signals(number).name
        restore()
        if request.waiting:
            raise StopWaiting

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()


def _is_under_nohup(number: signal.Signals, handler: object) -> bool:
    return number.name == "SIGHUP" and handler == signal.SIG_IGN

"""Mirrors detection/engine/feed.py in a single process; tests/distributed has what takes two."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from detection.engine.feed import Feed
from detection.engine.signals import StopRequest, stop_request


def make_feed(batches: Any, *, parts: int = 1, steps: int = 3) -> tuple[Feed, StopRequest]:
    stop = StopRequest()
    return Feed(batches, parts=parts, steps=steps, stop=stop), stop


def failing(count: int) -> Iterator[int]:
    yield from range(count)
    raise OSError("no image")


def test_batches_are_read_one_step_ahead_and_none_after_the_last_step() -> None:
    source = iter(range(100))
    feed, _ = make_feed(source, parts=2)
    feed.begin()
    taken = []
    for _step in range(3):
        taken.append(feed.take())
        feed.read()
    assert taken == [[0, 1], [2, 3], [4, 5]]
    assert next(source) == 6
    assert feed.seconds >= 0


def test_batch_that_can_not_be_read_waits_for_the_end_of_the_step() -> None:
    feed, _ = make_feed(failing(3), parts=2)
    feed.begin()
    assert feed.take() == [0, 1]
    feed.read()  # the second part of the next step fails
    assert feed.agree(None) is None
    assert feed.failed
    with pytest.raises(OSError, match="no image"):
        feed.check()


def test_first_batch_that_can_not_be_read_ends_the_run_at_once() -> None:
    feed, _ = make_feed(failing(0))
    with pytest.raises(OSError, match="no image"):
        feed.begin()


def test_a_lone_process_sees_a_signal_at_once_and_its_own_problem() -> None:
    feed, stop = make_feed(range(9))
    feed.begin()
    assert not feed.stops
    assert feed.agree("loss is not finite") == "loss is not finite"
    assert feed.agree(None) is None
    stop.name = "SIGTERM"
    assert (feed.stops, feed.signal) == (True, "SIGTERM")


def test_a_signal_ends_the_wait_for_a_batch_that_never_comes() -> None:
    def hanging() -> Iterator[int]:
        yield 0
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    with stop_request() as stop:
        feed = Feed(cast("Any", hanging()), parts=1, steps=3, stop=stop)
        feed.begin()
        feed.take()
        feed.read()
        assert feed.agree(None) is None
        assert (feed.stops, feed.signal, feed.failed) == (True, "SIGTERM", False)
        feed.read()  # there will be no next step
    assert feed.seconds < 30

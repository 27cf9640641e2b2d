import os
import signal
import time
from typing import Any

import pytest

from detection.engine.feed import Feed
from detection.engine.signals import StopRequest, stop_request


def make_feed(batches: Any, *, parts: int = 1, stop: StopRequest | None = None) -> Feed:
    return Feed(batches, parts=parts, steps=3, stop=stop or StopRequest())


def failing(count: int):
    yield from range(count)
    raise OSError("no image")


def test_batches_are_read_one_step_ahead_and_none_after_the_last_step() -> None:
    source, taken = iter(range(100)), []
    feed: Any = make_feed(source, parts=2)
    feed.begin()
    for _step in range(3):
        taken.append(feed.take())
        feed.read()
    assert taken == [[0, 1], [2, 3], [4, 5]]
    assert next(source) == 6
    assert feed.seconds >= 0


def test_a_batch_that_can_not_be_read_waits_for_the_end_of_the_step_unless_it_is_the_first() -> None:
    with pytest.raises(OSError, match="no image"):
        make_feed(failing(0)).begin()
    feed = make_feed(failing(3), parts=2)
    feed.begin()
    assert feed.take() == [0, 1]
    feed.read()  # the second part of the next step fails
    assert feed.agree(None) is None
    assert feed.failed
    with pytest.raises(OSError, match="no image"):
        feed.check()


def test_a_lone_process_sees_its_own_problem_and_a_signal_even_where_a_batch_never_comes() -> None:
    own = StopRequest()
    feed = make_feed(range(9), stop=own)
    feed.begin()
    assert not feed.stops
    assert feed.agree("loss is not finite") == "loss is not finite"
    assert feed.agree(None) is None
    own.name = "SIGTERM"
    assert (feed.stops, feed.signal) == (True, "SIGTERM")

    def hanging():
        yield 0
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    with stop_request() as stop:
        feed = make_feed(hanging(), stop=stop)
        feed.begin()
        feed.take()
        feed.read()
        assert feed.agree(None) is None
        assert (feed.stops, feed.signal, feed.failed) == (True, "SIGTERM", False)
        feed.read()  # there will be no next step
    assert feed.seconds < 30

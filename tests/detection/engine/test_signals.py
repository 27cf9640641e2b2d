import os
import signal
import threading

import pytest

from detection.engine.signals import STOPPING, stop_request


def handlers() -> list[object]:
    return [signal.getsignal(each) for each in STOPPING]


@pytest.mark.usefixtures("not_under_nohup")
@pytest.mark.parametrize("number", STOPPING)
def test_the_first_signal_is_noted_and_handlers_come_back(number) -> None:
    before = handlers()
    with stop_request() as request:
        assert request.name is None
        os.kill(os.getpid(), number)
        assert request.name == number.name
        assert handlers() == before
    assert handlers() == before
    with pytest.raises(ValueError, match="x"), stop_request():
        raise ValueError("x")
    assert handlers() == before


def test_a_second_ctrl_c_ends_at_once_and_another_thread_notes_nothing() -> None:
    with stop_request() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    found = []

    def work() -> None:
        with stop_request() as request:
            found.append((request.name, handlers()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(None, handlers())]


def test_a_closed_terminal_is_ignored_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_request() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.name is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)

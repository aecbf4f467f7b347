"""What takes longer than it may is interrupted; what must happen whole is not."""

from __future__ import annotations

import signal
import threading
import time

import pytest
import torch

from compress.values.time_limits import UNLIMITED, OutOfTime, TimeLimit, interrupted, undisturbed

needs_a_clock = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no such clock")


def _for_ever() -> None:
    while True:
        time.sleep(0.01)


@needs_a_clock
def test_work_is_interrupted_where_it_is() -> None:
    with pytest.raises(OutOfTime), interrupted(TimeLimit(end=time.monotonic() + 0.05)):
        _for_ever()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0), "nothing strikes afterwards"


@needs_a_clock
def test_what_is_interrupted_as_it_ends_leaves_gradients_and_threads_as_they_were() -> None:
    threads = torch.get_num_threads()

    def work() -> None:
        # Of a block that would put both back: the clock may strike before it does.
        torch.set_grad_enabled(False)
        torch.set_num_threads(threads + 1)
        _for_ever()

    try:
        with pytest.raises(OutOfTime), interrupted(TimeLimit(end=time.monotonic() + 0.05)):
            work()
        assert torch.is_grad_enabled()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_grad_enabled(True)
        torch.set_num_threads(threads)


@needs_a_clock
def test_a_limit_inside_a_limit_leaves_the_outer_one_running() -> None:
    outer = TimeLimit(end=time.monotonic() + 2.0)

    def work() -> None:
        with pytest.raises(OutOfTime), interrupted(outer.within(0.05)):
            _for_ever()
        assert not outer.is_over
        _for_ever()

    with pytest.raises(OutOfTime), interrupted(outer):
        work()
    assert outer.is_over


@needs_a_clock
def test_what_must_happen_whole_is_interrupted_afterwards() -> None:
    done = []

    def work() -> None:
        with undisturbed():
            time.sleep(0.1)
            done.append("whole")
        _for_ever()

    with pytest.raises(OutOfTime), interrupted(TimeLimit(end=time.monotonic() + 0.02)):
        work()
    assert done == ["whole"]


def test_nothing_is_interrupted_without_an_end_or_beside_the_main_thread() -> None:
    ends = []

    def work() -> None:
        with interrupted(TimeLimit(end=time.monotonic() + 0.01)):
            time.sleep(0.05)
            ends.append("there")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    with interrupted(UNLIMITED):
        ends.append("here")
    assert ends == ["there", "here"]


def test_shares_are_of_the_whole_time_and_no_more_than_is_left() -> None:
    now = time.monotonic()
    limit = TimeLimit(now - 90.0, now + 10.0)
    assert limit.share(0.05) == pytest.approx(5.0, abs=0.5)
    assert limit.share(0.5) == pytest.approx(10.0, abs=0.5)
    assert limit.within(1000.0).end == limit.end
    assert UNLIMITED.share(0.5) is UNLIMITED.left is None
    assert not UNLIMITED.is_over

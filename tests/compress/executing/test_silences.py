"""When a worker that says nothing is given up: one that computes is waited for, one that waits for ever is not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from compress.executing.silences import ENDLESS, SILENCE, Silence, computed_by
from processes import wait_for


def never() -> float | None:
    raise AssertionError("nobody need look yet")


def test_short_silences_are_nothing() -> None:
    silence = Silence(heard=0.0)
    assert not silence.is_hang(SILENCE, never)
    silence.broken(SILENCE - 1)
    assert not silence.is_hang(2 * SILENCE - 2, never)


def test_who_was_silent_for_long_before_may_be_so_ten_times_as_long() -> None:
    silence = Silence(heard=0.0)
    silence.broken(1000.0)
    assert not silence.is_hang(10_900.0, never)
    assert silence.is_hang(11_001.0, lambda: None)


def test_what_it_had_to_do_before_is_no_silence() -> None:
    silence = Silence(heard=0.0)
    silence.begun(10_000.0)
    assert not silence.is_hang(10_000.0 + SILENCE, never)
    assert silence.longest == 0.0


@pytest.mark.parametrize(("share", "hangs"), [(0.0, True), (0.01, True), (0.05, False), (7.5, False)])
def test_silent_and_idle_is_a_hang_and_silent_and_busy_is_none(share: float, hangs: bool) -> None:
    silence, now = Silence(heard=0.0), SILENCE + 1
    assert not silence.is_hang(now, lambda: 50.0), "one look does not tell"
    assert not silence.is_hang(now + 5, lambda: 50.0), "nor do two that are close together"
    assert silence.is_hang(now + 20, lambda: 50.0 + 20 * share) is hangs


def test_each_look_counts_from_the_one_before() -> None:
    silence, now = Silence(heard=0.0), SILENCE + 1
    assert not silence.is_hang(now, lambda: 0.0)
    assert not silence.is_hang(now + 20, lambda: 20.0)
    assert silence.is_hang(now + 40, lambda: 20.0)


def test_nobody_computes_for_ever() -> None:
    silence = Silence(heard=0.0)
    assert silence.is_hang(ENDLESS + 1, lambda: 1e9)


def test_what_a_process_and_its_children_compute_is_seen() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    own = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        wait_for(lambda: (computed_by(own.pid) or 0.0) > 0.5, lambda: computed_by(own.pid), seconds=60)
    finally:
        os.killpg(own.pid, 9)
        own.wait()
    assert computed_by(own.pid) is None

"""What a piece of work takes of memory, and the bound that batches are made to fit."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest

from targets.machine import memory
from targets.workers.inputs import fitting_batch
from targets.workers.runtime import Input, Session

known = pytest.mark.skipif(memory.peak() is None or not memory.reset_peak(), reason="this system does not say")


class Hungry(Session):
    """Takes 20 MB for each sample."""

    def __init__(self, first: int | None = None) -> None:
        self.inputs = (Input("x", "float32", (first, 2)),)

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        inner = np.ones((len(feeds["x"]), 5_000_000))  # more than an allocator keeps
        return [inner.sum(axis=1)]


@known
def test_the_growth_of_memory_is_seen_although_it_is_given_back() -> None:
    assert memory.grown_by(lambda: None) < 10_000_000  # type: ignore[operator]
    assert memory.grown_by(lambda: np.ones(10_000_000)) > 60_000_000  # type: ignore[operator]


@known
def test_garbage_that_is_freed_meanwhile_hides_no_growth() -> None:
    ring: list[object] = [np.ones(10_000_000)]
    ring.append(ring)
    del ring

    def work() -> None:
        gc.collect()
        np.ones(10_000_000)

    assert memory.grown_by(work) > 60_000_000  # type: ignore[operator]


@known
def test_a_batch_is_as_large_as_there_is_room_for() -> None:
    given = {"x": np.zeros((64, 2), np.float32)}
    assert fitting_batch(Hungry(), given, 64, 400_000_000) in (4, 8)
    assert fitting_batch(Hungry(), given, 64, 1) == 1
    assert fitting_batch(Hungry(), given, 4, 10**10) == 4
    assert fitting_batch(Hungry(first=64), given, 64, 1) == 64, "a size that is fixed stays"


@known
def test_what_a_process_has_started_counts_with_it_and_theirs_too() -> None:
    inner = "import sys; held = bytearray(b'x') * 60_000_000; print(flush=True); sys.stdin.read()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    with subprocess.Popen([sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        started.stdout.readline()
        whole, own = memory.family(started.pid), memory.resident(started.pid)
    assert whole is not None
    assert own is not None
    assert own + 60_000_000 < whole


def test_room_is_what_is_asked_for_or_a_part_of_the_bound() -> None:
    assert memory.bound() is None
    assert memory.room(500) == 500
    with memory.bounded(8_000):
        assert memory.bound() == 8_000
        assert memory.room(500) == 500
        assert memory.room(5_000) == 1_000
    with memory.bounded(None):
        assert memory.bound() is None or 0 < (memory.bound() or 0) <= (memory.available_bytes() or 0)
    assert memory.bound() is None

"""A runtime that goes wrong in the way it is told to; loaded in the worker process only."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

import numpy as np

from targets.workers.runtime import Input, Runtime, Session


def _eat() -> None:
    kept = []
    while True:
        kept.append(np.ones(2_000_000))


def _print() -> None:
    os.write(1, b"noise from native code\n" * 100)
    print("noise from Python", flush=True)


def _hang_with_the_interpreter() -> None:
    # PyDLL does not release the interpreter lock: no Python thread of this process runs any more.
    ctypes.PyDLL(None).sleep(600)


def _raise() -> None:
    raise RuntimeError("first line\nsecond line")


def _import() -> None:
    raise ImportError("No module named 'onlyhere'")


WAYS = {
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "abort": os.abort,
    "exit": lambda: os._exit(7),
    "hang": lambda: time.sleep(600),
    "hang-gil": _hang_with_the_interpreter,
    "eat": _eat,
    "raise": _raise,
    "import": _import,
    "print": _print,
}


class Misbehaving(Runtime):
    """Loads anything, then does what ``how`` says when it is run."""

    def load(self, path: Path) -> Session:
        """A session of ``how``; its process id is left beside the model for tests that look for it."""
        path.with_suffix(".pid").write_text(str(os.getpid()))
        return _Session(str(self.settings["how"]))


class _Session(Session):
    inputs = (Input("x", "float32", (None, 2)),)

    def __init__(self, how: str) -> None:
        self._how = how

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        WAYS[self._how]()
        return [feeds["x"] + 1]

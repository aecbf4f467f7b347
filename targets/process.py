"""The parent's side of a worker: start it, ask it, watch its memory and its silence, say in words how it ended."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from targets import errors, memory, pipes

_TICK = 0.05
"""Seconds between two looks at the worker's memory."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def default_memory_limit() -> int | None:
    """90 % of what the machine can give without swapping, in bytes."""
    free = memory.available()
    return None if free is None else int(0.9 * free)


class WorkerProcess:
    """One ``targets.worker``. Use from one thread at a time; it ends when this process does.

    ``patience`` is how many seconds of silence mean that it hangs: a worker speaks up before every step.
    """

    def __init__(
        self,
        runtime: str,
        settings: Mapping[str, Any],
        *,
        threads: int = 1,
        patience: float = 120.0,
        memory_limit: int | None = None,
    ) -> None:
        self._patience = patience
        self._limit = memory_limit if memory_limit is not None else default_memory_limit()
        self._stage = "starting"
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed in close()
        theirs, self._lifeline = os.pipe()
        setup = {"lifeline": theirs, "runtime": runtime, "settings": dict(settings), "threads": threads}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "targets.worker", json.dumps(setup)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                pass_fds=(theirs,),
                env=_environment(threads),
            )
        finally:
            os.close(theirs)
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise errors.MeasurementError("the worker process has no pipes")
        self._stdin, self._stdout = stdin, stdout
        os.set_blocking(stdin.fileno(), False)
        self._decoder = pipes.Decoder()

    @property
    def pid(self) -> int:
        """Of the worker."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> pipes.Message:
        """Send a request and wait for its reply.

        Raises what the worker raised, by name; MeasurementError when it crashed or hangs; TransientError when
        it used too much memory. After any of the latter, and after an interruption, the worker is gone.
        """
        try:
            reply = self._exchange(pipes.encode(header, arrays))
        except BaseException:
            self.close()
            raise
        if "error" in reply.header:
            kind = getattr(errors, reply.header["error"], errors.MeasurementError)
            raise kind(reply.header["message"])
        return reply

    def _exchange(self, chunks: list[bytes]) -> pipes.Message:
        pending = [memoryview(chunk) for chunk in chunks]
        spoke = time.monotonic()
        while True:
            readable, writable, _ = select.select([self._stdout], [self._stdin] if pending else [], [], _TICK)
            self._check_memory()
            if writable:
                self._send(pending)
            if readable:
                data = os.read(self._stdout.fileno(), 1 << 20)
                if not data:
                    raise self._ended()
                spoke = time.monotonic()
                for message in self._decoder.feed(data):
                    if "stage" not in message.header:
                        return message
                    self._stage = message.header["stage"]
            elif time.monotonic() - spoke > self._patience:
                raise errors.MeasurementError(f"hung: no answer in {self._patience:g} s while {self._stage}")

    def _send(self, pending: list[memoryview]) -> None:
        # A worker that died shows on its stdout, with a better explanation than a broken pipe.
        with suppress(BlockingIOError, BrokenPipeError):
            written = os.write(self._stdin.fileno(), pending[0])
            pending[0] = pending[0][written:]
            if not pending[0]:
                pending.pop(0)
            return
        if not self.alive:
            pending.clear()

    def _check_memory(self) -> None:
        used = memory.resident(self.pid)
        if used is not None and self._limit is not None and used > self._limit:
            raise errors.TransientError(
                f"used {used / 1e9:.2f} GB of memory, more than the limit of {self._limit / 1e9:.2f} GB, "
                f"while {self._stage}; free some memory or use a smaller model"
            )

    def _ended(self) -> errors.CompressError:
        """How the worker died, in words."""
        code = self._process.wait()
        said = self._last_words()
        if code == -signal.SIGKILL:
            return errors.TransientError(
                f"killed by SIGKILL while {self._stage}: most likely the system was out of memory"
            )
        if code < 0:
            return errors.MeasurementError(f"killed by {_signal_name(-code)} while {self._stage}{said}")
        return errors.MeasurementError(f"ended with status {code} while {self._stage}{said}")

    def _last_words(self) -> str:
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 4000))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1].strip()[:300]}" if lines else ""

    def close(self) -> None:
        """End the worker now; harmless when it is gone."""
        self._process.kill()
        self._process.wait()
        for stream in (self._stdin, self._stdout, self._errors):
            with suppress(OSError):
                stream.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _environment(threads: int) -> dict[str, str]:
    environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}
    # Read by numpy alone, which only makes inputs: no idle pool of its own beside the runtime's.
    environment["OPENBLAS_NUM_THREADS"] = "1"
    root = Path(__file__).resolve().parent.parent
    # Installed packages are found anyway; a checkout is not, since -P leaves out the folder we were started in.
    if root.name not in ("site-packages", "dist-packages"):
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{known}" if known else str(root)
    return environment

"""The parent's side of a worker: start it, ask it, watch its memory and its silence, say in words how it ended."""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Callable, NoReturn, cast

import numpy as np

from targets import errors
from targets.machine import memory
from targets.workers import pipes

Explain = Callable[[int, str, str], "errors.CompressError | None"]
"""(exit status or minus the signal, what it was doing, its last words) -> a better error than ours, if there is one."""
Heard = Callable[[Mapping[str, Any]], None]
"""Told of every message that is not yet the reply: its ``stage``, and what else it says."""

_TICK = 0.05
"""Seconds between two looks at the worker's memory."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def default_memory_limit() -> int | None:
    """90 % of what the machine can give without swapping, in bytes."""
    free = memory.available_bytes()
    return None if free is None else int(0.9 * free)


@dataclass(frozen=True)
class Launch:
    """How a worker is started: a command that its SETUP is appended to (one JSON argument), and its environment."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    explain: Explain = lambda status, stage, words: None  # noqa: ARG005  nothing better to say
    remote: bool = False
    """A shell elsewhere reads the command (``ssh``): SETUP is quoted, and Ctrl-C, which reaches our group, is ours."""


def local_launch(threads: int) -> Launch:
    """How a worker is started on this machine, with this interpreter and ``threads`` threads for its libraries."""
    environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}
    # Read by numpy alone, which only makes inputs: no idle pool of its own beside the runtime's.
    environment["OPENBLAS_NUM_THREADS"] = "1"
    root = Path(__file__).resolve().parents[2]
    # Installed packages are found anyway; a checkout is not, since -P leaves out the folder we were started in.
    if root.name not in ("site-packages", "dist-packages"):
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{known}" if known else str(root)
    # The option came with 3.11; where a device has an older one, the bundle is all that is on the path.
    safe = ("-P",) if sys.version_info >= (3, 11) else ()
    return Launch((sys.executable, *safe, "-m", "targets.workers.worker"), environment)


class WorkerProcess:
    """A process that speaks frames (``pipes.py``). Use from one thread at a time; it ends when this process does.

    ``setup`` is handed to it as JSON. ``patience`` is how many seconds of silence mean that it hangs: a worker
    speaks up before every step.
    """

    def __init__(
        self,
        setup: Mapping[str, Any],
        launch: Launch,
        *,
        patience: float = 120.0,
        memory_limit: int | None = None,
    ) -> None:
        self.patience = patience
        self._limit = memory_limit if memory_limit is not None else default_memory_limit()
        self._stage = "starting"
        self._explain = launch.explain
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed in close()
        theirs, self._lifeline = os.pipe()
        said = json.dumps({"lifeline": theirs, **setup})
        try:
            self._process = subprocess.Popen(
                [*launch.command, shlex.quote(said) if launch.remote else said],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                pass_fds=(theirs,),
                env=dict(launch.environment),
                start_new_session=launch.remote,
            )
        finally:
            os.close(theirs)
        self._stdin, self._stdout = cast("IO[bytes]", self._process.stdin), cast("IO[bytes]", self._process.stdout)
        os.set_blocking(self._stdin.fileno(), False)
        self._decoder = pipes.Decoder()

    @property
    def pid(self) -> int:
        """The process id of the worker."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the worker still runs, so that it can be asked."""
        return self._process.poll() is None

    def ask(
        self,
        header: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray] | None = None,
        heard: Heard = lambda _: None,
    ) -> pipes.Message:
        """Send a request and wait for its reply; ``heard`` is told of what it says meanwhile.

        ``doing`` in ``header`` says what it is, in words, until the worker speaks.
        Raises what the worker raised, by name; MeasurementError when it crashed, hangs or answers with garbage;
        TransientError when it used too much memory. After any of the latter, and after an interruption, the worker
        is gone.
        """
        self._stage = str(header.get("doing", self._stage))
        try:
            reply = self._exchange(pipes.encode(header, arrays), heard)
        except pipes.BrokenFrame as error:
            self.close()
            raise errors.MeasurementError(f"answered with garbage while {self._stage}: {error}") from None
        except BaseException:
            self.close()
            raise
        if "error" in reply.header:
            kind = getattr(errors, reply.header["error"], errors.MeasurementError)
            raise kind(reply.header["message"])
        return reply

    def _exchange(self, chunks: list[bytes], heard: Heard) -> pipes.Message:
        pending = [memoryview(chunk) for chunk in chunks]
        spoke = time.monotonic()
        while True:
            readable, writable = self._ready(writing=bool(pending))
            self.check_memory()
            if writable and self._send(pending):
                spoke = time.monotonic()  # What goes over a slow line is no silence.
            if readable:
                data = os.read(self._stdout.fileno(), 1 << 20)
                if not data:
                    raise self._ended()
                spoke = time.monotonic()
                for message in self._decoder.feed(data):
                    if "stage" not in message.header:
                        return message
                    self._stage = message.header["stage"]
                    heard(message.header)
            elif time.monotonic() - spoke > self.patience:
                raise errors.MeasurementError(f"hung: no answer in {self.patience:g} s while {self._stage}")

    def _ready(self, *, writing: bool) -> tuple[bool, bool]:
        """Whether the worker has spoken or ended, and whether its pipe takes something; after a tick at the latest.

        Not by ``select``, which knows no files beyond the first 1,024 that a process has open.
        """
        asked = select.poll()
        asked.register(self._stdout, select.POLLIN)
        if writing:
            asked.register(self._stdin, select.POLLOUT)
        found = {number for number, _ in asked.poll(1000 * _TICK)}
        return self._stdout.fileno() in found, self._stdin.fileno() in found

    def _send(self, pending: list[memoryview]) -> bool:
        """Write what the pipe takes now; whether it took something."""
        # A worker that died shows on its stdout, with a better explanation than a broken pipe.
        with suppress(BlockingIOError, BrokenPipeError):
            written = os.write(self._stdin.fileno(), pending[0])
            pending[0] = pending[0][written:]
            if not pending[0]:
                pending.pop(0)
            return True
        if not self.alive:
            pending.clear()
        return False

    def check_memory(self) -> None:
        """Raise TransientError where the worker and its children use more resident memory than they may."""
        used = memory.family(self.pid)
        if used is not None and self._limit is not None and used > self._limit:
            raise errors.TransientError(
                f"used {used / 1e9:.2f} GB of memory, more than the limit of {self._limit / 1e9:.2f} GB, "
                f"while {self._stage}; free some memory or use a smaller model"
            )

    def _ended(self) -> errors.CompressError:
        """How the worker died, in words."""
        code = self._process.wait()
        words = self._last_words()
        better = self._explain(code, self._stage, words)
        if better is not None:
            return better
        said = f": {words}" if words else ""
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
        return lines[-1].strip()[:300] if lines else ""

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


def die_like(status: int) -> NoReturn:
    """End this process as a child ended (exit status, or minus the signal): the parent knows how to tell it."""
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status or 1)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

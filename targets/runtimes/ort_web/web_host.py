"""Where ONNX Runtime Web runs: something outside the worker process that answers frames (``workers/pipes.py``)."""

from __future__ import annotations

import abc
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from targets import errors
from targets.workers import pipes
from targets.workers.process import die_like

PROGRAM = Path(__file__).with_name("program")
"""The files of our own that a host runs."""
_GIVEN_UP = 70
"""Exit status where the library has given itself up."""


class Host(abc.ABC):
    """A host with ONNX Runtime Web in it; ``ask`` is one request and its reply.

    Where it dies, this process dies of the same, so that whoever watches it says why.
    """

    @property
    @abc.abstractmethod
    def processes(self) -> tuple[int, ...]:
        """The ids of the processes that do the work."""

    @abc.abstractmethod
    def exchange(self, chunks: Sequence[bytes]) -> pipes.Message:
        """Send one frame, in parts, and wait for the one that answers it."""

    def ask(self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> pipes.Message:
        """The reply to a request; raises what the other side says, by name."""
        reply = self.exchange(pipes.encode(header, arrays))
        if reply.header.get("fatal"):
            print(reply.header["message"], file=sys.stderr, flush=True)
            die_like(_GIVEN_UP)
        if "error" in reply.header:
            raise getattr(errors, reply.header["error"])(reply.header["message"])
        return reply

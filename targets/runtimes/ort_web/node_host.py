"""Node with ONNX Runtime Web in it, as a child of the worker process: asked over pipes with frames (``pipes.py``).

It ends when stdin is closed and, busy or not, when the worker process is gone (``program/lifeline.mjs``). Where it
dies, this process dies of the same, so that whoever watches it says why.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from targets import errors
from targets.machine import memory
from targets.runtimes.ort_web import web_installation
from targets.workers import pipes
from targets.workers.process import die_like

PROGRAM = Path(__file__).with_name("program")


class NodeHost:
    """A process of Node, started with ``options``, that holds sessions; ``ask`` is one request and its reply."""

    def __init__(self, threads: int, *options: str) -> None:
        library = web_installation.library() / "ort.node.min.mjs"
        theirs, self._lifeline = os.pipe()
        replies, answered = os.pipe()
        setup = {"library": library.as_uri(), "threads": threads, "replies": answered, "lifeline": theirs}
        # What the user's other programs want of Node would be measured with it.
        variables = {name: value for name, value in os.environ.items() if not name.startswith("NODE_")}
        try:
            self._process = subprocess.Popen(
                [str(web_installation.node()), *options, str(PROGRAM / "node.mjs"), json.dumps(setup)],
                stdin=subprocess.PIPE,
                pass_fds=(theirs, answered),
                env=variables,
            )
        finally:
            os.close(theirs)
            os.close(answered)
        self._requests = cast("IO[bytes]", self._process.stdin)
        self._replies = os.fdopen(replies, "rb")

    @property
    def processes(self) -> tuple[int, ...]:
        """The ids of the processes that do the work."""
        return (self._process.pid,)

    def ask(self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> pipes.Message:
        """The reply to a request; raises what the other side says, by name."""
        try:
            pipes.write_message(cast("Any", self._requests), header, arrays)
            reply = pipes.read_message(cast("Any", self._replies))
        except (BrokenPipeError, pipes.BrokenFrame):
            reply = None
        if reply is None:
            die_like(self._process.wait())
        if "error" in reply.header:
            raise getattr(errors, reply.header["error"])(reply.header["message"])
        return reply

    def memory(self) -> int | None:
        """Bytes of its own that it holds, once it has collected what is garbage; None where nobody can say.

        It must have been started with ``--expose-gc``.
        """
        self.ask({"operation": "tidy"})
        return memory.private(self._process.pid)

    def close(self) -> None:
        """End it, and everything that it holds."""
        self._process.kill()
        self._process.wait()
        for stream in (self._requests, self._replies):
            stream.close()
        os.close(self._lifeline)

"""Node with ONNX Runtime Web in it, as a child of the worker process, asked over pipes.

It ends when stdin is closed and, busy or not, when the worker process is gone (``program/lifeline.mjs``).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from typing import IO, cast

from targets.machine import memory
from targets.runtimes.ort_web import web_installation
from targets.runtimes.ort_web.web_host import PROGRAM, Host
from targets.workers import pipes
from targets.workers.process import die_like


class NodeHost(Host):
    """A process of Node, started with ``options``, that holds sessions."""

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
        """The id of the process, which does all of the work."""
        return (self._process.pid,)

    def exchange(self, chunks: Sequence[bytes]) -> pipes.Message:
        """Send one frame and wait for the one that answers it."""
        try:
            for chunk in chunks:
                self._requests.write(chunk)
            self._requests.flush()
            reply = pipes.read_message(self._replies)
        except (BrokenPipeError, pipes.BrokenFrame):
            reply = None
        return reply or die_like(self._process.wait())

    def memory(self) -> int | None:
        """Bytes of its own that it holds, once it has collected what is garbage; None where nobody can say.

        It must have been started with ``--expose-gc``.
        """
        self.ask({"operation": "tidy"})
        return memory.private(self._process.pid)

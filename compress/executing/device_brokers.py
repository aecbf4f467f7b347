"""Between the trials on a cluster and their driver: an actor that passes on what trials ask of devices and say.

The devices stay with the driver, wherever that is: on a node of the cluster, or on a machine that only reaches it
(``ray://``). So what is measured while networks are trained, and what is measured at the end, is measured on one
machine. A question goes to the driver under a number; an answer to a number that nobody waits for any more, since its
trial was lost, goes nowhere.
"""

from __future__ import annotations

import asyncio
import threading
import time as clock
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from compress.executing.forwarded_targets import DeviceRequest, answer
from compress.values.error_lines import one_line
from targets.errors import CompressError, MeasurementError
from targets.target import Target

Answer = tuple[bool, Any]
"""(whether it is one, what was answered or the error instead)."""
_LOOK = 0.02
"""Seconds between two looks for a question."""
_PATIENCE = 5.0
"""Seconds that the driver waits for a question before it asks for the next one again."""


class BrokerActor:
    """Questions of trials, until the driver has answered them; and the last word of each worker."""

    def __init__(self) -> None:
        self._asked: deque[tuple[int, DeviceRequest]] = deque()
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._said: dict[int, tuple[str, float | None]] = {}
        self._count = 0

    async def ask(self, request: DeviceRequest) -> Answer:
        """Ask something of a device; gives what the driver answers."""
        self._count += 1
        number = self._count
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._asked.append((number, request))
        try:
            return await future
        finally:
            self._waiting.pop(number, None)

    async def question(self, seconds: float) -> tuple[int, DeviceRequest] | None:
        """The next question and its number; None where there was none for so many seconds."""
        end = clock.monotonic() + seconds
        while not self._asked:
            if clock.monotonic() > end:
                return None
            await asyncio.sleep(_LOOK)
        return self._asked.popleft()

    async def give(self, number: int, found: Answer) -> None:
        """Answer the question of this number, if its trial still waits for it."""
        future = self._waiting.get(number)
        if future is not None and not future.done():
            future.set_result(found)

    async def tell(self, worker: int, stage: str, computed: float | None) -> None:
        """A worker says what it is doing, and (now and then) how many seconds of processors it has used so far."""
        before = self._said.get(worker, ("", None))[1]
        self._said[worker] = (stage, before if computed is None else computed)

    async def said(self) -> dict[int, tuple[str, float | None]]:
        """What each worker said last, by the name of its actor."""
        return dict(self._said)


class DeviceServer:
    """Answers, in threads of the driver, what trials on a cluster ask of its devices.

    A target is asked from several threads, as many things at the same time as it says (``Target.at_once``).
    """

    def __init__(self, ray: Any, broker: Any, targets: Sequence[Target]) -> None:
        self._ray, self._broker = ray, broker
        self._targets = {target.name: target for target in targets}
        self._free = {target.name: threading.BoundedSemaphore(target.at_once) for target in targets}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._receive, daemon=True, name="devices")
        self._thread.start()

    def close(self) -> None:
        """Take no more questions, once the broker is gone; what is being measured is left to itself."""
        self._closed.set()
        # It may still ask for the next question: that must not reach the cluster that this process connects to next.
        self._thread.join(2 * _PATIENCE)

    def _receive(self) -> None:
        while not self._closed.is_set():
            try:
                asked = self._ray.get(self._broker.question.remote(_PATIENCE))
            except Exception:  # the actor is gone, and those who have asked are told so: it is started anew
                self._closed.wait(1.0)
                continue
            if asked is not None:
                threading.Thread(target=self._answer, args=asked, daemon=True).start()

    def _answer(self, number: int, request: DeviceRequest) -> None:
        found: Answer
        try:
            with self._free[request.target]:
                found = (True, answer(self._targets[request.target], request))
        except CompressError as error:
            found = (False, error)
        except Exception as error:
            found = (False, MeasurementError(f"{request.target}: {type(error).__name__}: {one_line(error)}"))
        with suppress(Exception):  # as above
            self._ray.get(self._broker.give.remote(number, found))


class Asking:
    """Asks the driver's devices through the broker; errors of ours come back as they were raised."""

    def __init__(self, broker: Any) -> None:
        self.broker = broker

    def __call__(self, request: DeviceRequest) -> Any:
        """Wait for the answer of a device; raises what is raised there."""
        import ray

        is_answer, found = ray.get(self.broker.ask.remote(request))
        if is_answer:
            return found
        raise found

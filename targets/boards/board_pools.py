"""Several boards of one kind as one target: each measurement goes to one that is free.

    ssh:host=pi1+pi2+pi3,runtime=ort-cpu

A comparison stays on one board: all files of a call are timed there in turns, and what counts is their ratio to the
first of them. Boards of one kind differ nevertheless (cooling, age, a slower card), so ``remarks`` times one file on
all of them and says which differ. A board that does not answer is left out for a while, and its work is given to
another one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from targets.errors import CompressError, TargetError, TargetUnavailable, TransientError
from targets.intervals import TIE
from targets.target import Capabilities, Estimate, Layer, Measurement, Protocol, Target, Watch
from targets.workers.leases import leased_one

AGAIN = 60.0
"""Seconds after which a board that did not answer is asked again."""
_QUICK = Protocol(width=0.01, seconds=1.5)
"""How one file is timed on every board, to see whether they are alike."""
_KIND = ("cpu", "architecture", "features", "cores")
"""Of a machine: what must be the same on all boards of a pool."""
_Answer = TypeVar("_Answer")


class BoardPool(Target):
    """Boards of one kind, each behind a target of its own."""

    remote = True

    def __init__(self, boards: Mapping[str, Target], name: str) -> None:
        """``boards``: by the host's name, in the order in which they are preferred. ``name``: of the whole pool."""
        self.name, self.boards = name, dict(boards)
        first = next(iter(self.boards.values()))
        self.counted, self.deterministic = first.counted, first.deterministic
        self.slow_to_load, self.probed = first.slow_to_load, first.probed
        self.at_once = len(self.boards)
        self._silent: dict[str, tuple[float, CompressError]] = {}
        """When a board did not answer (monotonic seconds), and what was said of it."""
        self._described: dict[str, dict[str, Any]] | None = None
        self._timed: tuple[Path, Mapping[str, np.ndarray] | None, Mapping[str, tuple[int, ...]] | None] | None = None

    @property
    def cost_quantity(self) -> str:
        """The quantity that stands for speed on these boards."""
        return next(iter(self.boards.values())).cost_quantity

    @property
    def limits(self) -> Mapping[str, int]:
        """What a board has, in bytes, by the quantity that it limits."""
        return next(iter(self.boards.values())).limits

    def capabilities(self) -> Capabilities:
        """What the runtime on the boards can do, asked of the first one that answers."""
        self._check_kind()
        return self._on_one(lambda board: board.capabilities())

    def describe(self) -> dict[str, Any]:
        """Runtime, settings, versions and machine of the first board that answers, and the names of all."""
        return {**next(iter(self._check_kind().values())), "target": self.name, "boards": list(self.boards)}

    def moment(self) -> dict[str, Any]:
        """What changes on each board from minute to minute, by the board's name; of those that answer."""
        found = {}
        for host, board in self._answering().items():
            with suppress(CompressError):
                found[host] = board.moment()
        return {"boards": found}

    def measure(
        self,
        models: Sequence[Path],
        *,
        inputs: Mapping[str, np.ndarray] | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        protocol: Protocol | None = None,
        watch: Watch | None = None,
    ) -> list[Measurement]:
        """Measure ``models`` against ``models[0]``, all of them on one board that is free (see ``Target``)."""
        found = self._on_one(
            lambda board: board.measure(models, inputs=inputs, shapes=shapes, protocol=protocol, watch=watch), watch
        )
        self._timed = (Path(models[0]), inputs, shapes)
        return found

    def run(self, model: Path, inputs: Mapping[str, np.ndarray], *, batch: int = 64) -> list[np.ndarray]:
        """Outputs for all samples, computed on a board that is free (see ``Target``)."""
        return self._on_one(lambda board: board.run(model, inputs, batch=batch))

    def audit(self, model: Path) -> tuple[Layer, ...] | None:
        """The products of the graph that a board really executes; None where its runtime does not show it."""
        return self._on_one(lambda board: board.audit(model))

    def convert(self, model: Path, precision: str, samples: Mapping[str, np.ndarray], made: Path) -> Path | None:
        """Write what the runtime on the boards takes in place of a float ``.onnx`` file (see ``Target``)."""
        return next(iter(self.boards.values())).convert(model, precision, samples, made)

    def remarks(self) -> tuple[str, ...]:
        """Which boards do not answer, and which take longer for the file that was measured last than the fastest."""
        silent = [f"{self.name}: {host} is left out: {error}" for host, (_, error) in self._silent.items()]
        if self._timed is None or self.counted:
            return tuple(silent)
        model, inputs, shapes = self._timed

        def seconds(board: Target) -> float | None:
            with suppress(CompressError):
                [one] = board.measure([model], inputs=inputs, shapes=shapes, protocol=_QUICK)
                return one.latency.p50 if one.latency is not None else None
            return None

        there = self._answering()
        with ThreadPoolExecutor(len(there)) as threads:
            took = {h: s for h, s in zip(there, threads.map(seconds, there.values()), strict=True) if s is not None}
        fastest = min(took, key=lambda host: took[host], default="")
        slower = {host: took[host] / took[fastest] - 1 for host in took if took[host] > (1 + TIE) * took[fastest]}
        said = [
            f"{self.name}: {host} takes {100 * more:.0f} % longer than {fastest} for one file; each comparison stays "
            "on one board, but times in seconds depend on which it was"
            for host, more in slower.items()
        ]
        return (*silent, *said)

    def close(self) -> None:
        """Let go of all boards and of the connections to them."""
        for board in self.boards.values():
            board.close()

    def _answering(self) -> dict[str, Target]:
        """The boards that did not fail to answer within the last minute; all of them where all did."""
        now = time.monotonic()
        for host, (when, _) in list(self._silent.items()):
            if now - when > AGAIN:
                del self._silent[host]
        return {host: board for host, board in self.boards.items() if host not in self._silent} or self.boards

    def _on_one(self, ask: Callable[[Target], _Answer], watch: Watch | None = None) -> _Answer:
        """What a free board answers; one that cannot be reached is left out, and the next one asked."""

        def waiting() -> None:
            if watch is not None:
                watch(Estimate(self.name, "waiting for a board"))

        untried = dict(self._answering())
        while True:
            hosts = list(untried)
            with leased_one([_lease(self.boards[host]) for host in hosts], waiting) as place:
                host = hosts[place]
                try:
                    return ask(untried.pop(host))
                except (TargetUnavailable, TransientError) as error:
                    self._silent[host] = (time.monotonic(), error)
                    if not untried:
                        said = f"{self.name}: none of {len(self.boards)} boards answers; {host}: {error}"
                        raise type(error)(said) from None

    def _check_kind(self) -> dict[str, dict[str, Any]]:
        """What each board says of itself; raises TargetError where two of them are not of one kind."""
        if self._described is None:
            found = {}
            for host, board in self.boards.items():
                try:
                    found[host] = board.describe()
                except (TargetUnavailable, TransientError) as error:
                    self._silent[host] = (time.monotonic(), error)
            if not found:
                host, (_, why) = next(iter(self._silent.items()))
                raise type(why)(f"{self.name}: none of {len(self.boards)} boards answers; {host}: {why}")
            (first, known), *rest = ((host, _kind(said)) for host, said in found.items())
            for host, kind in rest:
                for key, value in kind.items():
                    if value != known.get(key):
                        raise TargetError(
                            f"{self.name}: boards of a pool are of one kind, and {host} has {key} {value}, {first} has "
                            f"{known.get(key)}; give it as a --target of its own"
                        )
            self._described = found
        return self._described


def _kind(described: Mapping[str, Any]) -> dict[str, Any]:
    machine = described.get("machine", {})
    return {**{key: machine.get(key) for key in _KIND}, **described.get("packages", {})}


def _lease(board: Target) -> str:
    """The name under which a board is leased on this machine; what runs on the board has its own lease there."""
    return f"board-{hashlib.sha256(board.name.encode()).hexdigest()[:16]}"

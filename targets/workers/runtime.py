"""What a runtime on this machine has to offer, as seen from inside the worker process.

A ``LocalTarget`` names a ``Runtime`` subclass (``module:class``); the worker imports it, so that whatever the
native library does (crash, hang, eat the memory) happens there and costs one candidate.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from targets.errors import MeasurementError
from targets.target import Layer


@dataclass(frozen=True)
class Input:
    """One input of a model; ``None`` in ``shape`` is a dynamic axis; ``dtype`` is numpy's name."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Block:
    """Inferences that are run and timed in another process, many at one go: to ask for each would take as long."""

    run: Callable[[int], Sequence[float]]
    """Runs so many at least; seconds of each, or of means of several where the clock there is too coarse for one."""


class Session(abc.ABC):
    """A model that a runtime has loaded and can run; ``inputs`` are in the order of the file."""

    inputs: tuple[Input, ...]

    @abc.abstractmethod
    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """One inference; raises ModelError if the runtime refuses the feeds or the model."""

    def timed(self, feeds: dict[str, np.ndarray]) -> Callable[[], float | None] | Block:
        """What is timed: one inference of ``feeds``, giving the seconds where the runtime itself says them."""

        def once() -> None:
            self.run(feeds)

        return once

    def memory(self, feeds: dict[str, np.ndarray]) -> int | None:  # noqa: ARG002  for those that know
        """Bytes that loading and running it takes, where the growth of this process does not show them."""
        return None


class Runtime(abc.ABC):
    """A runtime with its settings; made once in a worker process, after the CPUs are pinned."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = dict(settings)

    @property
    def processes(self) -> tuple[int, ...]:
        """The ids of the processes besides this one that do its work: they are pinned and watched with it."""
        return ()

    @abc.abstractmethod
    def load(self, path: Path) -> Session:
        """Load a file; raises ModelError if it cannot be."""

    def prepare(self, path: Path) -> None:  # noqa: B027  most have nothing to do
        """Convert a file, where that is done once before it ships: no part of the time that loading takes."""

    def audit(self, path: Path) -> list[Layer] | None:  # noqa: ARG002  for those that can
        """The products of the graph that is executed for a file; None where the runtime does not show it."""
        return None

    def count(
        self,
        path: Path,  # noqa: ARG002  for those that can
        make_feeds: Callable[[Sequence[Input]], dict[str, np.ndarray]],  # noqa: ARG002
        report: Callable[[str], None],  # noqa: ARG002
    ) -> tuple[int, tuple[Input, ...]]:
        """Instructions of one inference of a file, where cost is counted, and the file's inputs.

        ``report`` is told before every step, in words. Raises ModelError as ``load`` and ``run`` do.
        """
        raise MeasurementError("this runtime does not count instructions")

    def facts(self) -> dict[str, Any]:
        """What only the loaded library can say (versions, limits), as JSON."""
        return {}

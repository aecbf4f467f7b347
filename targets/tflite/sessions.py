"""A loaded ``.tflite`` file that takes the arrays of the ``.onnx`` file it came from, one sample at a time."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from targets.errors import ModelError
from targets.tflite.tflite_files import TfliteFile
from targets.workers.inputs import show
from targets.workers.runtime import Session


class TfliteSession(Session):
    """Turns and quantizes arrays on their way in, and back on their way out; a subclass only runs the tensors."""

    def __init__(self, path: Path, file: TfliteFile) -> None:
        self.path = path
        self.file = file
        self.inputs = file.takes

    @abc.abstractmethod
    def invoke(self, tensors: Sequence[np.ndarray]) -> list[np.ndarray]:
        """One inference: the tensors of ``file.inputs``, in that order, to those of ``file.outputs``."""

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs for a batch, run sample by sample where the file takes one; raises ModelError where that fails."""
        counts = {len(feeds[port.name]) for port in self.file.inputs if port.open}
        if len(counts) > 1:
            raise ModelError(f"{self.path}: inputs have different numbers of samples: {sorted(counts)}")
        rows = [self._one(feeds, place) for place in range(counts.pop() if counts else 1)]
        return rows[0] if len(rows) == 1 else self._joined(rows)

    def timed(self, feeds: dict[str, np.ndarray]) -> Callable[[], float | None]:
        """What is timed: inputs set, one inference, outputs taken; arrays are turned and quantized before."""
        counts = [len(feeds[port.name]) for port in self.file.inputs if port.open] or [1]
        rows = [self._tensors(feeds, place) for place in range(counts[0])]

        def once() -> None:
            for tensors in rows:
                self.invoke(tensors)

        return once

    def _tensors(self, feeds: dict[str, np.ndarray], place: int) -> list[np.ndarray]:
        return [
            port.into(feeds[port.name][place : place + 1] if port.open else feeds[port.name])
            for port in self.file.inputs
        ]

    def _one(self, feeds: dict[str, np.ndarray], place: int) -> list[np.ndarray]:
        try:
            found = self.invoke(self._tensors(feeds, place))
        except (RuntimeError, ValueError) as error:
            said = ", ".join(f"{name} {show(array.shape)}" for name, array in feeds.items())
            text = " ".join(str(error).split())[:250]
            raise ModelError(f"{self.path}: cannot be run with {said}: {text}") from None
        return [port.out_of(tensor) for port, tensor in zip(self.file.outputs, found)]

    def _joined(self, rows: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
        for number, output in enumerate(rows[0]):
            if output.ndim == 0 or len(output) != 1:
                raise ModelError(
                    f"{self.path}: output {number} has shape {show(output.shape)} for one sample: its first axis is "
                    "not the batch, so it cannot be run for several"
                )
        return [np.concatenate(column) for column in zip(*rows)]

"""A ``.tflite`` file on an emulated core, given and giving the arrays that every target takes."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

import numpy as np

from targets.errors import MeasurementError, ModelError
from targets.tflite.tflite_files import Port, TfliteFile
from targets.workers.runtime import Session


class EmulatedSession(Session):
    """Runs all samples of a batch in one run of the emulator: ``execute`` turns their bytes into those of outputs."""

    def __init__(self, path: Path, file: TfliteFile, execute: Callable[[bytes], bytes]) -> None:
        self.path = path
        self.inputs = file.takes
        self._file = file
        self._execute = execute

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs for a batch, samples first; raises ModelError where inputs do not fit each other."""
        count, samples = self.samples(feeds)
        output = self._execute(samples)
        outputs = sorted(self._file.outputs, key=attrgetter("position"))
        row = np.dtype([(str(port.position), port.tensor.dtype, port.tensor.shape) for port in outputs])
        if len(output) != count * row.itemsize:
            raise MeasurementError(
                f"{self.path}: {len(output)} bytes came back for {count} samples of {row.itemsize} bytes"
            )
        table = np.frombuffer(output, row)
        return [self._joined(port, table[str(port.position)]) for port in self._file.outputs]

    def samples(self, feeds: dict[str, np.ndarray]) -> tuple[int, bytes]:
        """How many samples there are, and their bytes as the program reads them: each one all inputs in order."""
        counts = {len(feeds[port.name]) for port in self._file.inputs if port.open}
        if len(counts) > 1:
            raise ModelError(f"{self.path}: inputs have different numbers of samples: {sorted(counts)}")
        count = counts.pop() if counts else 1
        ports = sorted(self._file.inputs, key=attrgetter("position"))
        rows = (port.into(_sample(port, feeds[port.name], place)) for place in range(count) for port in ports)
        return count, b"".join(row.tobytes() for row in rows)

    def _joined(self, port: Port, tensors: np.ndarray) -> np.ndarray:
        """The arrays of one output, along their first axis."""
        arrays = [port.out_of(tensor) for tensor in tensors]
        if len(arrays) == 1:
            return arrays[0]
        if arrays[0].ndim == 0 or len(arrays[0]) != 1:
            raise ModelError(
                f"{self.path}: output {port.name!r} has shape {arrays[0].shape} for one sample: its first axis is not "
                "the batch, so it cannot be run for several"
            )
        return np.concatenate(arrays)


def _sample(port: Port, array: np.ndarray, place: int) -> np.ndarray:
    return array[place : place + 1] if port.open else array

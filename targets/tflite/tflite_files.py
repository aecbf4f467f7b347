"""What stands in a ``.tflite`` file: operators, inputs and outputs, their quantization, and how arrays go in.

LiteRT keeps channels last where ONNX keeps them first. What converts a file here writes into its metadata how the
arrays of the ``.onnx`` file become those of the ``.tflite`` file, so that every target takes the same arrays; a file
of another converter says nothing of the kind and takes arrays as they lie in it.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from targets.errors import ModelError
from targets.tflite.operators import CUSTOM, DTYPES, OPERATORS
from targets.tflite.tables import Table, root
from targets.workers.runtime import Input

METADATA = "paretopress"
"""Name of our entry in the metadata: JSON with ``inputs`` and ``outputs``, each a list of ``name``, ``position``,
``axes``, ``dtype`` and ``open``, in the order of the ``.onnx`` file."""
SUFFIX = ".tflite"
OPSET, IR_VERSION = 23, 12
"""Of ``.onnx`` files that are converted; what the converter does not know is refused by the operator's name."""
REFUSES = ("mixed", "int8-qat", "int4-weights")
"""Precisions in which no ``.tflite`` files are made."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file; ``scale`` and ``zero_point`` are those of its first channel."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float = 0.0
    """0: not quantized."""
    zero_point: int = 0
    channels: int = 0
    """How many scales it has; 0: not quantized."""
    constant: bool = False


@dataclass(frozen=True)
class Operation:
    """One operator as it is executed; ``inputs`` and ``outputs`` number the file's tensors, -1 being none."""

    operator: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Port:
    """An input or output: the tensor in the file, and the array that is handed in or given back."""

    name: str
    """As the ``.onnx`` file calls it, where the file is one of ours."""
    position: int
    """Among the file's inputs, or its outputs."""
    index: int
    """Among the file's tensors."""
    tensor: Tensor
    axes: tuple[int, ...]
    """The tensor is the array transposed so."""
    dtype: str
    """Of the array; that of the tensor may be ``int8``."""
    open: bool
    """Whether the array's first axis counts samples, of which the tensor takes one at a time."""

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Of the array; None where any number of samples is taken."""
        sizes: list[int | None] = [0] * len(self.axes)
        for place, axis in enumerate(self.axes):
            sizes[axis] = self.tensor.shape[place]
        return (None, *sizes[1:]) if self.open and sizes else tuple(sizes)

    def into(self, array: np.ndarray) -> np.ndarray:
        """What the tensor is set to for an array: transposed, and quantized where the file wants integers."""
        moved = np.transpose(array, self.axes)
        if self.tensor.scale and np.issubdtype(moved.dtype, np.floating):
            kind = np.iinfo(self.tensor.dtype)
            moved = np.clip(np.rint(moved / self.tensor.scale) + self.tensor.zero_point, kind.min, kind.max)
        return np.ascontiguousarray(moved, dtype=self.tensor.dtype)

    def out_of(self, tensor: np.ndarray) -> np.ndarray:
        """The array for what the tensor holds: floats where it is quantized, and transposed back."""
        if self.tensor.scale and np.issubdtype(tensor.dtype, np.integer):
            tensor = (tensor.astype(np.float32) - np.float32(self.tensor.zero_point)) * np.float32(self.tensor.scale)
        return np.ascontiguousarray(np.transpose(tensor, np.argsort(self.axes)), dtype=self.dtype)


@dataclass(frozen=True)
class TfliteFile:
    """The first graph of a file; ``ours`` where it was converted here."""

    tensors: tuple[Tensor, ...]
    operations: tuple[Operation, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    ours: bool

    @property
    def takes(self) -> tuple[Input, ...]:
        """The arrays that it takes, as a session lists them."""
        return tuple([Input(port.name, port.dtype, port.shape) for port in self.inputs])

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators that occur, each once, sorted."""
        return tuple(sorted({one.operator for one in self.operations}))

    def integer(self, operation: Operation) -> bool:
        """Whether an operation takes and gives integers, weights included; shapes and axes are no such values."""
        kinds = [self.tensors[index] for index in (*operation.inputs[:2], *operation.outputs[:1]) if index >= 0]
        values = [one.dtype for one in kinds if not (one.constant and one.dtype in ("int32", "int64"))]
        return all(dtype in ("int8", "uint8", "int16", "int4") for dtype in values)

    def hybrid(self, operation: Operation) -> bool:
        """Whether floats meet integer weights: they are quantized on the way, or the weights are made floats."""
        kinds = [self.tensors[index] for index in operation.inputs[:2] if index >= 0]
        return any(one.constant and one.scale for one in kinds) and any(one.dtype == "float32" for one in kinds)

    @property
    def first_hybrid(self) -> str | None:
        """The first operator where stored weights meet floats, or are made floats while the file runs; None: nowhere.

        TensorFlow Lite Micro has no kernels for the former, and of the latter channels that differ come out wrong.
        """
        return next((one.operator for one in self.operations if self.hybrid(one) or self._unpacks(one)), None)

    def _unpacks(self, operation: Operation) -> bool:
        first = operation.inputs[0] if operation.inputs else -1
        return operation.operator == "DEQUANTIZE" and first >= 0 and self.tensors[first].constant


def read_tflite(path: Path) -> TfliteFile:
    """What stands in a file; raises ModelError where there is none or it is not a whole ``.tflite`` file."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        raise ModelError(f"{path}: {'no such file' if missing else error.strerror or error}") from None
    if data[4:8] != b"TFL3":
        raise ModelError(f"{path}: truncated or not a .tflite file")
    try:
        return _read(root(data))
    except (struct.error, IndexError, ValueError, KeyError, TypeError, OverflowError):
        raise ModelError(f"{path}: truncated or not a .tflite file") from None


def _read(model: Table) -> TfliteFile:
    graph = model.tables(2)[0]
    buffers = model.tables(4)
    # Weights lie in buffers that hold something, or beyond the tables in a large file.
    filled = [bool(one.length(0) or one.number(1, "Q")) for one in buffers]
    tensors = tuple([_tensor(one, filled) for one in graph.tables(0)])
    codes = [_operator(one) for one in model.tables(1)]
    operations = tuple([
        Operation(codes[one.number(0, "I")], _indices(one, 1), _indices(one, 2)) for one in graph.tables(3)
    ])  # fmt: skip
    said = _metadata(model, buffers)
    inputs = _ports(_indices(graph, 1), tensors, said.get("inputs"))
    outputs = _ports(_indices(graph, 2), tensors, said.get("outputs"))
    return TfliteFile(tensors, operations, inputs, outputs, bool(said))


def _tensor(one: Table, filled: list[bool]) -> Tensor:
    shape = tuple(int(size) for size in one.numbers(0, "i"))
    quantization = one.table(4)
    scales = quantization.numbers(2, "f") if quantization else ()
    zeros = quantization.numbers(3, "q") if quantization else ()
    return Tensor(
        name=one.text(3),
        dtype=DTYPES[one.number(1, "b")],
        shape=shape,
        scale=float(scales[0]) if scales else 0.0,
        zero_point=int(zeros[0]) if zeros else 0,
        channels=len(scales),
        constant=filled[one.number(2, "I")],
    )


def _operator(one: Table) -> str:
    # Numbers up to 127 stood in a field of one byte before there were more.
    number = max(one.number(0, "b"), one.number(3, "i"))
    return f"CUSTOM:{one.text(1)}" if number == CUSTOM else OPERATORS[number]


def _indices(one: Table, field: int) -> tuple[int, ...]:
    return tuple(int(index) for index in one.numbers(field, "i"))


def _metadata(model: Table, buffers: tuple[Table, ...]) -> dict[str, Any]:
    for one in model.tables(6):
        if one.text(0) == METADATA:
            found = json.loads(buffers[one.number(1, "I")].raw(0))
            return found if isinstance(found, dict) else {}
    return {}


def _ports(indices: tuple[int, ...], tensors: tuple[Tensor, ...], said: Any) -> tuple[Port, ...]:
    if said is None:
        return tuple([_foreign(position, index, tensors[index]) for position, index in enumerate(indices)])
    return tuple([
        Port(
            str(one["name"]), int(one["position"]), indices[one["position"]], tensors[indices[one["position"]]],
            tuple(int(axis) for axis in one["axes"]), str(np.dtype(one["dtype"])), bool(one["open"]),
        )
        for one in said
    ])  # fmt: skip


def _foreign(position: int, index: int, tensor: Tensor) -> Port:
    """An input or output of a file that was not converted here."""
    axes = tuple(range(len(tensor.shape)))
    dtype = "float32" if tensor.scale else tensor.dtype
    return Port(tensor.name, position, index, tensor, axes, dtype, bool(tensor.shape) and tensor.shape[0] == 1)

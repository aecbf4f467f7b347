"""What an ONNX file says about itself, read without the onnx package: a small board has none.

Only the fields that are needed of the protobuf message are walked through; weights are skipped where they lie.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from targets.model_files.protobuf import fields

_GRAPH = 7  # of ModelProto
_NODE, _INITIALIZER, _INPUT = 1, 5, 11  # of GraphProto
_INTEGER_KINDS = {2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 12: "uint32", 13: "uint64"}
_HALF = 10
_EXTERNAL = 1  # data_location of TensorProto
_QUANTIZED = frozenset({
    "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
    "QGemm", "DynamicQuantizeMatMul",
})  # fmt: skip
"""Operators that stand only in files with integer weights."""


@dataclass(frozen=True)
class FileInput:
    """An input as the file declares it; an axis is its size, its symbol, or None where it has neither."""

    name: str
    integer: bool
    axes: tuple[int | str | None, ...]

    @property
    def open_axes(self) -> tuple[str, ...]:
        """Dynamic axes besides the first, which is taken for the batch; nameless ones by their number."""
        rest = enumerate(self.axes[1:], 1)
        names = (str(axis or f"axis {number}") for number, axis in rest if not isinstance(axis, int))
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class FileFacts:
    """What the main graph of a file says: its inputs, its operators, and whether its weights are in 16 bits."""

    inputs: tuple[FileInput, ...]
    operators: Mapping[str, int]
    """Nodes by operator."""
    half: bool
    """Most of its float weights are of 16 bits."""
    apart: bool = False
    """Whether weights lie in files beside it."""

    @property
    def quantized(self) -> bool:
        """Whether there are weights or activations in integers."""
        return any(name in _QUANTIZED for name in self.operators)

    @property
    def precision(self) -> str:
        """``int8``, ``fp16`` or ``float``: as far as the file shows it."""
        return "int8" if self.quantized else "fp16" if self.half else "float"


def read_facts(path: Path) -> FileFacts | None:
    """The facts of a file; None where it cannot be read, which a runtime explains better."""
    if not path.is_file():
        return None  # a pipe would never end
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _facts(memoryview(content))
    except (OSError, ValueError, IndexError, BufferError):
        return None  # BufferError: the error before it still holds a part of the map


def _facts(model: memoryview) -> FileFacts | None:
    inputs: list[FileInput] = []
    weights: set[str] = set()
    kinds: Counter[int] = Counter()
    operators: Counter[str] = Counter()
    found = apart = False
    for number, graph in fields(model):
        if number != _GRAPH or isinstance(graph, int):
            continue
        found = True
        for field, value in fields(graph):
            if isinstance(value, int):
                continue
            if field == _NODE:
                operators[_text(value, 4)] += 1
            elif field == _INITIALIZER:
                weights.add(_text(value, 8))
                kinds[_number(value, 2)] += 1
                apart = apart or _number(value, 14) == _EXTERNAL
            elif field == _INPUT:
                inputs.append(_input(value))
    if not found:
        return None
    # Older files list their weights among the inputs.
    return FileFacts(
        inputs=tuple(one for one in inputs if one.name not in weights),
        operators=dict(operators),
        half=kinds[_HALF] > kinds[1],
        apart=apart,
    )


def _input(value: memoryview) -> FileInput:
    tensor = _nested(_nested(value, 2), 1)
    axes: list[int | str | None] = []
    for number, axis in fields(_nested(tensor, 2)):
        if number == 1 and not isinstance(axis, int):
            sizes = dict(fields(axis))
            size = sizes.get(1)
            axes.append(size if isinstance(size, int) and size > 0 else _text(axis, 2) or None)
    return FileInput(_text(value, 1), _number(tensor, 1) in _INTEGER_KINDS, tuple(axes))


def _nested(message: memoryview, wanted: int) -> memoryview:
    return next((v for n, v in fields(message) if n == wanted and not isinstance(v, int)), message[:0])


def _text(message: memoryview, wanted: int) -> str:
    return bytes(_nested(message, wanted)).decode()


def _number(message: memoryview, wanted: int) -> int:
    return next((v for n, v in fields(message) if n == wanted and isinstance(v, int)), 0)


def example(one: FileInput) -> str:
    """``x=1,3,224,224``: the file's own sizes, and something likely where it leaves them open."""
    axes = [axis if isinstance(axis, int) else 224 if number > 1 else 1 for number, axis in enumerate(one.axes)]
    if len(axes) == 2 and one.open_axes:
        axes[1] = 128
    return f"{one.name}={','.join(map(str, axes))}"

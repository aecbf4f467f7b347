"""A network in ncnn's own format, loaded and run: one sample at a time, as programs that use it do."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from targets.errors import ModelError
from targets.workers.inputs import show

DTYPES = {"float32": "float32", "int32": "int32", "int64": "int32"}
"""Input types of an ``.onnx`` file, and what ncnn gets for them."""


@dataclass(frozen=True)
class Converted:
    """What pnnx made of a file: two files, and how arrays go in and come out.

    ``batch_in`` and ``batch_out`` are, per input and output, the axis that is the batch and no axis of ncnn's own
    tensor; 233 where there is none, which is what ncnn calls it.
    """

    param: str
    weights: str
    dtypes: tuple[str, ...]
    outputs: tuple[str, ...]
    """Names of the file's outputs."""
    batch_in: tuple[int, ...]
    batch_out: tuple[int, ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    """Of the outputs; None where it depends on the values."""


class NcnnNetwork:
    """A loaded network. ``precision`` is ``fp32`` or ``fp16``. Raises ModelError where ncnn cannot load or run it."""

    def __init__(self, converted: Converted, precision: str, threads: int) -> None:
        # By name: the checkers of a checkout without the extra have nothing to say about it.
        ncnn: Any = importlib.import_module("ncnn")
        self._mat = ncnn.Mat
        self._net = ncnn.Net()
        options = self._net.opt
        options.num_threads = threads
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = precision == "fp16"
        # Neither raises.
        if self._net.load_param(converted.param) != 0 or self._net.load_model(converted.weights) != 0:
            raise ModelError("ncnn cannot load what pnnx made of it")
        self._inputs = tuple(
            (f"in{number}", converted.dtypes[number], axis) for number, axis in enumerate(converted.batch_in)
        )
        self._outputs = tuple(
            (f"out{number}", *parts)
            for number, parts in enumerate(zip(converted.outputs, converted.batch_out, converted.shapes))
        )

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Outputs for contiguous inputs, in the order of the file; outputs are copies."""
        extractor = self._net.create_extractor()
        for array, (name, dtype, axis) in zip(arrays, self._inputs):
            # Without the copy ncnn would read, and may write, memory that is numpy's.
            code = extractor.input(name, self._mat(array.astype(dtype, copy=False), batch_index=axis).clone())
            if code != 0:
                raise ModelError(f"ncnn does not take input {name} (code {code})")
        outputs = []
        for blob, name, axis, shape in self._outputs:
            code, found = extractor.extract(blob)
            if code != 0:
                raise ModelError(f"ncnn fails to compute output {name!r} (code {code})")
            outputs.append(_shaped(np.array(found.numpy(batch_index=axis)), shape, name))
        return outputs


def _shaped(array: np.ndarray, shape: tuple[int, ...] | None, name: str) -> np.ndarray:
    """``array`` in the model's shape: ncnn drops and adds axes of 1, and nothing else may differ."""
    if shape is None or array.shape == shape:
        return array
    if [axis for axis in array.shape if axis != 1] != [axis for axis in shape if axis != 1]:
        raise ModelError(
            f"converted by pnnx it computes something else: output {name!r} has shape {show(array.shape)}, "
            f"the model says {show(shape)}; ncnn cannot be used for it"
        )
    return array.reshape(shape)

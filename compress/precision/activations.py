"""The values of tensors inside an ONNX model for given samples: each is made an output of a copy of the model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from compress.onnx_files.sessions import grown_by_one, open_session
from compress.precision.calibration_samples import Batches, fitting


def inner_values(
    model: onnx.ModelProto, names: Sequence[str], samples: Mapping[str, np.ndarray]
) -> Iterator[list[np.ndarray]]:
    """For each batch of ``samples``, the values of the tensors called ``names``, in their order.

    ``samples``: arrays by input name, samples first. Computed on the CPU, quantized layers in floats.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    inputs = {value.name for value in model.graph.input}
    del copied.graph.output[:]
    copied.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in inputs)
    made = [value.name for value in copied.graph.output]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(copied, path)
        session = open_session(path)
        most = fitting(partial(grown_by_one, path), samples)
        for batch in Batches(model, samples, most):
            found = {**batch, **dict(zip(made, session.run(made, dict(batch)), strict=True))} if made else dict(batch)
            yield [found[name] for name in names]

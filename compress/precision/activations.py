"""The values of tensors inside an ONNX model for given samples: each is made an output of a copy of the model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
    for [found] in paired_values([model], names, samples):
        yield found


def paired_values(
    models: Sequence[onnx.ModelProto], names: Sequence[str], samples: Mapping[str, np.ndarray]
) -> Iterator[list[list[np.ndarray]]]:
    """The same of several models with the same inputs, for the same batches: as many samples as all have room for."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.onnx" for number in range(len(models))]
        for model, path in zip(models, paths, strict=True):
            _save_with_outputs(model, names, path)
        sessions = [open_session(path) for path in paths]
        most = min(fitting(partial(grown_by_one, path), samples) for path in paths)
        for batch in Batches(models[0], samples, most, every=True):
            yield [_values(session, names, batch) for session in sessions]


def _save_with_outputs(model: onnx.ModelProto, names: Sequence[str], path: Path) -> None:
    """Write a copy whose outputs are the tensors called ``names``, without those that it is given."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    inputs = {value.name for value in model.graph.input}
    del copied.graph.output[:]
    copied.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in inputs)
    onnx.save(copied, path)


def _values(session: Any, names: Sequence[str], batch: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Inputs among ``names`` are what was given."""
    made = [name for name in dict.fromkeys(names) if name not in batch]
    found = {**batch, **dict(zip(made, session.run(made, dict(batch)), strict=True))} if made else dict(batch)
    return [found[name] for name in names]

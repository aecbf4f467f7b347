"""An ``.onnx`` file as it came, made fit to work with: checked, half precision to float, its batch size set free.

A network may be brought as a file from anywhere. What had to be changed to work with it is told, one sentence each;
the file itself is never touched.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from compress.onnx_files.contents import all_tensors, graphs_in, inputs_of, own_tensors
from compress.onnx_files.graphs import load_model
from compress.onnx_files.isolation import blaming, kept_worker
from compress.onnx_files.sessions import Session, open_session
from compress.values.error_lines import one_line
from targets.errors import ModelError

_HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class NormalizedModel:
    """The model to work with, and what was changed of what the file holds, a sentence each."""

    model: onnx.ModelProto
    notes: tuple[str, ...] = ()


def read_normalized(path: Path) -> NormalizedModel:
    """The model in the file, checked, half precision turned into float.

    Raises ModelError, in one line, for what ``load_model`` refuses, for outputs that are no tensors of numbers, and for
    weights that hold NaN.
    """
    model = load_model(path)
    _check_outputs(model, path)
    _check_weights(model, path)
    if not any(tensor.data_type in _HALF for tensor in all_tensors(model.graph)):
        return NormalizedModel(model)
    note = "its weights are in half precision; it is worked with, and compared with, in float32"
    return NormalizedModel(to_float(model), (note,))


def with_free_batch(source: NormalizedModel, path: Path, samples: Mapping[str, np.ndarray]) -> NormalizedModel:
    """``source`` for any batch size: where one is baked in, it is set free if the outputs then stay the same.

    ``path``: the file, for messages; ``samples``: arrays by input name, samples first. ``source`` itself where nothing
    had to be done or nothing could be. Raises ModelError for a model that runs on one sample only though its input says
    otherwise.
    """
    with blaming(path), kept_worker():
        found = _freed(source.model, path, samples)
    if found is None:
        return source
    note = f"its batch size of {found[1]} was baked in; it is worked with as a model for any batch"
    return NormalizedModel(found[0], (*source.notes, note))


def to_float(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` in which every half-precision weight, value and cast is float32."""
    changed = copy.deepcopy(model)
    for graph in graphs_in(changed.graph):
        for tensor in own_tensors(graph):
            if tensor.data_type in _HALF:
                array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in _HALF:
                value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name in ("to", "dtype") and attribute.i in _HALF:
                    attribute.i = onnx.TensorProto.FLOAT
    return changed


@contextlib.contextmanager
def _session(model: onnx.ModelProto, name: str) -> Iterator[Session]:
    """An ONNX Runtime session of ``model``, which need not be in a file.

    Raises ModelError, about ``name``, where it does not load.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        try:
            session = open_session(path)
        except ModelError as error:
            reason = str(error).replace(str(path), "it")
            raise ModelError(f"{name} does not load in ONNX Runtime: {reason}") from None
        yield session


def _check_outputs(model: onnx.ModelProto, path: Path) -> None:
    """Raise ModelError for outputs that are no tensors of numbers."""
    for value in model.graph.output:
        if not value.type.HasField("tensor_type"):
            raise ModelError(
                f"{path.name}: output {value.name!r} is a list of dictionaries, not a tensor; convert the model again "
                "without them (skl2onnx: options={'zipmap': False})"
            )
        if value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            raise ModelError(
                f"{path.name}: output {value.name!r} is text; numbers are needed: train with class numbers as labels"
            )


def _check_weights(model: onnx.ModelProto, path: Path) -> None:
    """Raise ModelError for weights that hold NaN; infinite constants are masks, and right."""
    for tensor in all_tensors(model.graph):
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, *_HALF):
            array = onnx.numpy_helper.to_array(tensor)
            if np.isnan(array.astype(np.float32)).any():
                raise ModelError(f"{path.name}: weight {tensor.name!r} holds NaN; export a network that is trained")


def _freed(model: onnx.ModelProto, path: Path, samples: Mapping[str, np.ndarray]) -> tuple[onnx.ModelProto, int] | None:
    """The graph for any batch, and the size it had; None where there is none to free or where it does not work."""
    sizes = {_first(value) for value in inputs_of(model)}
    size = sizes.pop() if len(sizes) == 1 else 0
    if size > 0:
        free = _without_batch(model, size)
        return (free, size) if _same(model, free, size, samples) else None
    try:
        with _session(model, path.name) as session:
            _run(session, samples, 3)
    except ValueError as error:
        # Its input says any batch; somewhere in it, one size is meant.
        free = _without_batch(model, 1)
        if _same(model, free, 1, samples):
            return free, 1
        if _has_another_batch_axis(model, path.name, samples):
            return None  # whoever runs it does so sample by sample
        raise ModelError(
            f"{path.name} does not run on several samples at once ({error}): its batch size is baked in, or the "
            "samples are not what it takes; export it with a dynamic batch"
        ) from None
    return None


def _first(value: onnx.ValueInfoProto) -> int:
    """The size of an input's or output's first axis; 0 where it is open."""
    dims = value.type.tensor_type.shape.dim
    return int(dims[0].dim_value) if dims else 0


def _without_batch(model: onnx.ModelProto, size: int) -> onnx.ModelProto:
    """A copy whose inputs and outputs have a free first axis, and whose shapes that begin with ``size`` follow it."""
    free = copy.deepcopy(model)
    del free.graph.value_info[:]
    for value in (*free.graph.input, *free.graph.output):
        if _first(value) == size:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    constants = {tensor.name: tensor for tensor in free.graph.initializer}
    for node in free.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    for number, node in enumerate(list(free.graph.node)):
        if node.op_type != "Reshape" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        shape = onnx.numpy_helper.to_array(constants[node.input[1]]).copy()
        if shape.ndim == 1 and len(shape) and shape[0] == size:
            # 0: as it is in the input. Where another axis is open already, the first can only be that.
            shape[0] = 0 if -1 in shape else -1
            name = f"{node.input[1]}_of_{number}"
            free.graph.initializer.append(onnx.numpy_helper.from_array(shape, name))
            node.input[1] = name
    return free


def _same(model: onnx.ModelProto, free: onnx.ModelProto, size: int, samples: Mapping[str, np.ndarray]) -> bool:
    """Whether ``free`` gives for a larger batch what ``model`` gives for its own."""
    try:
        with _session(model, "it") as session:
            expected = _run(session, samples, size)
        with _session(free, "it") as session:
            found = _run(session, samples, size + 2)
    except (ValueError, ModelError):
        return False
    return all(
        a.shape == b[:size].shape and np.allclose(a, b[:size], rtol=_TOLERANCE, atol=_TOLERANCE)
        for a, b in zip(expected, found, strict=True)
    )


def _has_another_batch_axis(model: onnx.ModelProto, name: str, samples: Mapping[str, np.ndarray]) -> bool:
    """Whether it runs on three samples, and outputs are three times as long on one axis, whichever that is."""
    with _session(model, name) as session:
        try:
            one, three = (_outputs(session, samples, size) for size in (1, 3))
        except ValueError:
            return False
    return all(
        a.ndim == b.ndim and [pair for pair in zip(a.shape, b.shape, strict=True) if pair[0] != pair[1]] == [(1, 3)]
        for a, b in zip(one, three, strict=True)
    )


def _run(session: Session, samples: Mapping[str, np.ndarray], size: int) -> list[np.ndarray]:
    """As ``_outputs``; raises ValueError also where an output does not have the samples on its first axis."""
    outputs = _outputs(session, samples, size)
    wrong = [x.shape for x in outputs if x.ndim == 0 or len(x) != size]
    if wrong:
        raise ValueError(f"an output has shape {wrong[0]} for {size} samples")
    return outputs


def _outputs(session: Session, samples: Mapping[str, np.ndarray], size: int) -> list[np.ndarray]:
    """Outputs for the first ``size`` samples (repeated if there are fewer); raises ValueError where it does not run."""
    feeds = {name: np.resize(x, (size, *x.shape[1:])) for name, x in samples.items()}
    try:
        return session.run(None, feeds)
    except ModelError as error:
        raise ValueError(one_line(error)) from None

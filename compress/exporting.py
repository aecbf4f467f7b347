"""Torch to ONNX: traced once per pruned graph, then only the weights change.

`trace` runs the exporter (seconds) and keeps the raw graph, whose initializers still bear the names of the
module's parameters. `bind` puts trained weights into it, folds and simplifies (tens of milliseconds), and strips
what the exporter writes about the local machine. `check_parity` compares the file with the network; it is what
makes the swap safe: on a mismatch the caller traces anew.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import logging
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from compress.results import Parity
from compress.unwrapping import plain_copy
from targets.errors import ExportError, ParityError, RequestError, TargetError
from targets.target import Capabilities

VERSION = 2
_OLDEST_OPSET = 18
"""The exporter writes nothing older; what must be is converted afterwards."""
_LARGEST_BATCH = 1024
"""A graph must hold for batches of this size at least."""
TOLERANCE = 1e-4
"""Largest difference allowed, as a share of the largest output (at least of 1)."""


@dataclass(frozen=True)
class Limits:
    """The highest opset and IR version a file may have: what the exporter gives, or less where a runtime is old."""

    opset: int = 20
    ir_version: int = 10


def limits_of(capabilities: Iterable[Capabilities]) -> Limits:
    """What all of these targets accept."""
    limits = Limits()
    for one in capabilities:
        limits = Limits(min(limits.opset, one.opset), min(limits.ir_version, one.ir_version))
    return limits


def export(module: nn.Module, example_inputs: Tensor | tuple[Tensor, ...], path: str | Path) -> Parity:
    """Write ``module`` as ONNX with a dynamic batch, checked against it at two batch sizes.

    ``example_inputs``: a tensor or a tuple of tensors, batch first. The module is left as it was.
    Raises ExportError if the exporter fails, ParityError if the file computes something else.
    """
    inputs, path = as_tuple(example_inputs), Path(path)
    check_folder(path)
    model = bind(trace(module, inputs), module.state_dict())
    with tempfile.TemporaryDirectory(prefix=".exporting-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        onnx.save(model, temporary)
        parity = check_parity(temporary, module, inputs)
        os.replace(temporary, path)
    return parity


def check_folder(path: Path) -> None:
    """Raise RequestError where the folder that ``path`` is to be written in does not exist."""
    if not path.parent.is_dir():
        raise RequestError(f"{str(path)!r} cannot be written: the folder {str(path.parent)!r} does not exist")


def as_tuple(inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A tensor or tuple of tensors as a tuple."""
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def trace(module: nn.Module, inputs: tuple[Tensor, ...], limits: Limits | None = None) -> onnx.ModelProto:
    """The raw exported graph of ``module`` in eval mode, batch dynamic, weights under their own names."""
    opset = max(_OLDEST_OPSET, (limits or Limits()).opset)
    batch = torch.export.Dim("batch")
    # A network that was imported keeps the names of its file.
    names = getattr(module, "meta", {})
    with _quiet():
        try:
            network = plain_copy(module).to("cpu").eval()
            program = torch.onnx.export(
                network,
                _with_batch(inputs, 2),
                dynamo=True,
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                external_data=False,
                optimize=False,
                verbose=False,
                opset_version=opset,
                input_names=names.get("input_names"),
                output_names=names.get("output_names"),
            )
        except Exception as error:
            raise ExportError(f"{type(module).__name__} cannot be exported to ONNX: {_cause(error)}") from error
    if program is None:
        raise ExportError(f"{type(module).__name__} cannot be exported to ONNX: the exporter returned nothing")
    _check_batch(program, type(module).__name__)
    _tell_apart(program.model.graph)
    return clean(program.model_proto)


def _tell_apart(graph: Any) -> None:
    """Rename what a node puts out where a weight has that name: a buffer ``mean`` beside the result of ``x.mean()``."""
    weights = set(graph.initializers)
    outputs = {value.name for node in graph for value in node.outputs}
    for node in graph:
        for value in node.outputs:
            if value.name in weights:
                number = next(i for i in itertools.count(1) if f"{value.name}_{i}" not in weights | outputs)
                value.name = f"{value.name}_{number}"
                outputs.add(value.name)


def _check_batch(program: Any, name: str) -> None:
    """Raise ExportError where the graph holds for small batches only: ``forward`` does something else for others."""
    for symbol, limits in program.exported_program.range_constraints.items():
        # s0, s77: sizes of inputs; u0: sizes that only running shows. The upper end is a number or infinity.
        if str(symbol).startswith("s") and limits.upper < _LARGEST_BATCH:
            raise ExportError(
                f"{name} cannot be exported to ONNX: its forward branches on the batch size (the graph holds for "
                f"{limits.lower} to {limits.upper} only); let it do the same for every batch"
            )


def bind(template: onnx.ModelProto, state: Mapping[str, Tensor], limits: Limits | None = None) -> onnx.ModelProto:
    """``template`` with the weights of ``state``, folded, simplified, within limits and stripped of local paths."""
    from onnxscript import optimizer

    model = copy.deepcopy(template)
    for initializer in model.graph.initializer:
        tensor = state.get(initializer.name)
        if tensor is not None and tuple(tensor.shape) == tuple(initializer.dims):
            array = tensor.detach().cpu().contiguous().numpy()
            initializer.CopyFrom(onnx.numpy_helper.from_array(array, initializer.name))
    with _quiet():
        model = optimizer.optimize(model)
    return clean(suit(model, limits or Limits()))


def suit(model: onnx.ModelProto, limits: Limits) -> onnx.ModelProto:
    """The model within the limits of a runtime, in place where nothing but the IR version is above them.

    Raises TargetError where it needs operators that came later.
    """
    model.ir_version = min(model.ir_version, limits.ir_version)
    version = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if version <= limits.opset:
        return model
    from onnx import version_converter

    try:
        converted = version_converter.convert_version(model, limits.opset)
        onnx.checker.check_model(converted)
    except Exception as error:
        raise TargetError(
            f"the network needs opset {version}, the target's runtime knows up to {limits.opset}, and it cannot be "
            f"converted ({_cause(error)}); install a newer runtime there"
        ) from error
    converted.ir_version = min(converted.ir_version, limits.ir_version)
    return converted


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove metadata that names local files (in place), everywhere in the model."""
    del model.metadata_props[:]
    model.doc_string = ""
    for graph in (model.graph, *model.functions):
        _clean_graph(graph)
    return model


def check_parity(path: Path, module: nn.Module, inputs: tuple[Tensor, ...], *, enforce: bool = True) -> Parity:
    """Compare the file with ``module`` (in eval mode) on ``inputs`` at two batch sizes.

    ``enforce``: raise ParityError when they differ by more than TOLERANCE; False for quantized files, whose
    difference is a property and no error.
    """
    try:
        session = open_session(path)
    except Exception as error:
        raise ParityError(f"{path.name} does not load in ONNX Runtime: {_cause(error)}") from None
    names = [node.name for node in session.get_inputs()]
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    worst, scale, same, count = 0.0, 1.0, 0, 0
    for size in (1, max(3, len(inputs[0]))):
        batch = _with_batch(inputs, size)
        try:
            with evaluating(module), torch.no_grad():
                expected = [x.cpu().numpy() for x in outputs_of(module(*(x.to(device) for x in batch)))]
        except Exception as error:
            raise ExportError(
                f"{type(module).__name__} cannot be exported to ONNX: it does not run on a batch of {size} "
                f"({_cause(error)}); let it take any batch"
            ) from None
        try:
            found = session.run(None, {name: x.cpu().numpy() for name, x in zip(names, batch, strict=True)})
        except Exception as error:
            raise ParityError(f"{path.name} does not run at batch {size}: {_cause(error)}") from None
        for a, b in zip(expected, found, strict=True):
            if a.shape != b.shape:
                raise ParityError(f"{path.name}: output is {b.shape} at batch {size}, the network gives {a.shape}")
            # `np.maximum`, since the built-in one loses NaN.
            worst = float(np.maximum(worst, _difference(a, b)))
            scale = max(scale, float(np.abs(a[np.isfinite(a)]).max(initial=0.0)))
        same += int((_decision(expected[0]) == _decision(found[0])).sum())
        count += _decision(expected[0]).size
    # `not <=` so that NaN is caught as well.
    if enforce and not worst <= TOLERANCE * scale:
        raise ParityError(
            f"{path.name} differs from the network by {worst:.3g} where {TOLERANCE * scale:.3g} is allowed"
        )
    return Parity(worst, same / count if count else 1.0)


def open_session(path: Path) -> Any:
    """An ONNX Runtime session on one thread, for checks on this machine.

    Without the extended optimizations: quantized layers are then computed in floats, as integer kernels that do not
    saturate do, whatever this machine's CPU has.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs_of(value: Any) -> tuple[Tensor, ...]:
    """A network's outputs as a tuple of tensors, whatever it returns them in."""
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return tuple(x for item in value for x in outputs_of(item))


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for a while; every submodule gets its own mode back."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest one; equal infinities do not differ."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return float(np.where(a == b, 0.0, np.abs(a - b)).max(initial=0.0))


def _decision(output: np.ndarray) -> np.ndarray:
    return output.argmax(axis=1) if output.ndim >= 2 and output.shape[1] > 1 else np.zeros(len(output))


def _with_batch(inputs: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    """``inputs`` repeated or cut to ``size`` samples."""
    return tuple(torch.cat([x] * (-(-size // len(x))))[:size].detach().cpu().contiguous() for x in inputs)


def _clean_graph(graph: Any) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    values = [*getattr(graph, "value_info", ()), *getattr(graph, "initializer", ())]
    if isinstance(graph, onnx.GraphProto):
        values += [*graph.input, *graph.output]
    for value in values:
        value.doc_string = ""
        del value.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _clean_graph(inner)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about packages that are not installed and prints its progress: neither is news here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _cause(error: BaseException) -> str:
    """The innermost cause's first line: the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__

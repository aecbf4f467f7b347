"""The two exporters that torch has, behind one call each: a network in eval mode in, its raw ONNX graph out.

``export_program`` takes the graph that ``torch.export`` makes; it is the one to use. ``export_script`` takes what
TorchScript's tracer sees of one run. That one knows operators that the other lacks, but writes down what the network
did in that run: a branch that depends on values, or a number taken out of a tensor, is then frozen in the file. It says
so as it goes, and a graph of which it does is refused.

A graph is *free* where its first axis takes any number of samples, and *fixed* where it takes as many as it was traced
with. Weights bear their own names in both.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from compress.networks.calling import argument_names
from compress.onnx_files.flat_modules import PREFIX, FlatModule, distinct_names, is_flat, output_names
from compress.onnx_files.parity import batch_first
from compress.onnx_files.translations import kept_translations
from targets.errors import ExportError

OLDEST_OPSET = 18
"""The exporter of programs writes nothing older; what must be is converted afterwards."""
_NEWEST_OF_SCRIPTS = 20
_LARGEST_BATCH = 1024
"""A graph must hold for batches of this size at least."""
_FROZEN = "Converting a tensor to"
"""Begins TorchScript's warnings that a value of this run is written down as a constant, or a branch as the only one."""


def export_program(network: nn.Module, inputs: tuple[Tensor, ...], opset: int, *, free: bool) -> onnx.ModelProto:
    """The graph that ``torch.export`` makes of ``network``, a plain one in eval mode; ``inputs``: some samples.

    With ``free`` it may still come out fixed: torch does that by itself where the code of the network wants a number.
    Raises ExportError where it is free and holds for small batches only, and what the exporter raises.
    """
    given, returned = _names(network, inputs)
    flat = is_flat(network, inputs)
    batch = {0: torch.export.Dim("batch")}
    shapes: Any = tuple(batch if free and first else None for first in batch_first(inputs))
    with kept_translations():
        program: Any = torch.onnx.export(
            network if flat else FlatModule(network),
            inputs,
            dynamo=True,
            dynamic_shapes=shapes if flat else (shapes,),
            external_data=False,
            optimize=False,
            verbose=False,
            opset_version=max(OLDEST_OPSET, opset),
            input_names=given if not flat or _known(network) else None,
            output_names=returned,
        )
    if program is None:
        raise ExportError("the exporter returned nothing")
    _check_batch(program)
    _without_prefix(program.model.graph)
    _tell_apart(program.model.graph)
    model: onnx.ModelProto = program.model_proto
    return model


def export_script(network: nn.Module, inputs: tuple[Tensor, ...], opset: int, *, free: bool) -> onnx.ModelProto:
    """The graph that TorchScript's tracer makes of ``network``, a plain one in eval mode; ``inputs``: some samples.

    Raises ExportError where it says that values of this run are frozen in the graph, and what the exporter raises.
    """
    given, returned = _names(network, inputs)
    outputs = returned or [f"output_{k}" for k in range(len(FlatModule(network)(*inputs)))]
    named = [name for name, first in zip(given, batch_first(inputs), strict=True) if first] + list(outputs)
    with (
        tempfile.TemporaryDirectory(prefix="exporting-") as folder,
        warnings.catch_warnings(record=True) as told,
        _without_stdout(),
    ):
        warnings.simplefilter("always")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            FlatModule(network).eval(),
            inputs,
            path,
            dynamo=False,
            dynamic_axes={name: {0: "batch"} for name in named} if free else None,
            do_constant_folding=False,
            opset_version=min(max(OLDEST_OPSET, opset), _NEWEST_OF_SCRIPTS),
            input_names=given,
            output_names=outputs,
        )
        model = onnx.load(path)
    if any(str(one.message).startswith(_FROZEN) for one in told):
        raise ExportError("what it computes depends on values in a way that no graph holds")
    for weight in model.graph.initializer:
        _rename(model.graph, weight.name, weight.name.removeprefix(PREFIX))
    return model


def fixed_batch(model: onnx.ModelProto) -> int | None:
    """The only number of samples that ``model`` takes at once; None where it takes any."""
    if not model.graph.input:
        return None
    axes = [value.type.tensor_type.shape.dim for value in model.graph.input]
    if any(dims and not dims[0].HasField("dim_value") for dims in axes):
        return None
    return next((int(dims[0].dim_value) for dims in axes if dims), None)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporters warn about packages that are not installed, print their progress and what they stumbled over.

    None of that is news here: what matters of it is in the errors that they raise.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx", "torch._dynamo", "torch._export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _without_stdout() -> Iterator[None]:
    """What native code writes to stdout is lost inside: TorchScript's exporter prints the graph where it fails."""
    try:
        kept = os.dup(1)
    except OSError:  # it is closed: nothing can be written to it
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _known(network: nn.Module) -> Mapping[str, Any]:
    """What an imported network keeps of its file."""
    found: Mapping[str, Any] = getattr(network, "meta", {})
    return found


def _names(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Sequence[str], Sequence[str] | None]:
    """Names of the inputs, and of the outputs where they have any: those of its file where it was imported."""
    weights = network.state_dict().keys()
    called = argument_names(network, len(inputs))
    given = _known(network).get("input_names") or distinct_names(called, weights)
    returned = _known(network).get("output_names")
    return given, returned or output_names(network, inputs, {*given, *called, *weights})


def _check_batch(program: Any) -> None:
    """Raise ExportError where the graph holds for small batches only: ``forward`` does something else for others."""
    for symbol, limits in program.exported_program.range_constraints.items():
        # s0, s77: sizes of inputs; u0: sizes that only running shows. The upper end is a number or infinity.
        if str(symbol).startswith("s") and limits.upper < _LARGEST_BATCH:
            raise ExportError(
                f"its forward branches on the batch size (the graph holds for {limits.lower} to {limits.upper} only)"
            )


def _without_prefix(graph: Any) -> None:
    """The weights of a ``FlatModule`` under the names that they have in the network inside."""
    for name in [name for name in graph.initializers if name.startswith(PREFIX)]:
        value = graph.initializers.pop(name)
        value.name = name.removeprefix(PREFIX)
        graph.initializers[value.name] = value


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


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Give a weight of ``graph`` another name wherever it is read."""
    if old == new:
        return
    for weight in graph.initializer:
        if weight.name == old:
            weight.name = new
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new

"""Torch to ONNX: traced once per pruned graph, then only the weights change.

`trace_graph` runs the exporter (seconds) and keeps the raw graph, whose initializers still bear the names of the
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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from compress.networks.calling import argument_names
from compress.networks.plain_copies import OTHER_FLOATS, other_floats, plain_copy, single_precision
from compress.networks.prepared_modules import ExampleInputs, ready
from compress.networks.running import RANDOM, is_random
from compress.onnx_files.contents import graphs_in
from compress.onnx_files.flat_modules import PREFIX, FlatModule, distinct_names, is_flat, output_names
from compress.onnx_files.isolation import kept_worker
from compress.onnx_files.limits import VersionLimits, fit_to_limits
from compress.onnx_files.parity import check_parity, with_batch
from compress.onnx_files.retargeting import retarget
from compress.values.candidates import Parity
from compress.values.error_lines import one_line, root_cause
from targets.errors import ExportError, RequestError

VERSION = 3
_OLDEST_OPSET = 18
"""The exporter writes nothing older; what must be is converted afterwards."""
_LARGEST_BATCH = 1024
"""A graph must hold for batches of this size at least."""


def export(module: nn.Module, example_inputs: ExampleInputs, path: str | Path) -> Parity:
    """Write ``module`` as ONNX with a dynamic batch, checked against it at two batch sizes.

    ``example_inputs``: a tensor, a tuple of tensors, or a dict of tensors by the names of forward's arguments, batch
    first; the file's inputs bear the names of those arguments, its outputs the keys and fields that they are returned
    under. Modules in half or double precision are written, and compared, in float32. The module is left as it was.

    Raises TaskError if ``example_inputs`` are no tensors or ``module`` is of a kind that has no layers (TorchScript, a
    ``torch.export`` program, quantized or sharded layers), RequestError if the folder of ``path`` does not exist,
    ExportError if the exporter fails or the network is random in eval mode, ParityError if the file computes something
    else, MeasurementError if ONNX Runtime crashes on it or does not answer.
    """
    path = Path(path)
    check_folder(path)
    module, inputs = ready(module, example_inputs)
    if other_floats(module) or any(x.dtype in OTHER_FLOATS for x in inputs):
        module, inputs = plain_copy(module).float(), tuple(map(single_precision, inputs))
    model = bind(trace_graph(module, inputs), module.state_dict())
    with kept_worker(), tempfile.TemporaryDirectory(prefix=".exporting-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        onnx.save(model, temporary)
        parity = check_parity(temporary, module, inputs)
        os.replace(temporary, path)
    return parity


def check_folder(path: Path) -> None:
    """Raise RequestError where the folder that ``path`` is to be written in does not exist."""
    if not path.parent.is_dir():
        raise RequestError(f"{str(path)!r} cannot be written: the folder {str(path.parent)!r} does not exist")


def trace_graph(module: nn.Module, inputs: tuple[Tensor, ...], limits: VersionLimits | None = None) -> onnx.ModelProto:
    """The raw exported graph of ``module`` in eval mode, batch dynamic, weights under their own names.

    ``inputs``: samples, batch first; ``limits``: what the target's runtime knows. The module is left as it was. Raises
    ExportError where the exporter fails, or where the graph would hold for some batch sizes only.
    """
    name = type(module).__name__
    with _quiet():
        try:
            network, given = plain_copy(module).to("cpu").eval(), with_batch(inputs, 2)
            random = is_random(network, given)
            program: Any = None if random else _program(network, given, limits or VersionLimits())
        except Exception as error:
            raise ExportError(f"{name} cannot be exported to ONNX: {one_line(root_cause(error), kind=True)}") from error
    if random:
        raise ExportError(f"{name} cannot be exported to ONNX: {RANDOM}")
    _check_batch(program, name)
    _without_prefix(program.model.graph)
    _tell_apart(program.model.graph)
    return clean(program.model_proto)


def _program(network: nn.Module, inputs: tuple[Tensor, ...], limits: VersionLimits) -> Any:
    """What torch's exporter makes of ``network``, a plain one in eval mode; ``inputs``: two samples."""
    # A network that was imported keeps the names of its file.
    known: Mapping[str, Any] = getattr(network, "meta", {})
    given, returned = known.get("input_names"), known.get("output_names")
    weights = network.state_dict().keys()
    called = argument_names(network, len(inputs))
    batch = {0: torch.export.Dim("batch")}
    shapes: Any = tuple(batch for _ in inputs)
    flat = is_flat(network, inputs)
    if not flat:
        given, shapes = given or distinct_names(called, weights), (shapes,)
    if returned is None:
        returned = output_names(network, inputs, {*(given or called), *weights})
    return torch.onnx.export(
        network if flat else FlatModule(network),
        inputs,
        dynamo=True,
        dynamic_shapes=shapes,
        external_data=False,
        optimize=False,
        verbose=False,
        opset_version=max(_OLDEST_OPSET, limits.opset),
        input_names=given,
        output_names=returned,
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


def _check_batch(program: Any, name: str) -> None:
    """Raise ExportError where the graph holds for small batches only: ``forward`` does something else for others."""
    for symbol, limits in program.exported_program.range_constraints.items():
        # s0, s77: sizes of inputs; u0: sizes that only running shows. The upper end is a number or infinity.
        if str(symbol).startswith("s") and limits.upper < _LARGEST_BATCH:
            raise ExportError(
                f"{name} cannot be exported to ONNX: its forward branches on the batch size (the graph holds for "
                f"{limits.lower} to {limits.upper} only); let it do the same for every batch"
            )


def bind(
    template: onnx.ModelProto, state: Mapping[str, Tensor], limits: VersionLimits | None = None
) -> onnx.ModelProto:
    """A copy of ``template`` with the weights of ``state``: folded, simplified, within limits, stripped of local paths.

    ``template``: what ``trace_graph`` gave; ``state``: tensors by the names of its weights, as a state dict. A weight
    without a tensor of its name stays as it is. Raises ExportError for a tensor of another shape than the weight of its
    name (the template is then another network's: see ``retargeted``), TargetError where the limits cannot be kept.
    """
    from onnxscript import optimizer

    model = copy.deepcopy(template)
    for initializer in model.graph.initializer:
        tensor = state.get(initializer.name)
        if tensor is not None:
            if tuple(tensor.shape) != tuple(initializer.dims):
                raise ExportError(
                    f"weight {initializer.name!r} is {tuple(tensor.shape)}, the graph was traced for "
                    f"{tuple(initializer.dims)}: export the network anew"
                )
            array = tensor.detach().cpu().contiguous().numpy()
            initializer.CopyFrom(onnx.numpy_helper.from_array(array, initializer.name))
    with _quiet():
        model = optimizer.optimize(model)
    return clean(fit_to_limits(model, limits or VersionLimits()))


def retargeted(
    template: onnx.ModelProto, module: nn.Module, inputs: tuple[Tensor, ...], limits: VersionLimits | None = None
) -> onnx.ModelProto | None:
    """The raw graph of ``module``, made of that of a network which differs from it in widths alone; tens of times
    faster than ``trace_graph``.

    It is bound and checked for parity on ``inputs``. None where that cannot be done, or comes out wrong: trace anew.
    """
    with tempfile.TemporaryDirectory(prefix="retargeting-") as folder:
        path = Path(folder) / "model.onnx"
        for first in (False, True):
            try:
                model = retarget(template, module, first=first)
                onnx.save(bind(model, module.state_dict(), limits), path)
                check_parity(path, module, inputs)
            except Exception:  # whatever a wrong number makes of the graph: it is then traced anew
                continue
            return model
    return None


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` itself, after metadata and comments, which name local files, are removed everywhere in it."""
    del model.metadata_props[:]
    model.doc_string = ""
    # onnx_ir's ClearMetadataAndDocStringPass leaves what the model itself, its values and its weights say.
    for graph in (inner for outer in (model.graph, *model.functions) for inner in graphs_in(outer)):
        _clean_graph(graph)
    return model


def _clean_graph(graph: Any) -> None:
    """One graph or function, without those inside its nodes."""
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

"""Torch to ONNX: traced once per pruned graph, then only the weights change.

`trace_graph` runs the exporter (seconds) and keeps the raw graph, whose initializers still bear the names of the
module's parameters. `bind` puts trained weights into it, folds and simplifies (tens of milliseconds), and strips
what the exporter writes about the local machine. `check_parity` compares the file with the network; it is what
makes the swap safe: on a mismatch the caller traces anew.

A graph takes any number of samples, if that can be had. Where the exporter gives none that does and computes what the
network does, others are tried, in this order: one put together from the graphs for two and for three samples, the
graph of the other exporter, and last a graph for one sample, or for as many as the network insists on. Parity decides.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor, nn

from compress.networks.plain_copies import OTHER_FLOATS, other_floats, plain_copy, single_precision
from compress.networks.prepared_modules import ExampleInputs, ready
from compress.networks.running import RANDOM, forward, is_random
from compress.onnx_files.contents import graphs_in
from compress.onnx_files.exporters import export_program, export_script, fixed_batch, quiet
from compress.onnx_files.free_batches import freed
from compress.onnx_files.isolation import kept_worker
from compress.onnx_files.limits import VersionLimits, fit_to_limits
from compress.onnx_files.parity import check_parity, sample_count, with_batch
from compress.onnx_files.retargeting import retarget
from compress.values.candidates import Parity
from compress.values.error_lines import one_line, root_cause
from compress.values.printable import printable
from targets.errors import ExportError, RequestError

VERSION = 4
_FEW = 2
"""Samples that a graph is traced with: one would look like an axis to broadcast along."""


def export(module: nn.Module, example_inputs: ExampleInputs, path: str | Path) -> Parity:
    """Write ``module`` as ONNX, checked against it at two batch sizes; the batch is free, if that can be had.

    Where its code makes that impossible, the file takes one sample at a time, or as many as the module insists on; a
    line on stderr says so, and why.

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
    """The raw exported graph of ``module`` in eval mode, weights under their own names, checked for parity.

    ``inputs``: samples, batch first; ``limits``: what the target's runtime knows. The module is left as it was. Its
    batch is free, if that can be had; where it is fixed (``fixed_batch`` says so), a line on stderr says why. Raises
    ExportError where no exporter gives a graph, or ParityError where none gives one that computes what the module does.
    """
    name = type(module).__name__
    with quiet():
        try:
            # With gradients torch chooses other kernels of attention where it writes the graph than where it takes it
            # apart, and what is a view of the one's results is none of the other's.
            network = plain_copy(module).to("cpu").eval().requires_grad_(False)
            given = _few(network, inputs)
            random = is_random(network, given)
        except Exception as error:
            raise _failed(name, error) from error
    if random:
        raise ExportError(f"{name} cannot be exported to ONNX: {RANDOM}")
    first: ExportError | None = None
    if sample_count(given) != _FEW:
        first = ExportError(f"it runs on {sample_count(given)} samples, and on no other number of them")
    with kept_worker():
        for attempt in _attempts(network, inputs, given, (limits or VersionLimits()).opset):
            try:
                model = _checked(attempt, network, inputs, name)
            except ExportError as error:
                first = first or error
                continue
            if first is not None and (size := fixed_batch(model)) is not None:
                why = str(first).removeprefix(f"{name} cannot be exported to ONNX: ")
                samples = "one sample" if size == 1 else f"{size} samples"
                print(f"the file of {name} takes {samples} at a time: {printable(why)}", file=sys.stderr)
            return model
    raise first or ExportError(f"{name} cannot be exported to ONNX: the exporter returned nothing")


def _few(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Two of ``inputs``; all of them where ``network`` runs on no other number. Raises what it raises on those."""
    few = with_batch(inputs, _FEW)
    try:
        forward(network, few)
    except Exception:
        few = with_batch(inputs, sample_count(inputs))
        forward(network, few)
    return few


Attempt = Callable[[], onnx.ModelProto]


def _attempts(
    network: nn.Module, inputs: tuple[Tensor, ...], given: tuple[Tensor, ...], opset: int
) -> Iterator[Attempt]:
    """Ways to a raw graph, the best first; ``given``: the samples that it is traced with."""
    size = sample_count(given)
    if size == _FEW:
        made: list[onnx.ModelProto] = []

        def traced() -> onnx.ModelProto:
            made.append(export_program(network, given, opset, free=True))
            if fixed_batch(made[0]) is not None:
                raise ExportError("its forward makes a number of the batch size, which then holds for that size only")
            return made[0]

        yield traced
        if made and fixed_batch(made[0]) is not None:
            more = with_batch(inputs, size + 1)
            yield lambda: freed(
                clean(made[0]), clean(export_program(network, more, opset, free=False)), (size, size + 1)
            )
        yield lambda: export_script(network, given, opset, free=True)
    fixed = _fixed(network, inputs, given)
    if fixed is not None:
        yield lambda: export_program(network, fixed, opset, free=False)
        yield lambda: export_script(network, fixed, opset, free=False)


def _fixed(network: nn.Module, inputs: tuple[Tensor, ...], given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """One sample, or where ``network`` does not run on one, those that it runs on.

    None where it gives something of another form for one sample than it does for each of several: that is a mistake in
    it, which shows wherever one sample is run.
    """
    alone = with_batch(inputs, 1)
    try:
        one = forward(network, alone)
    except Exception:
        return given
    several, count = forward(network, given), sample_count(given)
    same = [x.ndim for x in one] == [x.ndim for x in several] and all(
        len(x) == 1 for x, y in zip(one, several, strict=True) if y.ndim and len(y) == count
    )
    return alone if same else None


def _checked(attempt: Attempt, network: nn.Module, inputs: tuple[Tensor, ...], name: str) -> onnx.ModelProto:
    """The raw graph that ``attempt`` gives, after its check for parity; raises ExportError, ParityError."""
    try:
        with quiet():
            model = clean(attempt())
    except Exception as error:
        raise _failed(name, error) from error
    with tempfile.TemporaryDirectory(prefix="exporting-") as folder:
        path = Path(folder) / "model.onnx"
        try:
            onnx.save(bind(model, network.state_dict()), path)
        except Exception as error:  # of the optimizer, which takes most graphs, but not any
            raise _failed(name, error) from error
        check_parity(path, network, inputs)
    return model


def _failed(name: str, error: Exception) -> ExportError:
    """What is raised where an exporter fails with ``error``."""
    cause = root_cause(error)
    why = str(cause) if isinstance(cause, ExportError) else one_line(cause, kind=True)
    return ExportError(f"{name} cannot be exported to ONNX: {why}")


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
    with quiet():
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

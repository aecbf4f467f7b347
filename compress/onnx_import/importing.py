"""An ONNX graph as a torch network that can be pruned, trained and exported again.

The network is a ``torch.fx.GraphModule``: layers with weights are real submodules (``nn.Conv2d``, ``nn.Linear``,
``nn.LSTM``, ...), the rest are plain functions. The graph is built while it is run on examples of two batch sizes:
what does not depend on the samples' values (constants, everything computed from shapes) is evaluated at both, and
becomes a constant or a multiple of the batch size; shapes that were written for one width are kept relative
(``shapes.py``), so that a network whose channels are cut still runs.

``import_network`` raises NotImportable with the operator and why; ``import_file`` checks the result against the file in
ONNX Runtime.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx, nn

from compress.onnx_files import parity
from compress.onnx_files.contents import inputs_of, opset_of
from compress.onnx_files.isolation import isolated
from compress.onnx_import import patterns
from compress.onnx_import.importer import PROBES, Importer, NotImportable, Operator, Value
from compress.onnx_import.operators import Builders, check_covered, find
from compress.values.error_lines import one_line
from targets.errors import MeasurementError, ParityError

_FOLDED_BYTES = 256 * 10**6
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")


class ImportedNetwork(fx.GraphModule):
    """A graph module that raises what goes wrong in it, and does not print it first."""

    def recompile(self) -> Any:
        """Write the code of the graph anew; torch then wraps the call so that errors are printed, which is undone."""
        code = super().recompile()
        type(self).__call__ = nn.Module.__call__  # type: ignore[method-assign]
        return code


def import_network(
    model: onnx.ModelProto, example: Mapping[str, np.ndarray], own: Builders | None = None
) -> ImportedNetwork:
    """The graph as a network in eval mode; ``example``: arrays by input name, samples first.

    ``own``: what builds operators that are not ONNX's. ``meta["input_names"]`` and ``meta["output_names"]`` of the
    network hold the file's names. Raises NotImportable, with the operator and why, for what is not covered.
    """
    check_covered(model, own)
    model = patterns.assembled(model)
    opset = opset_of(model)
    graph = model.graph
    uses = Counter(name for node in graph.node for name in node.input) + Counter(o.name for o in graph.output)
    importer = Importer(opset, uses)
    values = {t.name: _constant(t.name, onnx.numpy_helper.to_array(t)) for t in graph.initializer}
    for given in graph.input:
        if given.name not in values:
            values[given.name] = _input(importer, given, example)
    for node in graph.node:
        for value in _imported(importer, node, values, own):
            values[value.name] = value
    outputs = tuple(importer.tensor(values[o.name]) for o in graph.output)
    importer.graph.output(outputs[0] if len(outputs) == 1 else outputs)
    module = ImportedNetwork(importer.root, importer.graph, "ImportedNetwork").eval()
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    _tie(module)
    module.meta["input_names"] = [i.name for i in graph.input if i.name in example]
    module.meta["output_names"] = [o.name for o in graph.output]
    if not any(True for _ in module.parameters()):
        raise NotImportable("it has no weights")
    return module


def _tie(module: nn.Module) -> None:
    """Weights that are used in several places are one again: equal to the last digit, and not all of one value."""
    seen: dict[tuple[Any, ...], nn.Parameter] = {}
    for layer in module.modules():
        for name, parameter in list(layer.named_parameters(recurse=False)):
            if bool((parameter == parameter.flatten()[0]).all()):
                continue
            key = (parameter.shape, parameter.requires_grad, parameter.detach().numpy().tobytes())
            setattr(layer, name, seen.setdefault(key, parameter))


def import_file(path: Path, inputs: tuple[Tensor, ...]) -> ImportedNetwork:
    """The file as a network that computes the same, as ONNX Runtime says at two batch sizes.

    ``inputs``: samples in the order of the file's inputs. Raises NotImportable, saying why.
    """
    model = onnx.load(path)
    names = [value.name for value in inputs_of(model)]
    try:
        example = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        module = import_network(model, example)
        parity.check_parity(path, module, inputs)
    except NotImportable:
        raise
    except ParityError as error:
        raise NotImportable(f"imported into torch it is another network ({error})") from None
    except Exception as error:
        raise NotImportable(f"importing it into torch failed ({one_line(error, kind=True)})") from None
    return module


def rehearse(path: Path, inputs: tuple[Tensor, ...]) -> None:
    """``import_file`` in a worker process, with its limits, and nothing kept of it.

    A graph that was made to harm asks for more memory, or more time, than it runs with in ONNX Runtime. Raises
    NotImportable, saying why.
    """
    try:
        reason = _rehearsed(path, tuple(x.detach().cpu().numpy() for x in inputs))
    except MeasurementError as error:
        raise NotImportable(f"imported into torch it takes too much ({error})") from None
    if reason:
        raise NotImportable(reason)


@isolated("importing into torch", long=True)
def _rehearsed(path: Path, inputs: tuple[np.ndarray, ...]) -> str:
    """Why the file cannot be imported; empty where it can be."""
    try:
        import_file(path, tuple(torch.from_numpy(x) for x in inputs))
    except NotImportable as error:
        return str(error)
    return ""


def _constant(name: str, array: np.ndarray) -> Value:
    """A value that is ``array`` for every batch."""
    return Value(name, (array, array))


def _input(importer: Importer, given: onnx.ValueInfoProto, example: Mapping[str, np.ndarray]) -> Value:
    """The value of an input: its example, cut or repeated to the sizes of the probes."""
    array = torch.from_numpy(np.ascontiguousarray(example[given.name]))
    node = importer.graph.placeholder(importer.unique_name(given.name))
    importer.results[node] = tuple(torch.cat([array] * (-(-n // len(array))))[:n] for n in PROBES)
    importer.batch = importer.batch or node
    return Value(given.name, importer.results[node], node)


def _imported(
    importer: Importer, node: onnx.NodeProto, values: Mapping[str, Value], own: Builders | None = None
) -> list[Value]:
    """The outputs of one ONNX node: evaluated where its inputs are known, else built. Raises NotImportable."""
    inputs = tuple(values[name] if name else None for name in node.input)
    if node.op_type in ("Shape", "Size") or (
        node.op_type not in _RANDOM and all(value is None or value.known for value in inputs)
    ):
        return _folded(node, inputs, importer.opset)
    attributes = {a.name: _attribute(a) for a in node.attribute}
    operator = Operator(node.op_type, node.name, inputs, tuple(node.output), attributes, importer.opset)
    build = find(node.domain, node.op_type, own)
    if build is None:
        raise operator.fail("not covered")
    try:
        made = build(importer, operator)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise operator.fail(one_line(error, kind=True)) from None
    nodes: Sequence[fx.Node | None] = made if isinstance(made, tuple) else (made,)
    return [
        Value(name, importer.results[n], n)
        for name, n in zip(node.output, nodes, strict=False)
        if name and n is not None
    ]


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [x.decode() if isinstance(x, bytes) else x for x in value]
    return value


def _folded(node: onnx.NodeProto, inputs: tuple[Value | None, ...], opset: int) -> list[Value]:
    """What does not depend on the samples, at both probes."""
    from onnx.reference import ReferenceEvaluator

    again = not all(value is None or value.constant for value in inputs)
    found: list[list[np.ndarray]] = []
    try:
        evaluator = ReferenceEvaluator(_alone(node, opset))
        for i in range(len(PROBES) if again else 1):
            given = zip(node.input, inputs, strict=True)
            feeds = {name: _as_array(value.probes[i]) for name, value in given if value is not None}
            found.append([np.asarray(x) for x in evaluator.run(None, feeds)])
    except Exception as error:
        raise NotImportable(
            f"{node.op_type} ({node.name}) of constants cannot be evaluated: {one_line(error)}"
        ) from None
    if sum(x.nbytes for x in found[0]) > _FOLDED_BYTES:
        raise NotImportable(f"{node.op_type} ({node.name}) makes a constant of more than {_FOLDED_BYTES} bytes")
    names = [name for name in node.output if name]
    return [Value(name, (found[0][k], found[-1][k])) for k, name in enumerate(names)]


def _as_array(probe: Any) -> np.ndarray:
    return probe.detach().numpy() if isinstance(probe, Tensor) else np.asarray(probe)


def _alone(node: onnx.NodeProto, opset: int) -> onnx.ModelProto:
    """A model of this one node."""
    made = onnx.helper.make_graph(
        [node],
        "one",
        [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(node.input) if name],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    imports = [onnx.helper.make_opsetid("", opset)]
    if node.domain not in ("", "ai.onnx"):
        imports.append(onnx.helper.make_opsetid(node.domain, 1))
    return onnx.helper.make_model(made, opset_imports=imports)

"""An ONNX graph as a torch network that can be pruned, trained and exported again.

The network is a ``torch.fx.GraphModule``: layers with weights are real submodules (``nn.Conv2d``, ``nn.Linear``,
``nn.LSTM``, ...), the rest are plain functions. The graph is built while it is run on examples of two batch sizes:
what does not depend on the samples' values (constants, everything computed from shapes) is evaluated at both, and
becomes a constant or a multiple of the batch size; shapes that were written for one width are kept relative
(``onnx_shapes.py``), so that a network whose channels are cut still runs.

``import_network`` raises NotImportable with the operator and why; ``import_file`` checks the result against the file in
ONNX Runtime.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx, nn

from compress import exporting
from compress.onnx_import import onnx_patterns, onnx_shapes
from targets.errors import ParityError

PROBES = (2, 3)
"""Batch sizes that the graph is run at while it is built."""
_FOLDED_BYTES = 256 * 10**6
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")


class NotImportable(Exception):
    """The graph holds something that is not covered; caught where a task is prepared, never seen by users."""


class ImportedNetwork(fx.GraphModule):
    """A graph module that raises what goes wrong in it, and does not print it first."""

    def recompile(self) -> Any:
        """Torch wraps the call anew each time."""
        code = super().recompile()
        type(self).__call__ = nn.Module.__call__  # type: ignore[method-assign]
        return code


@dataclass
class Value:
    """A value of the ONNX graph: an ``fx`` node, or (``node`` None) known without looking at the samples."""

    name: str
    probes: tuple[Any, ...]
    """At each of PROBES: a tensor of the network, or the known array."""
    node: fx.Node | None = None

    @property
    def known(self) -> bool:
        """Whether it depends on nothing but shapes and constants."""
        return self.node is None

    @property
    def constant(self) -> bool:
        """Known, and the same for every batch."""
        first, second = self.probes
        return self.known and (first is second or (first.shape == second.shape and bool(np.array_equal(first, second))))

    @property
    def shape(self) -> tuple[int, ...]:
        """At the first probe."""
        return tuple(self.probes[0].shape)

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)


@dataclass(frozen=True)
class Operator:
    """An ONNX node with its inputs looked up."""

    kind: str
    name: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int

    def fail(self, why: str) -> NotImportable:
        """The error to raise: operator, its name and the reason."""
        return NotImportable(f"{self.kind}{f' ({self.name})' if self.name else ''}: {why}")

    def has(self, position: int) -> bool:
        """Whether the optional input is given."""
        return len(self.inputs) > position and self.inputs[position] is not None

    def value(self, position: int) -> Value:
        """Input ``position``; raises NotImportable where it is absent."""
        found = self.inputs[position] if len(self.inputs) > position else None
        if found is None:
            raise self.fail(f"input {position} is absent")
        return found

    def array(self, position: int) -> np.ndarray:
        """The constant that input ``position`` is; raises NotImportable for anything else."""
        value = self.value(position)
        if not value.constant:
            raise self.fail(f"input {position} ({value.name}) is computed, not constant")
        return np.asarray(value.probes[0])

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def ints(self, name: str, position: int) -> list[int] | None:
        """Whole numbers from an attribute (older opsets) or a constant input; None where neither is given."""
        if name in self.attributes:
            given = self.attributes[name]
            return [int(x) for x in (given if isinstance(given, (list, tuple)) else [given])]
        return [int(x) for x in self.array(position).reshape(-1)] if self.has(position) else None


class Importer:
    """Builds the network; what the functions in ``onnx_layers.py`` and ``onnx_operators.py`` work with."""

    def __init__(self, opset: int, uses: Mapping[str, int]) -> None:
        self.opset = opset
        self.uses = uses
        """How many nodes read a value (the graph's outputs count)."""
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.results: dict[fx.Node, tuple[Any, ...]] = {}
        self.made: dict[str, fx.Node] = {}
        """Constants that are tensors of the network; to others they are still known."""
        self.names: set[str] = set()
        self.batch: fx.Node | None = None
        """An input whose first axis is the batch."""

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> fx.Node:
        """A plain function (one with a name) of nodes and numbers, run on the probes."""
        return self.ran(self.graph.call_function(function, arguments, options))

    def layer(self, layer: nn.Module, name: str, *arguments: Any) -> fx.Node:
        """A submodule of that name (made unique), run on the probes."""
        name = self._unique(name)
        self.root.add_module(name, layer.eval())
        return self.ran(self.graph.call_module(name, arguments))

    def module(self, node: fx.Node | None) -> nn.Module | None:
        """The submodule that ``node`` calls."""
        if node is None or node.op != "call_module":
            return None
        return self.root.get_submodule(str(node.target))

    def tensor(self, value: Value) -> fx.Node:
        """``value`` as a tensor of the network: constants become parameters (float) or buffers."""
        if value.node is not None:
            return value.node
        if value.name not in self.made:
            self.made[value.name] = self._stored(value) if value.constant else self._of_batch(value)
        return self.made[value.name]

    def _stored(self, value: Value) -> fx.Node:
        array = np.array(value.probes[0])
        name = self._unique(value.name)
        tensor = torch.from_numpy(array)
        if tensor.is_floating_point() and tensor.numel() > 1:
            # One number per channel is a weight; tables of more axes may be masks, which are not to be trained.
            vector = sum(n > 1 for n in tensor.shape) <= 1
            self.root.register_parameter(name, nn.Parameter(tensor, requires_grad=vector))
        else:
            self.root.register_buffer(name, tensor)
        return self.ran(self.graph.get_attr(name))

    def operand(self, value: Value) -> Any:
        """As ``tensor``, but a single number stays one."""
        if value.constant and value.probes[0].size == 1 and value.rank <= 1:
            return value.probes[0].reshape(()).item()
        return self.tensor(value)

    def size(self, numbers: tuple[int, ...]) -> Any:
        """A whole number known at both probes: itself, or ``slope * batch + offset``."""
        first, second = (int(n) for n in numbers)
        if first == second:
            return first
        slope = (second - first) // (PROBES[1] - PROBES[0])
        return self.call(onnx_shapes.of_batch, self.batch, slope, first - slope * PROBES[0])

    def sizes(self, value: Value) -> list[Any]:
        """A known vector of whole numbers, each as ``size`` gives it."""
        rows = [np.asarray(x).reshape(-1) for x in value.probes]
        if not value.known or len(rows[0]) != len(rows[1]):
            raise NotImportable(f"{value.name} is computed from the samples' values")
        return [self.size(pair) for pair in zip(*rows, strict=True)]

    def _of_batch(self, value: Value) -> fx.Node:
        """A known array that grows with the batch: one number repeated, or one sample's row repeated."""
        first, second = (np.asarray(x) for x in value.probes)
        if first.size and first.ndim == second.ndim and all((x == first.flat[0]).all() for x in (first, second)):
            sizes = tuple(self.size(pair) for pair in zip(first.shape, second.shape, strict=True))
            return self.call(torch.full, sizes, first.flat[0].item())
        row = first[:1] if first.ndim else first
        if first.ndim and first.shape[1:] == second.shape[1:] and all((x == row).all() for x in (first, second)):
            count = self.size((len(first), len(second)))
            row_node = self.tensor(Value(f"{value.name}_row", (row, row)))
            return self.call(onnx_shapes.expand_by, row_node, (count, *[-1] * (first.ndim - 1)))
        raise NotImportable(f"{value.name} depends on the batch size in a way that is not covered")

    def ran(self, node: fx.Node) -> fx.Node:
        """``node``, run on the probes (again, after a change of its layer)."""
        with torch.no_grad():
            self.results[node] = tuple(self._result(node, i) for i in range(len(PROBES)))
        return node

    def _result(self, node: fx.Node, probe: int) -> Any:
        arguments, options = fx.map_arg((node.args, node.kwargs), lambda n: self.results[n][probe])
        if node.op == "get_attr":
            return getattr(self.root, str(node.target))
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*arguments)
        function: Any = node.target
        return function(*arguments, **options)

    def _unique(self, name: str) -> str:
        """As a name that torch takes: letters, digits and ``_``."""
        base = re.sub(r"\W+", "_", name.rpartition(":")[0] if re.search(r":\d+$", name) else name).strip("_") or "value"
        found, number = base, 1
        while found in self.names or hasattr(self.root, found):
            number += 1
            found = f"{base}_{number}"
        self.names.add(found)
        return found


def import_network(model: onnx.ModelProto, example: Mapping[str, np.ndarray]) -> ImportedNetwork:
    """The graph as a network in eval mode; ``example``: arrays by input name, samples first.

    ``meta["input_names"]`` and ``meta["output_names"]`` hold the file's. Raises NotImportable.
    """
    from compress.onnx_import.onnx_operators import check_covered

    check_covered(model)
    model = onnx_patterns.assembled(model)
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 1)
    graph = model.graph
    uses = Counter(name for node in graph.node for name in node.input) + Counter(o.name for o in graph.output)
    importer = Importer(opset, uses)
    values = {t.name: _constant(t.name, onnx.numpy_helper.to_array(t)) for t in graph.initializer}
    for given in graph.input:
        if given.name not in values:
            values[given.name] = _input(importer, given, example)
    for node in graph.node:
        for value in _imported(importer, node, values):
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
    constants = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in constants]
    try:
        example = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        module = import_network(model, example)
        exporting.check_parity(path, module, inputs)
    except NotImportable:
        raise
    except ParityError as error:
        raise NotImportable(f"imported into torch it is another network ({error})") from None
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise NotImportable(f"importing it into torch failed ({type(error).__name__}: {reason})") from None
    return module


def _constant(name: str, array: np.ndarray) -> Value:
    return Value(name, (array, array))


def _input(importer: Importer, given: onnx.ValueInfoProto, example: Mapping[str, np.ndarray]) -> Value:
    array = torch.from_numpy(np.ascontiguousarray(example[given.name]))
    node = importer.graph.placeholder(importer._unique(given.name))
    importer.results[node] = tuple(torch.cat([array] * (-(-n // len(array))))[:n] for n in PROBES)
    importer.batch = importer.batch or node
    return Value(given.name, importer.results[node], node)


def _imported(importer: Importer, node: onnx.NodeProto, values: Mapping[str, Value]) -> list[Value]:
    """The outputs of one ONNX node."""
    from compress.onnx_import.onnx_operators import find

    inputs = tuple(values[name] if name else None for name in node.input)
    if node.op_type in ("Shape", "Size") or (
        node.op_type not in _RANDOM and all(value is None or value.known for value in inputs)
    ):
        return _folded(node, inputs, importer.opset)
    attributes = {a.name: _attribute(a) for a in node.attribute}
    operator = Operator(node.op_type, node.name, inputs, tuple(node.output), attributes, importer.opset)
    build = find(node.domain, node.op_type)
    if build is None:
        raise operator.fail("not covered")
    try:
        made = build(importer, operator)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise operator.fail(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:150]}") from None
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
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise NotImportable(f"{node.op_type} ({node.name}) of constants cannot be evaluated: {reason}") from None
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

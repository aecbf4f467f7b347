"""What the import of an ONNX graph is built with: its values, its operators, and the network as it grows.

The functions that build one operator each (``layers.py``, ``operators.py``, ``pooling.py``) are given an ``Importer``
and an ``Operator`` and return the node, or nodes, that compute it in torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from compress.onnx_import import shapes

PROBES = (2, 3)
"""Batch sizes that the graph is run at while it is built."""


class NotImportable(Exception):
    """The graph holds something that is not covered; caught where a task is prepared, never seen by users."""


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
        """Whether it is known, and the same for every batch size."""
        first, second = self.probes
        return self.known and (first is second or (first.shape == second.shape and bool(np.array_equal(first, second))))

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape at the first probe, a batch of PROBES[0] samples."""
        return tuple(self.probes[0].shape)

    @property
    def rank(self) -> int:
        """The number of its axes, which is the same at both probes."""
        return len(self.shape)


@dataclass(frozen=True)
class Operator:
    """An ONNX node with its inputs looked up: what one of the building functions works from."""

    kind: str
    name: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int

    def fail(self, why: str) -> NotImportable:
        """The error to raise where it is not covered: its kind, its name and ``why``."""
        return NotImportable(f"{self.kind}{f' ({self.name})' if self.name else ''}: {why}")

    def has(self, position: int) -> bool:
        """Whether input ``position``, which is optional, is given."""
        return len(self.inputs) > position and self.inputs[position] is not None

    def value(self, position: int) -> Value:
        """The value that is input ``position``; raises NotImportable where it is absent."""
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
        """The attribute of that name, or ``default`` where the node has none."""
        return self.attributes.get(name, default)

    def ints(self, name: str, position: int) -> list[int] | None:
        """Whole numbers from an attribute (older opsets) or a constant input; None where neither is given."""
        if name in self.attributes:
            given = self.attributes[name]
            return [int(x) for x in (given if isinstance(given, (list, tuple)) else [given])]
        return [int(x) for x in self.array(position).reshape(-1)] if self.has(position) else None


class Importer:
    """A network while it is built: each node that is added is run at once on the probes, so that shapes are known."""

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
        """A new node that calls a plain function (one with a name) with nodes and numbers, run on the probes."""
        return self.ran(self.graph.call_function(function, arguments, options))

    def layer(self, layer: nn.Module, name: str, *arguments: Any) -> fx.Node:
        """A new node that calls ``layer``, a submodule of that name (made unique), run on the probes."""
        name = self.unique_name(name)
        self.root.add_module(name, layer.eval())
        return self.ran(self.graph.call_module(name, arguments))

    def module(self, node: fx.Node | None) -> nn.Module | None:
        """The submodule that ``node`` calls; None where it calls none."""
        if node is None or node.op != "call_module":
            return None
        return self.root.get_submodule(str(node.target))

    def tensor(self, value: Value) -> fx.Node:
        """The node that gives ``value`` as a tensor; constants become parameters (float) or buffers.

        Raises NotImportable for a known value that changes with the batch size in a way that is not covered.
        """
        if value.node is not None:
            return value.node
        if value.name not in self.made:
            self.made[value.name] = self._stored(value) if value.constant else self._of_batch(value)
        return self.made[value.name]

    def _stored(self, value: Value) -> fx.Node:
        array = np.array(value.probes[0])
        name = self.unique_name(value.name)
        tensor = torch.from_numpy(array)
        if tensor.is_floating_point() and tensor.numel() > 1:
            # One number per channel is a weight; tables of more axes may be masks, which are not to be trained.
            vector = sum(n > 1 for n in tensor.shape) <= 1
            self.root.register_parameter(name, nn.Parameter(tensor, requires_grad=vector))
        else:
            self.root.register_buffer(name, tensor)
        return self.ran(self.graph.get_attr(name))

    def operand(self, value: Value) -> Any:
        """As ``tensor``, but a constant of one value is given as that number."""
        if value.constant and value.probes[0].size == 1 and value.rank <= 1:
            return value.probes[0].reshape(()).item()
        return self.tensor(value)

    def size(self, numbers: tuple[int, ...]) -> Any:
        """A whole number known at both probes: itself, or ``slope * batch + offset``."""
        first, second = (int(n) for n in numbers)
        if first == second:
            return first
        slope = (second - first) // (PROBES[1] - PROBES[0])
        return self.call(shapes.of_batch, self.batch, slope, first - slope * PROBES[0])

    def sizes(self, value: Value) -> list[Any]:
        """A known vector of whole numbers, each as ``size`` gives it; raises NotImportable for one that is computed."""
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
            return self.call(shapes.expand_by, row_node, (count, *[-1] * (first.ndim - 1)))
        raise NotImportable(f"{value.name} depends on the batch size in a way that is not covered")

    def ran(self, node: fx.Node) -> fx.Node:
        """``node`` itself, run on the probes; to be called again after a change of its layer."""
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

    def unique_name(self, name: str) -> str:
        """A name like ``name`` that torch takes (letters, digits and ``_``) and that nothing has been given yet."""
        base = re.sub(r"\W+", "_", name.rpartition(":")[0] if re.search(r":\d+$", name) else name).strip("_") or "value"
        found, number = base, 1
        while found in self.names or hasattr(self.root, found):
            number += 1
            found = f"{base}_{number}"
        self.names.add(found)
        return found

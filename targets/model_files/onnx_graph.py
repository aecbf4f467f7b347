"""The nodes of an ``.onnx`` file, read without the onnx package: what an audit needs, on a board too.

Field numbers are those of ``onnx.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from targets.model_files.protobuf import fields

TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16", 21: "uint4", 22: "int4",
}  # fmt: skip
"""Names of the element types that weights have; the rest are given as numbers."""

_MOVING = frozenset({
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "ReorderInput", "ReorderOutput",
})  # fmt: skip
"""What passes values on as they are."""


@dataclass(frozen=True)
class Node:
    """An operator; ``numbers`` and ``words`` are its integer and string attributes."""

    name: str
    operator: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: Mapping[str, int] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    bodies: tuple[Graph, ...] = ()
    """The graphs inside it (branches, loops)."""


@dataclass(frozen=True)
class Graph:
    """Nodes in the order of the file; ``constants`` are the element types of the initializers by name."""

    nodes: tuple[Node, ...]
    constants: Mapping[str, str]


@dataclass(frozen=True)
class Scope:
    """What the nodes of one graph see: its own values and those of the graphs around it."""

    constants: Mapping[str, str]
    makers: Mapping[str, Node]
    users: Mapping[str, list[Node]] = field(default_factory=dict)

    def inside(self, graph: Graph) -> Scope:
        """The scope of a graph that stands inside this one, as a branch or the body of a loop does."""
        makers = {name: node for node in graph.nodes for name in node.outputs if name}
        users: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in node.inputs:
                users.setdefault(name, []).append(node)
        return Scope({**self.constants, **graph.constants}, {**self.makers, **makers}, users)

    def maker(self, name: str) -> Node | None:
        """The node that computes a value, looking through those that only move it; None for inputs and constants."""
        node = self.makers.get(name)
        while node is not None and node.operator in _MOVING and node.inputs:
            node = self.makers.get(node.inputs[0])
        return node

    def constant(self, name: str) -> bool:
        """Whether a value is a weight, as it is or from integers."""
        node = self.maker(name)
        if node is None:
            return name in self.constants
        return node.operator == "DequantizeLinear" and node.inputs[0] in self.constants

    def quantized(self, name: str) -> str | None:
        """The integer type that a value was dequantized from; None where it is a float of its own."""
        node = self.maker(name)
        return None if node is None or node.operator != "DequantizeLinear" else self.integer_type(node)

    def integer_type(self, node: Node) -> str:
        """Of a QuantizeLinear or DequantizeLinear: its zero point's, by the standard uint8 where there is none."""
        if node.inputs[0] in self.constants and node.operator == "DequantizeLinear":
            return self.constants[node.inputs[0]]
        return self.constants.get(node.inputs[2], "integer") if len(node.inputs) > 2 and node.inputs[2] else "uint8"


def all_graphs(graph: Graph) -> Iterator[Graph]:
    """A graph and all those inside it: branches and bodies of loops, at any depth."""
    yield graph
    for node in graph.nodes:
        for body in node.bodies:
            yield from all_graphs(body)


def read_graph(data: bytes) -> Graph:
    """The main graph of a model; raises ValueError where the bytes are not one."""
    try:
        for number, value in fields(memoryview(data)):
            if number == 7:
                return _graph(value)
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError(f"not an ONNX file: {error}") from None
    raise ValueError("not an ONNX file: there is no graph in it")


def _text(value: Any) -> str:
    return bytes(value).decode()


def _graph(data: Any) -> Graph:
    nodes: list[Node] = []
    constants: dict[str, str] = {}
    for number, value in fields(data):
        if number == 1:
            nodes.append(_node(value))
        elif number == 5:
            constants.update([_tensor(value)])
        elif number == 15:
            # A sparse initializer goes by the name of its values.
            constants.update(_tensor(inner) for part, inner in fields(value) if part == 1)
    return Graph(tuple(nodes), constants)


def _tensor(data: Any) -> tuple[str, str]:
    name, kind = "", 0
    for number, value in fields(data):
        if number == 8:
            name = _text(value)
        elif number == 2:
            kind = value
    return name, TYPES.get(kind, f"type {kind}")


def _node(data: Any) -> Node:
    texts: dict[int, list[str]] = {}
    numbers: dict[str, int] = {}
    words: dict[str, str] = {}
    bodies: list[Graph] = []
    for number, value in fields(data):
        if number in (1, 2, 3, 4, 7):
            texts.setdefault(number, []).append(_text(value))
        elif number == 5:
            _attribute(value, numbers, words, bodies)
    name, operator, domain = (texts.get(number, [""])[-1] for number in (3, 4, 7))
    inputs, outputs = (tuple(texts.get(number, ())) for number in (1, 2))
    # An operator of ONNX itself may be written either way.
    domain = "" if domain == "ai.onnx" else domain
    return Node(name, operator, domain, inputs, outputs, numbers, words, tuple(bodies))


def _attribute(data: Any, numbers: dict[str, int], words: dict[str, str], bodies: list[Graph]) -> None:
    name = ""
    for number, value in fields(data):
        if number == 1:
            name = _text(value)
        elif number == 3:
            numbers[name] = value
        elif number == 4:
            words[name] = bytes(value).decode(errors="replace")
        elif number in (6, 11):
            bodies.append(_graph(value))

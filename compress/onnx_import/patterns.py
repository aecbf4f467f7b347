"""Layers that exporters take apart, put together again: GroupNorm and LayerNorm, of older opsets.

Found by the operators they are made of; whether the result computes the same is for the parity check to say. By hand,
since onnxscript's LayerNormFusion knows the form of opset 18 alone (axes as an input of the mean), and its group norm
is an operator of ONNX Runtime's on images whose channels come last.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper


class _Graph:
    """A graph with its values looked up by name."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.constants = {t.name: t for t in graph.initializer}
        self.uses = Counter(o.name for o in graph.output)

    def maker(self, name: str, *kinds: str) -> NodeProto | None:
        """The node that makes a value, if it is of one of these kinds."""
        node = self.makers.get(name)
        return node if node is not None and node.op_type in kinds else None

    def only_reader(self, node: NodeProto, kind: str) -> NodeProto | None:
        """The node that alone reads the output of ``node``, if it is of that kind."""
        readers = self.readers.get(node.output[0], [])
        return (
            readers[0] if len(readers) == 1 and not self.uses[node.output[0]] and readers[0].op_type == kind else None
        )

    def constant(self, name: str) -> np.ndarray | None:
        """The values of the constant of that name, a weight or what a ``Constant`` node gives; None for others."""
        node = self.maker(name, "Constant")
        tensor = self.constants.get(name) or (node.attribute[0].t if node and node.attribute[0].HasField("t") else None)
        return None if tensor is None else np.asarray(numpy_helper.to_array(tensor))

    def closed(self, nodes: list[NodeProto]) -> bool:
        """Whether nothing else reads what these compute, but for the last."""
        inside = {id(node) for node in nodes}
        names = [name for node in nodes[:-1] for name in node.output]
        return all(not self.uses[n] and inside.issuperset(map(id, self.readers.get(n, []))) for n in names)

    def scaled(self, node: NodeProto) -> tuple[list[NodeProto], np.ndarray, np.ndarray] | None:
        """``Mul`` and ``Add`` of constants behind ``node``: the nodes, scale and offset."""
        found: list[NodeProto] = []
        arrays: list[np.ndarray] = []
        for kind in ("Mul", "Add"):
            reader = self.only_reader(found[-1] if found else node, kind)
            sides = [self.constant(name) for name in reader.input] if reader is not None else []
            array = next((side for side in sides if side is not None), None)
            if reader is None or array is None:
                return None
            found.append(reader)
            arrays.append(array)
        return found, arrays[0], arrays[1]


def assembled(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` in which each layer that is recognised is one node; also of opsets that have no such node."""
    model = copy.deepcopy(model)
    graph = _Graph(model.graph)
    replaced: dict[int, NodeProto] = {}
    gone: set[int] = set()
    for node in model.graph.node:
        match = _group_norm(graph, node) or _layer_norm(graph, node)
        if match is None or not graph.closed(match[0]):
            continue
        nodes, kind, source, scale, offset, attributes = match
        last = nodes[-1]
        names = [f"{last.name or last.output[0]}.weight", f"{last.name or last.output[0]}.bias"]
        for name, array in zip(names, (scale, offset), strict=True):
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        replaced[id(last)] = helper.make_node(kind, [source, *names], [last.output[0]], name=last.name, **attributes)
        gone |= {id(one) for one in nodes[:-1]}
    kept = [replaced.get(id(node), node) for node in model.graph.node if id(node) not in gone]
    nodes_now = [copy.deepcopy(node) for node in kept]
    del model.graph.node[:]
    model.graph.node.extend(nodes_now)
    return model


Match = tuple[list[NodeProto], str, str, np.ndarray, np.ndarray, dict[str, Any]]
"""Nodes in order, the layer's kind, its input, scale, offset, attributes."""


def _group_norm(graph: _Graph, node: NodeProto) -> Match | None:
    """Reshape, InstanceNormalization with neither scale nor offset, Reshape, Mul, Add."""
    if node.op_type != "InstanceNormalization":
        return None
    first, second = graph.maker(node.input[0], "Reshape"), graph.only_reader(node, "Reshape")
    ones, zeros = graph.constant(node.input[1]), graph.constant(node.input[2])
    if first is None or second is None or ones is None or zeros is None or (ones != 1).any() or zeros.any():
        return None
    if graph.only_reader(first, "InstanceNormalization") is None:
        return None
    tail = graph.scaled(second)
    if tail is None or tail[1].size < ones.size or tail[1].size % ones.size or tail[1].size != tail[2].size:
        return None
    attributes = {"num_groups": int(ones.size), "epsilon": _attribute(node, "epsilon", 1e-5)}
    scale, offset = tail[1].reshape(-1), tail[2].reshape(-1)
    return [first, node, second, *tail[0]], "GroupNormalization", first.input[0], scale, offset, attributes


def _layer_norm(graph: _Graph, node: NodeProto) -> Match | None:
    """Sub of the mean, over the root of the mean square plus a little; Mul, Add."""
    if node.op_type != "Div":
        return None
    centred, root = graph.maker(node.input[0], "Sub"), graph.maker(node.input[1], "Sqrt")
    added = graph.maker(root.input[0], "Add") if root is not None else None
    if centred is None or added is None or root is None:
        return None
    epsilon = next((c for c in map(graph.constant, added.input) if c is not None), None)
    variance = next((m for m in (graph.maker(n, "ReduceMean") for n in added.input) if m is not None), None)
    mean = graph.maker(centred.input[1], "ReduceMean")
    if epsilon is None or variance is None or mean is None or mean.input[0] != centred.input[0]:
        return None
    square = graph.maker(variance.input[0], "Pow", "Mul")
    tail = graph.scaled(node)
    # Some exporters compute the difference twice.
    again = graph.maker(square.input[0], "Sub") if square is not None else None
    if square is None or again is None or list(again.input) != list(centred.input) or tail is None:
        return None
    if tail[1].ndim != 1 or tail[1].shape != tail[2].shape:
        return None
    nodes = [*_apart(mean, centred, again, square, variance, added, root), node, *tail[0]]
    return nodes, "LayerNormalization", centred.input[0], tail[1], tail[2], {"axis": -1, "epsilon": float(epsilon)}


def _apart(*nodes: NodeProto) -> list[NodeProto]:
    """Each once."""
    return list({id(node): node for node in nodes}.values())


def _attribute(node: NodeProto, name: str, default: float) -> float:
    return next((float(a.f) for a in node.attribute if a.name == name), default)

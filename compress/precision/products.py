"""The products of an ONNX file (convolutions, matrix products) with their weights as plain rows: one row an output.

What post-training refinements work on. A weight that two nodes share, or that an inner graph reads, is left out: what
is right for one of them is wrong for the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from compress.onnx_files.contents import attributes_of, graphs_inside


@dataclass(frozen=True)
class Product:
    """One Conv, Gemm or MatMul with a constant weight of its own."""

    node: onnx.NodeProto
    weight: str
    bias: onnx.NodeProto | None
    """The node that adds the bias: the product itself, or the Add after a MatMul; None where there is no such place."""
    turned: bool
    """Whether the weight is stored (in, out)."""
    groups: int

    @property
    def name(self) -> str:
        """The name of the product's node."""
        return self.node.name

    @property
    def output(self) -> str:
        """The name of the tensor that leaves the product, bias included."""
        return str((self.bias or self.node).output[0])

    @property
    def channel_axis(self) -> int:
        """Where its channels are in its output: after the batch, or last."""
        return 1 if self.node.op_type == "Conv" else -1

    def rows(self, weight: np.ndarray) -> np.ndarray:
        """A stored weight as rows (out, in of one group, *kernel), or such rows as the weight is stored."""
        return weight.T if self.turned else weight


@dataclass(frozen=True)
class ProductGraph:
    """A model with its products, in graph order, and who reads what."""

    model: onnx.ModelProto
    products: tuple[Product, ...]
    users: Mapping[str, list[onnx.NodeProto]]
    tensors: dict[str, onnx.TensorProto] = field(repr=False)

    def array(self, name: str) -> np.ndarray:
        """The values of the constant of that name, a copy that may be changed."""
        return onnx.numpy_helper.to_array(self.tensors[name]).copy()

    def write(self, name: str, values: np.ndarray) -> None:
        """Replace the values of the constant of that name, in its type."""
        old = self.tensors[name]
        kind = onnx.helper.tensor_dtype_to_np_dtype(old.data_type)
        old.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values, dtype=kind), name))

    def only_user(self, name: str) -> onnx.NodeProto | None:
        """The one node that reads a tensor; None where there are more, or where it leaves the graph."""
        users = self.users.get(name, [])
        leaves = any(value.name == name for value in self.model.graph.output)
        return users[0] if len(users) == 1 and not leaves else None

    def bias(self, product: Product) -> np.ndarray | None:
        """The product's bias, (channels,); None where it has none as yet."""
        at = bias_input(self, product)
        if at is None or product.bias is None:
            return None
        values = self.array(product.bias.input[at]).reshape(-1)
        channels = len(product.rows(self.array(product.weight)))
        return np.broadcast_to(values, (channels,)).astype(values.dtype)

    def set_bias(self, product: Product, values: np.ndarray) -> None:
        """Give the product a bias (channels,) of its own; it must have a place for one."""
        node, at = product.bias, bias_input(self, product)
        if node is None:
            return
        name = f"{product.name}_own_bias"
        if name not in self.tensors:
            self.model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
            self.tensors[name] = self.model.graph.initializer[-1]
            if at is None:
                del node.input[2:]
                node.input.append(name)
            else:
                old, node.input[at] = node.input[at], name
                self._drop(old)
        self.write(name, values)

    def _drop(self, name: str) -> None:
        """Remove a constant whose one reader reads another now."""
        if len(self.users[name]) == 1 and all(value.name != name for value in self.model.graph.output):
            self.model.graph.initializer.remove(self.tensors.pop(name))
            kept = [value for value in self.model.graph.input if value.name != name]
            del self.model.graph.input[:]
            self.model.graph.input.extend(kept)


def find_products(model: onnx.ModelProto) -> ProductGraph:
    """``model``, whose nodes must have names, with its products looked up; what is written goes into ``model``."""
    tensors = {t.name: t for t in model.graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in dict.fromkeys(_reads(node)):
            users.setdefault(name, []).append(node)
    graph = ProductGraph(model, (), users, tensors)
    found = tuple(p for node in model.graph.node if (p := _product(graph, node)) is not None)
    return ProductGraph(model, found, users, tensors)


def _product(graph: ProductGraph, node: onnx.NodeProto) -> Product | None:
    """``node`` as a product; None where it is none, or its weight is not constant or not its own."""
    weight = node.input[1] if len(node.input) > 1 else ""
    tensor = graph.tensors.get(weight)
    leaves = any(value.name == weight for value in graph.model.graph.output)
    if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or len(graph.users[weight]) > 1 or leaves:
        return None
    if Counter(node.input)[weight] > 1:
        return None
    found = attributes_of(node)
    if node.op_type == "Conv":
        groups = int(found.get("group", 1))
        return Product(node, weight, node, False, groups)
    if len(tensor.dims) != 2:
        return None
    if node.op_type == "Gemm":
        plain = found.get("alpha", 1.0) == 1.0 and found.get("beta", 1.0) == 1.0 and not found.get("transA")
        turned = not found.get("transB")
        added = node.input[2] if len(node.input) > 2 else ""
        known = not added or _is_vector(graph.tensors.get(added))
        return Product(node, weight, node, turned, 1) if plain and known else None
    if node.op_type == "MatMul":
        return Product(node, weight, _adding(graph, node, int(tensor.dims[1])), True, 1)
    return None


def _is_vector(tensor: onnx.TensorProto | None) -> bool:
    """Whether it is a constant with all its values along one dimension."""
    return tensor is not None and max(tensor.dims, default=1) == int(np.prod(tensor.dims))


def _adding(graph: ProductGraph, node: onnx.NodeProto, channels: int) -> onnx.NodeProto | None:
    """The Add of one constant a channel after a MatMul."""
    user = graph.only_user(node.output[0])
    if user is None or user.op_type != "Add":
        return None
    constants = [graph.tensors[name] for name in user.input if name in graph.tensors]
    if len(constants) != 1 or list(constants[0].dims) != [channels] or constants[0].data_type != onnx.TensorProto.FLOAT:
        return None
    return user


def bias_input(graph: ProductGraph, product: Product) -> int | None:
    """Which input of ``product.bias`` is the bias; None where it has none as yet."""
    node = product.bias
    if node is None:
        return None
    if node is product.node:
        return 2 if len(node.input) > 2 and node.input[2] else None
    return next(i for i, name in enumerate(node.input) if name in graph.tensors)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names of what a node reads, in the graphs inside it as well."""
    nodes = [node, *(each for graph in graphs_inside(node) for each in graph.node)]
    return (name for each in nodes for name in each.input if name)

"""One traced graph for all widths of a network: its weights replaced, and the numbers in it that follow from widths.

The exporter takes seconds, and what it writes for a cut network is the graph of the whole one with other numbers: the
shapes of weights, ``group`` of depthwise convolutions, ``hidden_size``, and the constants of Reshape, Expand, Split,
Slice and Pad that count channels. The graph is walked once with the shapes of the old network and of the new one side
by side, and each such constant set to what the new shape of its input asks for. Where that is not certain
``NotRetargetable`` is raised; where it is a guess (of heads and their width, which one was cut), the caller's parity
check decides, as it does about everything here.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from torch import Tensor, nn

from compress.onnx_files.width_arithmetic import NotRetargetable, pieces, reshaped, scaled

_BATCH = 7
"""Examples that shapes are worked out for: no common number of channels."""
_MOST_DATA = 64
"""Tensors of whole numbers up to this size are followed: they are shapes."""
_FAR = 2**31 - 1
"""Slices end here or beyond where they go to the end."""
_ARITHMETIC = {
    "Identity", "Squeeze", "Unsqueeze", "Reshape", "Concat", "Gather", "Add", "Sub", "Mul", "Div", "Slice", "Cast",
    "Range", "Min", "Max", "Neg", "Size", "ReduceProd", "Mod", "Where", "Equal", "Expand",
}  # fmt: skip
_IN_ORDER = {"Identity", "Squeeze", "Unsqueeze", "Reshape", "Concat", "Cast"}
"""What gives the numbers that it takes, in their order."""
Source = tuple[int, int]
"""Which node's constant, and which number in it."""


@dataclass(frozen=True)
class _Value:
    """A tensor of the graph in both networks: its shapes, and its numbers where they are few and whole."""

    type: int
    old: tuple[int, ...]
    new: tuple[int, ...]
    old_data: np.ndarray | None = None
    new_data: np.ndarray | None = None
    sources: tuple[Source | None, ...] = ()


def retarget(template: onnx.ModelProto, module: nn.Module, *, first: bool = False) -> onnx.ModelProto:
    """``template``, traced for a network of other widths, as the graph of ``module``, with its weights.

    ``first``: where a width is divided in two that no placeholder tells apart, the first of them was cut, not the last.
    The result must be checked for parity. Raises NotRetargetable where numbers cannot be told.
    """
    if template.functions:
        raise NotRetargetable("the graph has functions")
    model = copy.deepcopy(template)
    walk = _Walk(template, model, module, first)
    for place, node in enumerate(model.graph.node):
        walk.visit(place, node)
    walk.finish()
    return model


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, those that are not saved as well, under every name that they have."""
    found: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    found.update(module.named_buffers(remove_duplicate=False))
    return found


@dataclass
class _Walk:
    """Goes through the nodes in order and changes them to those of the new network."""

    template: onnx.ModelProto
    model: onnx.ModelProto
    module: nn.Module
    first: bool
    values: dict[str, _Value] = field(default_factory=dict)
    sequences: dict[str, list[_Value]] = field(default_factory=dict)
    wanted: dict[Source, int] = field(default_factory=dict)
    images: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Hidden size of a recurrent layer in the old network -> those in the new one."""

    def __post_init__(self) -> None:
        self.opsets = {entry.domain: entry.version for entry in self.model.opset_import}
        self.tensors = tensors_of(self.module)
        for value in self.model.graph.input:
            shape = tuple(d.dim_value or _BATCH for d in value.type.tensor_type.shape.dim)
            self.values[value.name] = _Value(value.type.tensor_type.elem_type, shape, shape)
        for initializer in self.model.graph.initializer:
            self._weight(initializer)

    def _weight(self, initializer: onnx.TensorProto) -> None:
        """Put the new network's tensor in, and note both shapes."""
        old = tuple(initializer.dims)
        tensor = self.tensors.get(initializer.name)
        if tensor is not None:
            if tensor.ndim != len(old):
                raise NotRetargetable(f"{initializer.name} has other dimensions")
            array = tensor.detach().cpu().contiguous().numpy()
            initializer.CopyFrom(onnx.numpy_helper.from_array(array, initializer.name))
            if ".weight_hh" in f".{initializer.name}" or ".weight_hr" in f".{initializer.name}":
                self.images[old[1]].add(tensor.shape[1])
        new = tuple(initializer.dims)
        data = None
        if initializer.data_type == onnx.TensorProto.INT64 and math.prod(new) <= _MOST_DATA:
            data = onnx.numpy_helper.to_array(initializer)
        self.values[initializer.name] = _Value(
            initializer.data_type, old, new, data, data, (None,) * (0 if data is None else data.size)
        )

    def visit(self, place: int, node: onnx.NodeProto) -> None:
        """Change one node where it must be, and note what it gives in both networks."""
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise NotRetargetable(f"{node.op_type} has graphs inside")
        old = copy.deepcopy(node)
        change = getattr(self, f"_{node.op_type.lower()}", None)
        if change is not None and change(place, node):
            return
        given = [self.values[name] if name else None for name in node.input if name not in self.sequences]
        if node.op_type in _ARITHMETIC and all(v is not None and v.old_data is not None for v in given):
            self._compute(node, old, [v for v in given if v is not None])
            return
        before, after = self._inferred(old, given, new=False), self._inferred(node, given, new=True)
        for name, (kind, shape) in before.items():
            self.values[name] = _Value(kind, shape, after[name][1])

    def finish(self) -> None:
        """Write the constants that changed, and the shapes that the graph says of its values."""
        for (place, at), number in self.wanted.items():
            _put_number(self.model.graph.node[place], at, number)
        for info in (*self.model.graph.value_info, *self.model.graph.output):
            value = self.values.get(info.name)
            for dim, new in zip(info.type.tensor_type.shape.dim, value.new if value else (), strict=False):
                if dim.HasField("dim_value"):
                    dim.dim_value = new

    # -- nodes with numbers of their own

    def _constant(self, place: int, node: onnx.NodeProto) -> bool:
        attribute = node.attribute[0]
        data = onnx.helper.get_attribute_value(attribute)
        array = onnx.numpy_helper.to_array(data) if isinstance(data, onnx.TensorProto) else np.asarray(data)
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        if attribute.name in ("value_float", "value_floats"):
            kind = onnx.TensorProto.FLOAT
        value = _Value(kind, array.shape, array.shape)
        if array.dtype.kind in "iub" and array.size <= _MOST_DATA:
            value = replace(value, old_data=array, new_data=array, sources=tuple((place, k) for k in range(array.size)))
        self.values[node.output[0]] = value
        return True

    def _shape(self, _: int, node: onnx.NodeProto) -> bool:
        value = self.values[node.input[0]]
        start, end = _attribute(node, "start", 0), _attribute(node, "end", None)
        old, new = (np.asarray(shape[start:end], np.int64) for shape in (value.old, value.new))
        self.values[node.output[0]] = _Value(onnx.TensorProto.INT64, old.shape, new.shape, old, new, (None,) * old.size)
        return True

    def _conv(self, _: int, node: onnx.NodeProto) -> bool:
        layer = node.input[1].rpartition(".")[0]
        groups = getattr(dict(self.module.named_modules()).get(layer), "groups", None)
        before, weight = _attribute(node, "group", 1), self.values[node.input[1]]
        if groups is None and before > 1 and weight.old != weight.new:
            groups = before * weight.new[0] // weight.old[0] if weight.old[1] == 1 else before
        if groups is not None and groups != before:
            _set(node, "group", groups)
        return False

    _convtranspose = _conv

    def _lstm(self, _: int, node: onnx.NodeProto) -> bool:
        size = self.values[node.input[2]].new[-1]
        if any(name and self.values[name].new[-1] != size for name in node.input[5:7]):
            raise NotRetargetable(f"{node.op_type} begins with a state of another size")
        _set(node, "hidden_size", size)
        return False

    _gru = _rnn = _lstm

    def _castlike(self, _: int, node: onnx.NodeProto) -> bool:
        value, like = self.values[node.input[0]], self.values[node.input[1]]
        self.values[node.output[0]] = _Value(like.type, value.old, value.new)
        return True

    # -- nodes with constants beside their input

    def _reshape(self, _: int, node: onnx.NodeProto) -> bool:
        value, shape = self.values[node.input[0]], self.values[node.input[1]]
        if value.old_data is not None or shape.old_data is None:
            return False
        asked = [int(x) for x in shape.old_data]
        copied = {k for k, x in enumerate(asked) if x == 0 and not _attribute(node, "allowzero", 0)}
        sizes = [value.old[k] if k in copied else x for k, x in enumerate(asked)]
        rest = math.prod(x for x in sizes if x != -1)
        sizes = [math.prod(value.old) // rest if x == -1 else x for x in sizes]
        new = reshaped(value.old, value.new, sizes, asked, self.first)
        self._want(node.input[1], [x if x == -1 or k in copied else new[k] for k, x in enumerate(asked)])
        return False

    def _expand(self, _: int, node: onnx.NodeProto) -> bool:
        value, shape = self.values[node.input[0]], self.values[node.input[1]]
        if value.old_data is not None or shape.old_data is None or shape.new_data is None:
            return False
        asked = [int(x) for x in shape.old_data]
        known = [int(x) for x in shape.new_data]
        padding = len(asked) - len(value.old)
        for k, size in enumerate(asked):
            if k >= padding and value.old[k - padding] != 1:
                known[k] = value.new[k - padding] if size != 1 else 1
            elif known[k] == size and shape.sources[k] is not None and len(self.images.get(size, ())) == 1:
                # The first hidden state of a recurrent layer: zeros made of nothing but their size.
                [known[k]] = self.images[size]
        self._want(node.input[1], known)
        return False

    def _slice(self, _: int, node: onnx.NodeProto) -> bool:
        value, axes = self.values[node.input[0]], None
        if value.old_data is not None:
            return False
        if len(node.input) > 3 and node.input[3]:
            axes = self.values[node.input[3]].old_data
        for name in node.input[1:3]:
            ends = self.values[name]
            if ends.old_data is None or ends.new_data is None:
                continue
            places = range(len(ends.old_data)) if axes is None else [int(axis) for axis in axes]
            pairs = [(value.old[axis], value.new[axis]) for axis in places]
            self._want(name, [
                scaled(int(x), *pair) if known == x and abs(int(x)) < _FAR else int(known)
                for x, known, pair in zip(ends.old_data, ends.new_data, pairs, strict=True)
            ])  # fmt: skip
        return False

    def _pad(self, _: int, node: onnx.NodeProto) -> bool:
        value, pads = self.values[node.input[0]], self.values[node.input[1]]
        if pads.old_data is not None and len(pads.old_data) == 2 * len(value.old):
            pairs = [*zip(value.old, value.new, strict=True)] * 2
            self._want(node.input[1], [scaled(int(x), *pair) for x, pair in zip(pads.old_data, pairs, strict=True)])
        return False

    def _split(self, _: int, node: onnx.NodeProto) -> bool:
        value = self.values[node.input[0]]
        axis = _attribute(node, "axis", 0)
        if len(node.input) > 1 and (parts := self.values[node.input[1]].old_data) is not None:
            sizes = [scaled(int(x), value.old[axis], value.new[axis]) for x in parts.reshape(-1)]
            self._want(node.input[1], sizes)
        return False

    def _splittosequence(self, place: int, node: onnx.NodeProto) -> bool:
        self._split(place, node)
        value, parts = self.values[node.input[0]], self.values[node.input[1]] if len(node.input) > 1 else None
        if parts is None or parts.old_data is None or parts.new_data is None:
            raise NotRetargetable("SplitToSequence without known sizes")
        axis = _attribute(node, "axis", 0) % len(value.old)
        old, new = (
            pieces(data, shape[axis]) for data, shape in ((parts.old_data, value.old), (parts.new_data, value.new))
        )
        if len(old) != len(new):
            raise NotRetargetable("SplitToSequence gives another number of parts")
        self.sequences[node.output[0]] = [
            _Value(value.type, _with(value.old, axis, a), _with(value.new, axis, b))
            for a, b in zip(old, new, strict=True)
        ]
        return True

    def _sequenceat(self, _: int, node: onnx.NodeProto) -> bool:
        at = self.values[node.input[1]].old_data
        if at is None:
            raise NotRetargetable("SequenceAt without a known place")
        self.values[node.output[0]] = self.sequences[node.input[0]][int(at)]
        return True

    # -- what nodes give

    def _want(self, name: str, numbers: Sequence[int]) -> None:
        """Make the numbers of an input these, where they come from constants; computed ones are what they are."""
        value = self.values[name]
        data = np.asarray(value.new_data)  # who asks has seen that the numbers are known
        for number, source in zip(numbers, value.sources, strict=True):
            if source is not None and self.wanted.setdefault(source, number) != number:
                raise NotRetargetable(f"a constant of {name} is wanted to be two numbers")
        made = [
            known if source is None else number
            for known, number, source in zip(data.reshape(-1).tolist(), numbers, value.sources, strict=True)
        ]
        self.values[name] = replace(value, new_data=np.asarray(made, data.dtype).reshape(data.shape))

    def _compute(self, node: onnx.NodeProto, old: onnx.NodeProto, given: Sequence[_Value]) -> None:
        """The numbers that a node gives, of numbers."""
        before = self._run(old, [v.old_data for v in given])
        after = self._run(node, [v.new_data for v in given])
        sources: tuple[Source | None, ...] = (None,) * before.size
        if node.op_type in _IN_ORDER:
            data = given if node.op_type == "Concat" else given[:1]
            sources = tuple(itertools.chain.from_iterable(v.sources for v in data))
        kind = onnx.helper.np_dtype_to_tensor_dtype(before.dtype)
        self.values[node.output[0]] = _Value(kind, before.shape, after.shape, before, after, sources)

    def _run(self, node: onnx.NodeProto, data: Sequence[np.ndarray | None]) -> np.ndarray:
        from onnx.reference import ReferenceEvaluator

        outputs: Any = ReferenceEvaluator(node, opsets=self.opsets).run(None, dict(zip(node.input, data, strict=True)))
        return np.asarray(outputs[0])

    def _inferred(
        self, node: onnx.NodeProto, given: Sequence[_Value | None], *, new: bool
    ) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Output -> (type, shape) of one node; raises NotRetargetable where it is not certain."""
        types, data = {}, {}
        for name, value in zip((name for name in node.input if name not in self.sequences), given, strict=True):
            if value is None:
                continue
            types[name] = onnx.helper.make_tensor_type_proto(value.type, value.new if new else value.old)
            numbers = value.new_data if new else value.old_data
            if numbers is not None:
                data[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(numbers), name)
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opsets[node.domain], node.domain)
            found = onnx.shape_inference.infer_node_outputs(
                schema, node, types, data, opset_imports=list(self.model.opset_import), ir_version=self.model.ir_version
            )
        except Exception as error:
            raise NotRetargetable(f"{node.op_type}: {error}") from error
        shapes = {}
        for name in filter(None, node.output):
            kind = found[name].tensor_type if name in found else None
            if kind is None or not all(d.HasField("dim_value") for d in kind.shape.dim):
                raise NotRetargetable(f"{node.op_type} gives no shape")
            shapes[name] = (kind.elem_type, tuple(d.dim_value for d in kind.shape.dim))
        return shapes


def _with(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    found = [onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name]
    return found[0] if found else default


def _set(node: onnx.NodeProto, name: str, value: int) -> None:
    for attribute in node.attribute:
        if attribute.name == name:
            attribute.i = value
            return
    node.attribute.append(onnx.helper.make_attribute(name, value))


def _put_number(node: onnx.NodeProto, at: int, number: int) -> None:
    """Write one number of a Constant node."""
    attribute = node.attribute[0]
    if attribute.name == "value_ints":
        attribute.ints[at] = number
    elif attribute.name == "value_int":
        attribute.i = number
    else:
        array = onnx.numpy_helper.to_array(attribute.t).copy()
        array.reshape(-1)[at] = number
        attribute.t.CopyFrom(onnx.numpy_helper.from_array(array, attribute.t.name))

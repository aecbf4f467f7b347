"""Names of tensors that a rewriting of a graph may take: whether they are free, and making them so.

ONNX Runtime's quantizers (seen with 1.31) call what they add to a graph by the tensor that it belongs to, with a word
behind its name, and do not look whether that name is taken: a file in which one tensor is called ``conv`` and another
one ``conv_scale`` comes out wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx

from compress.onnx_files.contents import graphs_in

_ADDED = re.compile(
    "_(quantized|scale|zero_point|(Deq|Q)uantizeLinear|convert|Reduce(Min|Max)|Abs_Max|output_quantized|bias_reshape)"
    "(_.*)?"
)
"""What stands behind a tensor's name in the names that quantizers make of it."""


def names_in(model: onnx.ModelProto) -> set[str]:
    """All names of nodes and values, in inner graphs as well."""
    found: set[str] = set()
    for graph in graphs_in(model.graph):
        found.update(value.name for value in (*graph.initializer, *graph.input, *graph.output))
        for node in graph.node:
            found.update((node.name, *node.input, *node.output))
    return found


def unused(wanted: str, taken: set[str]) -> str:
    """``wanted``, or with a number behind it where that name is taken; it is taken then."""
    name = next(n for n in (wanted, *(f"{wanted}_{i}" for i in range(2, len(taken) + 3))) if n not in taken)
    taken.add(name)
    return name


def free_quantizers_names(model: onnx.ModelProto) -> None:
    """Rename, in place, each tensor inside the graph that bears a name which a quantizer would make of another one's.

    Inputs and outputs of the model keep their names; between two of them nothing is done.
    """
    taken = names_in(model)
    ends = {value.name for value in (*model.graph.input, *model.graph.output)}
    new: dict[str, str] = {}
    for name in sorted(taken - {""}):
        for at in (place.start() for place in re.finditer("_", name)):
            base = name[:at]
            if base in taken and _ADDED.fullmatch(name, at):
                moved = name if name not in ends else base
                if moved not in ends and moved not in new:
                    new[moved] = unused(f"apart_{moved}", taken)
    if new:
        _renamed(model, new)


def _renamed(model: onnx.ModelProto, new: Mapping[str, str]) -> None:
    """Give tensors the names that ``new`` has for them, wherever they are made, read and described."""
    for graph in graphs_in(model.graph):
        for tensor in (*graph.initializer, *graph.value_info, *graph.input, *graph.output):
            tensor.name = new.get(tensor.name, tensor.name)
        for sparse in graph.sparse_initializer:
            sparse.values.name = new.get(sparse.values.name, sparse.values.name)
        for annotation in graph.quantization_annotation:
            annotation.tensor_name = new.get(annotation.tensor_name, annotation.tensor_name)
        for node in graph.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    names[i] = new.get(name, name)

"""A float model in the plain form that quantizers expect: it computes the same, and says it in one way.

Legal files say the same thing in many ways, and ONNX Runtime's quantizers (seen with 1.31) know one of them; of others
they make something wrong without a word. In the plain form every node has a name of its own, no tensor has one that a
quantizer would make of another tensor's, weights are initializers and nothing else, and a Gemm multiplies, adds a
vector, and scales nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compress.float_models.constant_folding import fold_constants, replace_nodes
from compress.float_models.tensor_names import free_quantizers_names, names_in, unused
from compress.onnx_files.contents import attributes_of, graphs_in, opset_of
from compress.onnx_files.graphs import read_unchecked
from compress.onnx_files.isolation import isolated
from compress.onnx_files.opsets import raised_opset

LEAST_OPSET = 13
"""The first whose DequantizeLinear has a scale for every channel."""
_OPTIONAL_BIAS = 11
"""The first whose Gemm need not have a bias."""
_SEPARATE_CONSTANTS = 4
"""The first IR version in which constants need not be listed among the inputs."""


def read_plain(path: Path, least_opset: int = 0) -> onnx.ModelProto:
    """The model in the file in plain form, converted to ``least_opset`` if it is older.

    Raises ModelError where the file cannot be read, QuantizeError where its opset cannot be converted.
    """
    model = read_unchecked(path)
    if model.functions:
        from onnx.inliner import inline_local_functions

        model = inline_local_functions(model)
    name_nodes(model)
    _separate_constants(model)
    fold_constants(model)
    converted = raised_opset(model, least_opset, path.name)
    if converted is not model:
        name_nodes(converted)
        fold_constants(converted)
    if opset_of(converted) >= _OPTIONAL_BIAS:
        _plain_gemms(converted)
    _split_off_outputs(converted)
    free_quantizers_names(converted)
    return converted


@isolated("loading")
def with_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that says the type of every value, as quantizers need it; the runtime is asked where ONNX cannot tell.

    Raises what ONNX Runtime does where the model does not load.
    """
    found = onnx.shape_inference.infer_shapes(model)
    known = {value.name for value in (*found.graph.value_info, *found.graph.input, *found.graph.output)}
    unknown = [name for node in found.graph.node for name in node.output if name and name not in known]
    if not unknown:
        return found
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    asked = copy.deepcopy(model)
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in unknown)
    session = onnxruntime.InferenceSession(asked.SerializeToString(), options, providers=["CPUExecutionProvider"])
    types = {"tensor(float)": onnx.TensorProto.FLOAT, "tensor(float16)": onnx.TensorProto.FLOAT16}
    for value in session.get_outputs():
        if value.name in unknown and value.type in types:
            shape = [size if isinstance(size, int | str) else None for size in value.shape]
            found.graph.value_info.append(helper.make_tensor_value_info(value.name, types[value.type], shape))
    return found


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own, in place: layers go by them, and ONNX does not ask for any."""
    seen: set[str] = set()
    for i, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.name or node.op_type}_node{i}"
        seen.add(node.name)


def _separate_constants(model: onnx.ModelProto) -> None:
    """Take constants off the list of inputs, where old files have them."""
    constants = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in constants]
    if len(kept) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(kept)
        model.ir_version = max(model.ir_version, _SEPARATE_CONSTANTS)


def _split_off_outputs(model: onnx.ModelProto) -> None:
    """Where an input is an output as well, nodes read a copy of it: the output cannot take another name."""
    leaving = {value.name for value in model.graph.output}
    copies = []
    taken = names_in(model)
    for value in model.graph.input:
        readers = [node for graph in graphs_in(model.graph) for node in graph.node if value.name in node.input]
        if value.name not in leaving or all(node.op_type == "Identity" for node in readers):
            continue
        inner = unused(f"{value.name}_inside", taken)
        for graph in graphs_in(model.graph):
            for node in graph.node:
                for i, name in enumerate(node.input):
                    if name == value.name:
                        node.input[i] = inner
        copies.append(helper.make_node("Identity", [value.name], [inner], unused(f"{value.name}_copy", taken)))
    if copies:
        replace_nodes(model.graph, [*copies, *model.graph.node])


def _plain_gemms(model: onnx.ModelProto) -> None:
    """Every Gemm without alpha and beta, its bias a constant vector; what does not fit becomes nodes of its own."""
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}

    taken = names_in(model)
    made_of: dict[str, str] = {}

    def constant(wanted: str, values: np.ndarray) -> str:
        if wanted not in made_of:
            name = made_of[wanted] = unused(wanted, taken)
            tensors[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
            graph.initializer.append(tensors[name])
        return made_of[wanted]

    nodes: list[onnx.NodeProto] = []
    changed = False
    for node in graph.node:
        made = (
            _plain_gemm(node, tensors, constant, taken)
            if node.op_type == "Gemm" and node.domain in ("", "ai.onnx")
            else None
        )
        nodes.extend(made or [node])
        changed = changed or made is not None
    if changed:
        replace_nodes(graph, nodes)
        fold_constants(model)  # drops the weights that a scaled copy stands for


def _plain_gemm(
    node: onnx.NodeProto,
    tensors: dict[str, onnx.TensorProto],
    constant: Callable[[str, np.ndarray], str],
    taken: set[str],
) -> list[onnx.NodeProto] | None:
    """The nodes that stand for a Gemm, itself among them; None where it is plain already.

    ``constant`` makes an initializer of values, under a name like the one it is given, and gives back its name;
    ``taken``: names that are in use.
    """
    found = attributes_of(node)
    alpha, beta = float(found.get("alpha", 1.0)), float(found.get("beta", 1.0))
    bias = node.input[2] if len(node.input) > 2 else ""
    if alpha == 1.0 and beta == 1.0 and (not bias or _is_vector(node, bias, tensors)):
        return None
    before: list[onnx.NodeProto] = []
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    kept = [one for one in node.attribute if one.name not in ("alpha", "beta")]
    del plain.attribute[:], plain.input[:]
    plain.attribute.extend(kept)
    plain.input.extend(node.input[:2])

    def scaled(name: str, factor: float, ending: str) -> str:
        """The tensor called ``name`` times ``factor``."""
        if factor == 1.0:
            return name
        if name in tensors:
            values = numpy_helper.to_array(tensors[name])
            return constant(f"{name}_times_{factor:.9g}", (values * factor).astype(values.dtype))
        by = constant(f"{node.name}_{ending}", np.asarray(factor, np.float32))
        before.append(
            helper.make_node(
                "Mul", [name, by], [unused(f"{name}_{ending}", taken)], unused(f"{node.name}_{ending}_mul", taken)
            )
        )
        return str(before[-1].output[0])

    where = 1 if node.input[1] in tensors else 0
    plain.input[where] = scaled(node.input[where], alpha, "alpha")
    if not bias or beta == 0.0:
        return [*before, plain]
    if bias in tensors and node.input[1] in tensors:
        outputs = tensors[node.input[1]].dims[0 if found.get("transB") else 1]
        values = numpy_helper.to_array(tensors[bias]) * np.asarray(beta)
        if values.size == 1 or (values.shape[-1] == outputs and values.size == outputs):
            vector = np.broadcast_to(values.reshape(-1), (outputs,))
            kind = helper.tensor_dtype_to_np_dtype(tensors[bias].data_type)
            plain.input.append(constant(f"{node.name}_bias", vector.astype(kind)))
            return [*before, plain]
    added = scaled(bias, beta, "beta")
    plain.output[0] = unused(f"{node.output[0]}_product", taken)
    label = unused(f"{node.name}_add", taken)
    return [*before, plain, helper.make_node("Add", [plain.output[0], added], [node.output[0]], label)]


def _is_vector(node: onnx.NodeProto, bias: str, tensors: dict[str, onnx.TensorProto]) -> bool:
    """Whether a Gemm's bias is a constant with one value for each output, or cannot be any other."""
    if bias not in tensors or node.input[1] not in tensors:
        return False
    outputs = tensors[node.input[1]].dims[0 if attributes_of(node).get("transB") else 1]
    return list(tensors[bias].dims) == [outputs]

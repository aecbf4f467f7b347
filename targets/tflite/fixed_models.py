"""ONNX models made ready to be converted: one sample at a time, shapes known, means as microcontrollers have them.

Runs where the converter does (``onnx_to_tflite.py``), with its onnx package.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from targets.errors import ModelError

_QUANTIZED = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv",
    "QLinearMatMul", "QGemm", "DynamicQuantizeMatMul", "MatMulNBits",
})  # fmt: skip
_SPATIAL = (2, 3)
"""Height and width of a tensor with channels first."""


def refuse_quantized(model: Any) -> None:
    """Raise ModelError, with the remedy, for a file whose weights or activations are quantized in ONNX's own way."""
    found = sorted({node.op_type for node in model.graph.node} & _QUANTIZED)
    if found:
        raise ModelError(
            f"it is quantized in ONNX's own form ({found[0]}), which would be converted to floats; give the float "
            "file: for LiteRT int8 is made of that, as `paretopress search --target litert-cpu` does"
        )


def fix_shapes(model: Any, inputs: Sequence[Any]) -> list[bool]:
    """Set every batch axis to 1 and infer all shapes anew, in place; returns which inputs had an open batch.

    ``inputs``: of the graph, without its weights. Raises ModelError for any other axis without a size.
    """
    onnx: Any = importlib.import_module("onnx")
    opened = []
    for value in inputs:
        tensor = value.type.tensor_type
        if not tensor.HasField("shape"):
            raise ModelError(f"input {value.name!r} does not say how many axes it has; export it with a shape")
        axes = list(tensor.shape.dim)
        opened.append(bool(axes) and axes[0].dim_value <= 0)
        for number, axis in enumerate(axes):
            if axis.dim_value <= 0 and number:
                raise ModelError(
                    f"axis {number} of input {value.name!r} has no fixed size ({axis.dim_param or '?'}); "
                    "LiteRT needs one: export the model with fixed sizes"
                )
        if opened[-1]:
            axes[0].Clear()
            axes[0].dim_value = 1
    # What the file says of inner shapes was inferred with an open batch.
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    model.graph.CopyFrom(inferred.graph)
    return opened


def pool_means(model: Any) -> int:
    """Replace means over height and width by an average pool as large as its input, in place; returns how many.

    LiteRT's MEAN has no fast kernel on microcontrollers, where AVERAGE_POOL_2D has: a twentieth of the instructions.
    """
    onnx: Any = importlib.import_module("onnx")
    sizes = _sizes(model)
    constants = {one.name: one for one in model.graph.initializer}
    nodes, count = [], 0
    for node in model.graph.node:
        shape = sizes.get(node.input[0]) if node.input else None
        keeps = _mean_over_space(node, constants, onnx)
        if keeps is None or shape is None or len(shape) != 4 or 0 in shape:
            nodes.append(node)
            continue
        count += 1
        pooled = node.output[0] if keeps else f"{node.output[0]}/pooled"
        kernel = [shape[axis] for axis in _SPATIAL]
        name = node.name or node.output[0]
        nodes.append(onnx.helper.make_node("AveragePool", [node.input[0]], [pooled], name=name, kernel_shape=kernel))
        if not keeps:
            nodes.append(onnx.helper.make_node("Flatten", [pooled], [node.output[0]], name=f"{name}/flat", axis=1))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return count


def write_matmuls_as_gemms(model: Any) -> None:
    """Write products with constant weights (MatMul) as Gemm, in place.

    They become FULLY_CONNECTED, which has fast kernels everywhere. Of the BATCH_MATMUL that they would be otherwise,
    LiteRT's int8 kernel gives nothing but zeros where one side is constant.
    """
    onnx: Any = importlib.import_module("onnx")
    sizes = _sizes(model)
    constants = {one.name: one for one in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        shape = sizes.get(node.input[0]) if node.op_type == "MatMul" and node.input[0] not in constants else None
        weight = constants.get(node.input[1]) if shape else None
        if shape is None or weight is None or len(weight.dims) != 2 or len(shape) < 2 or 0 in shape:
            nodes.append(node)
            continue
        name = node.name or node.output[0]
        turned = onnx.numpy_helper.to_array(weight).T.copy()
        model.graph.initializer.append(onnx.numpy_helper.from_array(turned, f"{name}/rows"))
        flat = len(shape) == 2
        given, made = (node.input[0], node.output[0]) if flat else (f"{name}/flat", f"{name}/product")
        if not flat:
            nodes.append(_reshape(model, node.input[0], given, (-1, shape[-1]), onnx))
        nodes.append(onnx.helper.make_node("Gemm", [given, f"{name}/rows"], [made], name=name, transB=1))
        if not flat:
            nodes.append(_reshape(model, made, node.output[0], (*shape[:-1], turned.shape[0]), onnx))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _reshape(model: Any, given: str, made: str, shape: Sequence[int], onnx: Any) -> Any:
    sizes = onnx.helper.make_tensor(f"{made}/shape", onnx.TensorProto.INT64, [len(shape)], list(shape))
    model.graph.initializer.append(sizes)
    return onnx.helper.make_node("Reshape", [given, sizes.name], [made], name=f"{made}/reshape")


def _mean_over_space(node: Any, constants: dict[str, Any], onnx: Any) -> bool | None:
    """Whether a mean over height and width keeps its axes; None for everything else."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "GlobalAveragePool":
        return True
    if node.op_type != "ReduceMean":
        return None
    given = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    axes = given.get("axes")
    if len(node.input) > 1 and node.input[1] in constants:
        axes = onnx.numpy_helper.to_array(constants[node.input[1]]).tolist()
    if axes is None or sorted(axis % 4 for axis in axes) != list(_SPATIAL):
        return None
    return bool(given.get("keepdims", 1))


def _sizes(model: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by name; 0 stands for an axis that is not known."""
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    return {
        one.name: tuple(axis.dim_value for axis in one.type.tensor_type.shape.dim)
        for one in values
        if one.type.tensor_type.HasField("shape")
    }

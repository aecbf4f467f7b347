"""A model raised to a newer version of ONNX's own operators, which its nodes must be converted for one by one."""

from __future__ import annotations

import onnx

from compress.onnx_files.contents import opset_of
from compress.onnx_files.isolation import isolated
from compress.values.error_lines import one_line, root_cause
from targets.errors import MeasurementError, ModelError, QuantizeError

_IR_VERSION = 8
"""Of a converted file: the first that knows every operator version up to 15."""


_LAST_ASYMMETRIC = 10
"""The last whose Upsample and Resize know one way to place samples; the converter forgets to say which it was."""


def raised_opset(model: onnx.ModelProto, least: int, name: str) -> onnx.ModelProto:
    """``model`` itself if its opset is ``least`` or newer, else a copy converted to ``least``; node names are kept.

    ``name``: of the file, for messages. Raises QuantizeError, with the opset, where the converter cannot do it. Whether
    the converted model computes the same is for the caller to check.
    """
    version = opset_of(model)
    if version >= least:
        return model
    try:
        return converted_opset(model, least, _IR_VERSION)
    except (ModelError, MeasurementError) as error:
        raise QuantizeError(
            f"{name} is of opset {version}, {least} is needed, and it cannot be converted ({error}); export it anew "
            f"with opset {least} or newer"
        ) from None


@isolated("converting the opset of a model")
def converted_opset(model: onnx.ModelProto, opset: int, least_ir_version: int = 0) -> onnx.ModelProto:
    """A copy of ``model`` in another opset; raises ModelError where ONNX's converter, which is native code, fails."""
    from onnx import version_converter

    try:
        converted = version_converter.convert_version(model, opset)
        converted.ir_version = max(converted.ir_version, least_ir_version)
        if opset_of(model) <= _LAST_ASYMMETRIC:
            _keep_resizing(converted)
        onnx.checker.check_model(converted)
    except Exception as error:
        raise ModelError(one_line(root_cause(error), kind=True)) from None
    return converted


def _keep_resizing(model: onnx.ModelProto) -> None:
    """Let every Resize place its samples as it did before there was a choice: x / scale, rounded down."""
    for node in model.graph.node:
        if node.op_type == "Resize" and all(one.name != "coordinate_transformation_mode" for one in node.attribute):
            node.attribute.append(onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
            node.attribute.append(onnx.helper.make_attribute("nearest_mode", "floor"))

"""A model raised to a newer version of ONNX's own operators, which its nodes must be converted for one by one."""

from __future__ import annotations

import onnx

from compress.onnx_files.contents import opset_of
from compress.values.error_lines import one_line, root_cause
from targets.errors import QuantizeError

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
    from onnx import version_converter

    try:
        converted = version_converter.convert_version(model, least)
        converted.ir_version = max(converted.ir_version, _IR_VERSION)
        if version <= _LAST_ASYMMETRIC:
            _keep_resizing(converted)
        onnx.checker.check_model(converted)
    except Exception as error:
        raise QuantizeError(
            f"{name} is of opset {version}, {least} is needed, and it cannot be converted "
            f"({one_line(root_cause(error))}); export it anew with opset {least} or newer"
        ) from None
    return converted


def _keep_resizing(model: onnx.ModelProto) -> None:
    """Let every Resize place its samples as it did before there was a choice: x / scale, rounded down."""
    for node in model.graph.node:
        if node.op_type == "Resize" and all(one.name != "coordinate_transformation_mode" for one in node.attribute):
            node.attribute.append(onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
            node.attribute.append(onnx.helper.make_attribute("nearest_mode", "floor"))

"""What old runtimes know: the highest opset and IR version of a file, and a file brought within them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from compress.onnx_files.contents import opset_of
from compress.onnx_files.opsets import converted_opset
from targets.errors import MeasurementError, ModelError, TargetError
from targets.target import Capabilities


@dataclass(frozen=True)
class VersionLimits:
    """The highest opset and IR version a file may have: what the exporter gives, or less where a runtime is old."""

    opset: int = 20
    ir_version: int = 10


def limits_of(capabilities: Iterable[Capabilities]) -> VersionLimits:
    """The limits that a file must keep so that all targets with these capabilities load it."""
    limits = VersionLimits()
    for one in capabilities:
        limits = VersionLimits(min(limits.opset, one.opset), min(limits.ir_version, one.ir_version))
    return limits


def fit_to_limits(model: onnx.ModelProto, limits: VersionLimits) -> onnx.ModelProto:
    """``model`` within ``limits``: itself, changed in place, unless its opset is too high; then a converted copy.

    Raises TargetError where it needs operators that came later.
    """
    model.ir_version = min(model.ir_version, limits.ir_version)
    version = opset_of(model)
    if version <= limits.opset:
        return model
    try:
        converted = converted_opset(model, limits.opset)
    except (ModelError, MeasurementError) as error:
        raise TargetError(
            f"the network needs opset {version}, the target's runtime knows up to {limits.opset}, and it cannot be "
            f"converted ({error}); install a newer runtime there"
        ) from error
    converted.ir_version = min(converted.ir_version, limits.ir_version)
    return converted

"""LiteRT as a worker process loads it, here or on a board: files, what they execute, and what the runtime can do."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from targets.errors import ModelError
from targets.settings import Setting
from targets.target import Capabilities, Layer
from targets.tflite.operators import PRODUCTS
from targets.tflite.sessions import TfliteSession
from targets.tflite.tflite_files import IR_VERSION, OPSET, REFUSES, Operation, TfliteFile, read_tflite
from targets.workers.runtime import Runtime, Session

_KERNELS = {"xnnpack": "AUTO", "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "reference": "BUILTIN_REF"}
SETTINGS: Mapping[str, Setting] = {
    "threads": Setting(1, least=1, help="threads of one inference", counts_cores=True),
    "kernels": Setting("xnnpack", words=tuple(_KERNELS), help="which kernels compute"),
    "io": Setting("int8", words=("int8", "float"), help="what int8 files take and give"),
}


def litert_capabilities(settings: Mapping[str, Any]) -> Capabilities:
    """What LiteRT can do. ``channel_step`` is declared: XNNPACK computes blocks of 4 channels or more."""
    return Capabilities(
        precisions=("fp32", "int8", "int8-dynamic"),
        refuses=REFUSES,
        int8_format="tflite" if settings["io"] == "int8" else "tflite-float-io",
        channel_step=4,
        int8_step=4,
        opset=OPSET,
        ir_version=IR_VERSION,
    )


class LitertRuntime(Runtime):
    """LiteRT as a worker process loads it."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self._library: Any = importlib.import_module("ai_edge_litert.interpreter")

    def load(self, path: Path) -> Session:
        """Load a ``.tflite`` file; raises ModelError with one line where it cannot be."""
        return self.open_session(path)

    def open_session(self, path: Path) -> LitertSession:
        """The same, as the class that can be audited."""
        file = read_tflite(path)
        kind = getattr(self._library.OpResolverType, _KERNELS[self.settings["kernels"]])
        try:
            interpreter = self._library.Interpreter(
                str(path), num_threads=int(self.settings["threads"]), experimental_op_resolver_type=kind
            )
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            text = " ".join(str(error).split())[:250]
            remedy = "; kernels=builtin may" if "XNNPack" in text else ""
            raise ModelError(f"{path}: LiteRT cannot load it: {text}{remedy}") from None
        return LitertSession(path, file, interpreter)

    def audit(self, path: Path) -> list[Layer] | None:
        """The products of the file, who computes them, and whether in integers."""
        session = self.open_session(path)
        delegated = _delegated(session.interpreter._get_ops_details(), session.file)
        return [
            _layer(session.file, one, number in delegated)
            for number, one in enumerate(session.file.operations)
            if one.operator in PRODUCTS
        ]

    def facts(self) -> dict[str, Any]:
        """The installed version of LiteRT, as ``version``."""
        from importlib import metadata

        return {"version": metadata.version("ai-edge-litert")}


class LitertSession(TfliteSession):
    """A file that LiteRT has loaded; ``interpreter`` is the library's own object."""

    def __init__(self, path: Path, file: TfliteFile, interpreter: Any) -> None:
        super().__init__(path, file)
        self.interpreter = interpreter
        self._inputs = [port.index for port in file.inputs]
        self._outputs = [port.index for port in file.outputs]

    def invoke(self, tensors: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run one inference on arrays in the order of the inputs; the outputs that it gives are copies."""
        interpreter = self.interpreter
        for index, tensor in zip(self._inputs, tensors):
            interpreter.set_tensor(index, tensor)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in self._outputs]


def _delegated(details: Sequence[Mapping[str, Any]], file: TfliteFile) -> set[int]:
    """Numbers of the file's operations that a delegate computes: what lies between what it takes and what it gives."""
    makers = {index: number for number, one in enumerate(file.operations) for index in one.outputs}
    found: set[int] = set()
    for one in details:
        if one["op_name"] != "DELEGATE":
            continue
        taken, waiting = {int(index) for index in one["inputs"]}, [int(index) for index in one["outputs"]]
        while waiting:
            index = waiting.pop()
            number = makers.get(index)
            if number is None or number in found or index in taken:
                continue
            found.add(number)
            waiting += file.operations[number].inputs
    return found


def _layer(file: TfliteFile, one: Operation, delegated: bool) -> Layer:
    name = file.tensors[one.outputs[0]].name if one.outputs else one.operator
    operator = f"XNNPACK {one.operator}" if delegated else one.operator
    if file.integer(one):
        return Layer(name, operator, True)
    if file.hybrid(one):
        return Layer(name, operator, True, "its activations are quantized while it runs")
    weight = file.tensors[one.inputs[1]] if len(one.inputs) > 1 and one.inputs[1] >= 0 else None
    stored = weight is not None and not weight.constant
    return Layer(name, operator, False, "its weights are made floats while it runs" if stored else "float in the file")

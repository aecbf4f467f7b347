"""OpenVINO on this machine's CPU: the same ``.onnx`` files, int8 in QDQ form included.

One stream, latency hint, and the arithmetic said instead of inherited: on a CPU with bfloat16 OpenVINO's own default
is bf16, which is faster and computes something else than the file says.

A model is compiled for the very shapes it is run with. Left dynamic, an inference at batch 1 takes 5-12 us longer,
a fifth of a small keyword spotter's time; who deploys one fixes the shape as well.

Importing ``openvino`` reports the import to its maker and leaves an identifier in the home folder, unless the user
has opted out there. We do not let it: without the package ``openvino_telemetry`` it uses a stub of its own.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from targets.errors import ModelError, TargetError
from targets.machine import environment
from targets.model_files import onnx_graph
from targets.runtimes.openvino.audit import executed_layers
from targets.settings import Setting
from targets.target import Capabilities, Layer
from targets.workers.inputs import show
from targets.workers.local import LocalTarget
from targets.workers.runtime import Input, Runtime, Session

_DTYPES = {
    "f16": "float16", "f32": "float32", "f64": "float64", "boolean": "bool",
    "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64",
    "u8": "uint8", "u16": "uint16", "u32": "uint32", "u64": "uint64",
}  # fmt: skip
"""Without strings: passing one corrupts the process's memory (seen with 2026.4.1)."""
_KEPT_SHAPES = 4
"""Compiled variants of one model that are kept: scoring needs a full and a last batch."""

Shapes = tuple[tuple[int, ...], ...]


class OpenvinoCpu(LocalTarget):
    """OpenVINO on this machine's CPU.

    Files are compiled and run in worker processes; settings are ``threads`` and ``precision``.
    """

    base = "openvino-cpu"
    runtime = "targets.runtimes.openvino.openvino_cpu:OpenvinoRuntime"
    settings: ClassVar[Mapping[str, Setting]] = {
        "threads": Setting(1, least=1, help="threads of one inference", counts_cores=True),
        "precision": Setting("f32", words=("f32", "bf16"), help="arithmetic of what is not quantized"),
    }
    requires = ("openvino",)
    packages = ("openvino", "numpy")
    install = "pip install 'paretopress[openvino]'"

    def capabilities(self) -> Capabilities:
        """From the CPU's features; the opset is no limit, OpenVINO refuses operators but never a number.

        Dynamic int8 is not offered: it runs, but its products do not run in integers (a 256-1024-256 perceptron
        1.4 times as slow as in fp32, where ONNX Runtime is 2.9 times as fast). ``channel_step`` is the block of
        oneDNN's layouts. ``reduce_range`` as for ONNX Runtime: without VNNI, u8s8 products saturate.
        """
        self.facts()  # Refuses settings that this machine cannot honour, before anything is built on them.
        features = environment.cpu_features()
        arm = environment.cpu_architecture() == "aarch64"
        vnni = bool(features & {"avx512_vnni", "avx_vnni"})
        return Capabilities(
            precisions=("fp32", "int8", "mixed"),
            int8_format="s8s8" if arm else "u8s8",
            reduce_range=not arm and not vnni,
            channel_step=16 if "avx512f" in features else 8,
        )


class OpenvinoRuntime(Runtime):
    """OpenVINO as a worker process loads it; raises TargetError for bf16 on a CPU without it."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # importing it fails from here on
        # By name: the checkers of a checkout without the extra have nothing to say about it.
        openvino: Any = importlib.import_module("openvino")
        self._version = str(openvino.get_version())
        self._core = openvino.Core()
        able = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if self.settings["precision"] == "bf16" and "BF16" not in able:
            raise TargetError("target 'openvino-cpu': precision=bf16 needs a CPU with bfloat16; use precision=f32")

    def load(self, path: Path) -> Session:
        """Read a file and compile it for batch 1; raises ModelError with one line where it cannot be."""
        return OpenvinoSession(self, path)

    def audit(self, path: Path) -> list[Layer] | None:
        """The products of the graph that is compiled for a file; raises ModelError as loading and running do."""
        session = OpenvinoSession(self, path)
        return executed_layers(session.executed(), onnx_graph.read_graph(path.read_bytes()))

    def facts(self) -> dict[str, Any]:
        """The version of OpenVINO, with the number of its build."""
        return {"version": self._version}

    def read(self, path: Path) -> Any:
        """Read a file as a graph of OpenVINO's; raises ModelError with one line where it cannot be."""
        try:
            return self._core.read_model(str(path))
        except MemoryError:
            raise
        except Exception as error:
            raise ModelError(f"{path}: {explain(str(error))}") from None

    def compile(self, model: Any) -> Any:
        """The graph as something that can be asked; raises TargetError where fewer threads run than were asked for."""
        threads = int(self.settings["threads"])
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": self.settings["precision"],
            # The worker is already pinned, and moves away from CPUs that others use.
            "ENABLE_CPU_PINNING": False,
            "ENABLE_HYPER_THREADING": True,
        }
        compiled = self._core.compile_model(model, "CPU", options)
        used = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        if used != threads:
            raise TargetError(
                f"target 'openvino-cpu': threads={threads} is not possible; OpenVINO uses at most {used} here"
            )
        return compiled.create_infer_request()


class OpenvinoSession(Session):
    """A model, compiled for the shapes it was run with last."""

    def __init__(self, runtime: OpenvinoRuntime, path: Path) -> None:
        self._runtime = runtime
        self._path = path
        model = runtime.read(path)
        self.inputs = tuple(_input(path, port) for port in model.inputs)
        self._requests: dict[Shapes, Any] = {}
        shapes = tuple(tuple(1 if axis is None else axis for axis in item.shape) for item in self.inputs)
        if any(None in item.shape for item in self.inputs):
            # At batch 1 a model is measured, so compiling for it belongs to loading. One that has no such shape
            # gets its own at its first run, where the error, if it is one, comes back.
            with suppress(ModelError):
                self._compile(model, shapes)
        else:
            self._compile(model, shapes)

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """One inference, outputs copied; raises ModelError where OpenVINO refuses the shapes or fails."""
        request = self._request(feeds)
        try:
            # Inputs need no copy; outputs do, the next inference overwrites them.
            return list(request.infer(feeds, share_inputs=True).values())
        except MemoryError:
            raise
        except Exception as error:
            said = ", ".join(f"{name} {show(array.shape)}" for name, array in feeds.items())
            raise ModelError(f"{self._path}: cannot be run with {said}: {explain(str(error))}") from None

    def executed(self) -> Any:
        """The graph as it was compiled for batch 1; raises ModelError where there is no such shape."""
        shapes = tuple(tuple(1 if axis is None else axis for axis in item.shape) for item in self.inputs)
        request = self._requests.get(shapes) or self._compile(self._runtime.read(self._path), shapes)
        return request.get_compiled_model().get_runtime_model()

    def timed(self, feeds: dict[str, np.ndarray]) -> Callable[[], float | None]:
        """One inference of inputs that lie ready, in the seconds OpenVINO says, as its ``benchmark_app`` has it.

        Handing arrays over in Python takes some 50 us more, as long as a small network itself.
        """
        request = self._request(feeds)
        request.infer(feeds)  # copies the inputs, and leaves them there

        def once() -> float:
            request.infer(share_outputs=True)
            return float(request.latency) / 1e3

        return once

    def _request(self, feeds: dict[str, np.ndarray]) -> Any:
        shapes = tuple([feeds[item.name].shape for item in self.inputs])
        return self._requests.get(shapes) or self._compile(self._runtime.read(self._path), shapes)

    def _compile(self, model: Any, shapes: Shapes) -> Any:
        asked = {item.name: list(shape) for item, shape in zip(self.inputs, shapes)}
        try:
            if any(None in item.shape for item in self.inputs):
                model.reshape(asked)
            request = self._runtime.compile(model)
        except (MemoryError, TargetError):
            raise
        except Exception as error:
            said = ", ".join(f"{name} {show(shape)}" for name, shape in asked.items())
            raise ModelError(f"{self._path}: cannot be compiled for {said}: {explain(str(error))}") from None
        if len(self._requests) >= _KEPT_SHAPES:
            self._requests.clear()
        self._requests[shapes] = request
        return request


def _input(path: Path, port: Any) -> Input:
    # An input that goes straight to an output carries both names.
    own = port.get_node().get_friendly_name()
    name = own if own in port.names else port.any_name
    kind = port.element_type.get_type_name()
    if kind not in _DTYPES:
        raise ModelError(f"{path}: input {name!r} has type {kind}, which cannot be passed to OpenVINO as an array")
    if port.partial_shape.rank.is_dynamic:
        raise ModelError(f"{path}: input {name!r} does not say how many axes it has; export it with a shape")
    shape = tuple(axis.get_length() if axis.is_static else None for axis in port.partial_shape)
    return Input(name, _DTYPES[kind], shape)


def explain(text: str) -> str:
    """OpenVINO's complaint as one short line: without the places in its own source where it was passed on."""
    text = " ".join(text.split())
    if "Unable to read the model" in text or "can't be parsed" in text:
        return "truncated or not an ONNX file"
    # The first wording is that of 2026, the second that of 2025.
    if found := re.search(
        r"(?:No conversion rule found for|not support the following ONNX) operations: (.+?)(?: --|$)", text
    ):
        operators = re.sub(r"-(\d+)", r" (opset \1)", found.group(1))
        return f"operator {operators} is not supported by openvino"
    text = re.sub(r"(?:Exception from|failed at) \S+:\d+: ?", "", text)
    return text if len(text) <= 300 else text[:299] + "…"

"""ONNX Runtime on this machine's CPU: the default target.

One thread, sequential, all graph optimizations (without layout optimization convolutions are 2.2-2.8 times
slower), no spinning between runs. Models are run with ``session.run(None, feeds)``, as most programs do.

Since 1.29 its Linux wheels send names and hashes of models to their maker and keep an identifier in the home folder.
That is switched off here, unless the user has said otherwise; it would also run beside what is timed.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from targets.errors import ModelError
from targets.machine import environment
from targets.model_files import onnx_graph
from targets.runtimes.ort.audit import executed_layers
from targets.runtimes.ort.refusals import refusal
from targets.settings import Setting
from targets.target import Capabilities, Layer
from targets.workers.inputs import show
from targets.workers.local import LocalTarget
from targets.workers.runtime import Input, Runtime, Session

_LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "none": "ORT_DISABLE_ALL",
}
_DTYPES = {
    "float": "float32", "double": "float64", "float16": "float16", "bool": "bool", "string": "str",
    "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64",
    "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64",
    "complex64": "complex64", "complex128": "complex128",
}  # fmt: skip


class OrtCpu(LocalTarget):
    """ONNX Runtime on this machine's CPU.

    Files are loaded and run in worker processes; settings are ``threads``, ``opt`` and ``spinning``.
    """

    base = "ort-cpu"
    runtime = "targets.runtimes.ort.ort_cpu:OrtRuntime"
    settings: ClassVar[Mapping[str, Setting]] = {
        "threads": Setting(1, least=1, help="threads of one inference", counts_cores=True),
        "opt": Setting("all", words=tuple(_LEVELS), help="graph optimization level", tried=("all", "extended")),
        "spinning": Setting(0, least=0, most=1, help="whether idle threads burn CPU between runs", tried=(0, 1)),
    }
    requires = ("onnxruntime",)
    packages = ("onnxruntime", "numpy")
    install = "pip install onnxruntime"

    def capabilities(self) -> Capabilities:
        """From the CPU's features and the installed onnxruntime.

        ``channel_step`` is declared, not measured: the block of MLAS's NCHWc layout (16 floats with AVX-512,
        8 with AVX2, 4 with NEON). ``reduce_range`` is set on x86 without VNNI, whose u8s8 kernels saturate.
        """
        features = environment.cpu_features()
        facts = self.facts()
        arm = environment.cpu_architecture() == "aarch64"
        vnni = bool(features & {"avx512_vnni", "avx_vnni"})
        return Capabilities(
            int8_format="s8s8" if arm else "u8s8",
            reduce_range=not arm and not vnni,
            channel_step=4 if arm else 16 if "avx512f" in features else 8,
            opset=facts["opset"],
            ir_version=facts["ir_version"],
        )


class OrtRuntime(Runtime):
    """ONNX Runtime as a worker process loads it: sessions with this target's settings."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        import onnxruntime

        super().__init__(settings)
        self._onnxruntime = onnxruntime
        # The library's one-time costs are then not charged to whichever model comes first.
        onnxruntime.InferenceSession(identity_model(), self.session_options(), providers=["CPUExecutionProvider"])

    def session_options(self) -> Any:
        """The library's options for a session: optimization level, threads, one node after the other."""
        options = self._onnxruntime.SessionOptions()
        threads = int(self.settings["threads"])
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = self._onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = getattr(
            self._onnxruntime.GraphOptimizationLevel, _LEVELS[self.settings["opt"]]
        )
        options.log_severity_level = 4
        if threads > 1:
            options.add_session_config_entry("session.intra_op.allow_spinning", str(self.settings["spinning"]))
        return options

    def load(self, path: Path) -> Session:
        """Load a file; raises ModelError with one line where it cannot be."""
        return OrtSession(self.open_session(path, self.session_options()), path)

    def open_session(self, path: Path, options: Any) -> Any:
        """The library's session of a file; raises ModelError with one line where it cannot be loaded."""
        try:
            return self._onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except MemoryError:
            raise
        except Exception as error:
            raise ModelError(f"{path}: {explain(str(error))}") from None

    def audit(self, path: Path) -> list[Layer] | None:
        """The products of the graph that a session of ours runs for a file; raises ModelError as ``load`` does."""
        with tempfile.TemporaryDirectory(prefix="paretopress-") as folder:
            written = Path(folder) / "optimized.onnx"
            options = self.session_options()
            options.optimized_model_filepath = str(written)
            # The weights go to a file of their own: the graph is then small, however large the model.
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
            self.open_session(path, options)
            optimized = onnx_graph.read_graph(written.read_bytes())
        fuses = self.settings["opt"] in ("all", "extended")
        return executed_layers(optimized, onnx_graph.read_graph(path.read_bytes()), fuses=fuses)

    def facts(self) -> dict[str, Any]:
        """Version, highest opset and IR version: asked by offering too high ones and reading the refusal."""
        return {
            "version": self._onnxruntime.__version__,
            "opset": self._limit(identity_model(opset=999), r"till opset (\d+)", 20),
            "ir_version": self._limit(identity_model(ir_version=999), r"max supported IR version: (\d+)", 10),
        }

    def _limit(self, model: bytes, pattern: str, otherwise: int) -> int:
        try:
            self._onnxruntime.InferenceSession(model, self.session_options(), providers=["CPUExecutionProvider"])
        except Exception as error:
            return read_limit(str(error), pattern, otherwise)
        return otherwise


class OrtSession(Session):
    """A model that ONNX Runtime has loaded; ``session`` is the library's own object."""

    def __init__(self, session: Any, path: Path) -> None:
        self.session = session
        self._path = path
        self.inputs = tuple(_input(path, item) for item in session.get_inputs())

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """One inference; raises ModelError where ONNX Runtime refuses the inputs or fails."""
        try:
            outputs: list[np.ndarray] = self.session.run(None, feeds)
        except MemoryError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{name} {show(array.shape)}" for name, array in feeds.items())
            raise ModelError(f"{self._path}: cannot be run with {shapes}: {explain(str(error))}") from None
        return outputs


def _input(path: Path, item: Any) -> Input:
    found = re.fullmatch(r"tensor\((\w+)\)", item.type)
    if found is None or found.group(1) not in _DTYPES:
        raise ModelError(f"{path}: input {item.name!r} has type {item.type}, which cannot be passed as an array")
    shape = tuple(axis if isinstance(axis, int) and axis >= 0 else None for axis in item.shape)
    return Input(item.name, _DTYPES[found.group(1)], shape)


def read_limit(refusal: str, pattern: str, otherwise: int) -> int:
    """The number that ``pattern`` finds in a refusal of something too new; ``otherwise`` where there is none."""
    found = re.search(pattern, refusal)
    return int(found.group(1)) if found else otherwise


def explain(text: str) -> str:
    """ONNX Runtime's complaint as one short line."""
    text = " ".join(text.split())
    if any(words in text for words in ("INVALID_PROTOBUF", "protobuf parsing failed", "No graph was found")):
        return "truncated or not an ONNX file"
    if refused := refusal(text, "onnxruntime", "onnxruntime"):
        return refused
    if found := re.search(r"Could not find an implementation for (\S+?)\((\d+)\) node", text):
        return f"operator {found.group(1)} (opset {found.group(2)}) has no CPU kernel for these types in onnxruntime"
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"^Load model from .*? failed:\s*", "", text)
    return text if len(text) <= 300 else text[:299] + "…"


def identity_model(opset: int = 13, ir_version: int = 7) -> bytes:
    """A one-node model, ``y = Identity(x)``, as protobuf bytes: onnx itself need not be installed."""

    def number(field: int, value: int) -> bytes:
        return _varint(field << 3) + _varint(value)

    def nested(field: int, value: bytes) -> bytes:
        return _varint(field << 3 | 2) + _varint(len(value)) + value

    def value_info(name: bytes) -> bytes:
        shape = nested(1, number(1, 1))
        return nested(1, name) + nested(2, nested(1, number(1, 1) + nested(2, shape)))

    node = nested(1, b"x") + nested(2, b"y") + nested(4, b"Identity")
    graph = nested(1, node) + nested(2, b"g") + nested(11, value_info(b"x")) + nested(12, value_info(b"y"))
    return number(1, ir_version) + nested(7, graph) + nested(8, nested(1, b"") + number(2, opset))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])

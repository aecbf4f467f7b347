"""TensorFlow Lite Micro on this machine: the interpreter that microcontrollers run, with its reference kernels.

What it says is exact and the same every time: outputs, bit for bit those of a microcontroller, and the arena, the
memory that all tensors and the interpreter's own tables take. It says nothing of speed. The arena is that of a 64-bit
host: a Cortex-M, with pointers of 32 bits and kernels that want scratch memory of their own, needs another one (22,916
bytes where this says 24,384, for one keyword spotter); networks are ordered alike.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from targets.errors import MeasurementError, ModelError
from targets.settings import Setting
from targets.target import Capabilities, Layer, Measurement, Protocol, Watch
from targets.tflite import installation
from targets.tflite.native_output import heard
from targets.tflite.operators import PRODUCTS
from targets.tflite.sessions import TfliteSession
from targets.tflite.tflite_files import IR_VERSION, OPSET, REFUSES, TfliteFile, read_tflite
from targets.tflite.tflite_target import TfliteTarget
from targets.workers.inputs import make_feeds
from targets.workers.local import check_request, given
from targets.workers.runtime import Runtime, Session

_ARENAS = (1 << 24, 1 << 28)
"""Bytes that are tried; what is not used costs nothing but this machine's memory."""
_TOTAL = re.compile(r"Arena allocation total (\d+) bytes")
_HYBRID = "floats meet stored weights in {}, which TensorFlow Lite Micro does not compute"


class Tflm(TfliteTarget):
    """TensorFlow Lite Micro on this machine; its arena is that of a 64-bit host, and nothing is timed."""

    base = "tflm"
    runtime = "targets.runtimes.tflm.tflm:TflmRuntime"
    packages = ("tflite-micro", "onnx2tf", "ai-edge-quantizer")
    settings: ClassVar[Mapping[str, Setting]] = {}
    counted = True
    deterministic = True
    probed = False

    @property
    def cost_quantity(self) -> str:
        """Nothing is timed or counted: memory is what a microcontroller has least of."""
        return "memory"

    @staticmethod
    def missing() -> str | None:
        """What has to be installed before this target can be used, in words; None where nothing is missing."""
        return installation.missing_tflm()

    def capabilities(self) -> Capabilities:
        """Every channel costs: the arena has no blocks."""
        return Capabilities(
            precisions=("fp32", "int8"),
            refuses=(*REFUSES, "fp16", "int8-weights", "int8-dynamic"),
            int8_format="tflite",
            opset=OPSET,
            ir_version=IR_VERSION,
        )

    def describe(self) -> dict[str, Any]:
        """Interpreter and converter; nothing of the machine, which decides nothing."""
        found = super().describe()
        return {**found, "machine": {"architecture": "64-bit host", "cpu": "TensorFlow Lite Micro"}}

    def measure(
        self,
        models: Sequence[Path],
        *,
        inputs: Mapping[str, np.ndarray] | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        protocol: Protocol | None = None,
        watch: Watch | None = None,
    ) -> list[Measurement]:
        """The arena of each, in bytes as ``memory``, after one inference (see ``Target``)."""
        paths = [Path(model) for model in models]
        check_request(paths, protocol or Protocol())
        known = given(inputs, shapes)
        found, names = [], list[str]()
        with self.lock:
            heard = self.listener(watch, 1, 1)
            for path in paths:
                header = {
                    "operation": "call",
                    "function": "targets.runtimes.tflm.tflm:measure_arena",
                    "arguments": {"model": str(self.taken(path).absolute()), "shapes": known.shapes},
                    "doing": f"running {path}",
                }
                answer = self.ask_scorer(header, known.arrays, heard).header
                names += answer["inputs"]
                found.append(Measurement(path, self.name, path.stat().st_size, memory=int(answer["arena"])))
        known.check_names(names)
        return found


class TflmRuntime(Runtime):
    """TensorFlow Lite Micro as a worker process loads it."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self._library: Any = importlib.import_module("tflite_micro").runtime

    def load(self, path: Path) -> Session:
        """Load a ``.tflite`` file; raises ModelError with one line where it cannot be."""
        return self.open_session(path)

    def open_session(self, path: Path) -> TflmSession:
        """The same, as the class that knows its arena."""
        file = read_tflite(path)
        refused = file.first_hybrid
        if refused is not None:
            raise ModelError(f"{path}: {_HYBRID.format(refused)}; give a file in fp32 or in int8 throughout")
        said = ""
        for arena in _ARENAS:
            try:
                with heard(2) as native:
                    interpreter = self._library.Interpreter.from_file(str(path), arena_size=arena)
                return TflmSession(path, file, interpreter)
            except (RuntimeError, ValueError) as error:
                said = _why(native.text) or " ".join(str(error).split())[:250]
        raise ModelError(f"{path}: TensorFlow Lite Micro cannot load it: {said}")

    def audit(self, path: Path) -> list[Layer] | None:
        """The products of the file, which are computed as they stand there."""
        file = read_tflite(path)
        return [
            Layer(file.tensors[one.outputs[0]].name, one.operator, file.integer(one),
                  "" if file.integer(one) else "float in the file")
            for one in file.operations
            if one.operator in PRODUCTS
        ]  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """The installed version of the interpreter, as ``version``."""
        from importlib import metadata

        return {"version": metadata.version("tflite-micro")}


class TflmSession(TfliteSession):
    """A file that the interpreter has loaded."""

    def __init__(self, path: Path, file: TfliteFile, interpreter: Any) -> None:
        super().__init__(path, file)
        self._interpreter = interpreter
        self._inputs = [port.position for port in file.inputs]
        self._outputs = [port.position for port in file.outputs]

    def invoke(self, tensors: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run one inference on arrays in the order of the inputs; the outputs that it gives are copies."""
        for position, tensor in zip(self._inputs, tensors):
            self._interpreter.set_input(tensor, position)
        self._interpreter.invoke()
        return [np.array(self._interpreter.get_output(position)) for position in self._outputs]

    def arena(self) -> int:
        """Bytes of the arena that are used, after an inference; raises MeasurementError where it does not say."""
        with heard(2) as native:
            self._interpreter.print_allocations()
        found = _TOTAL.search(native.text)
        if found is None:
            raise MeasurementError("TensorFlow Lite Micro does not say what its arena holds; its version does not fit")
        return int(found.group(1))


def measure_arena(
    arguments: Mapping[str, Any], arrays: Mapping[str, np.ndarray], say: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """In a worker process: the arena of a file after one inference, and the names of its inputs."""
    path = Path(arguments["model"])
    say(f"loading {path}")
    session = TflmRuntime({}).open_session(path)
    say(f"running {path}")
    session.run(make_feeds(session.inputs, arrays, arguments["shapes"], seed=0))
    return {"arena": session.arena(), "inputs": [item.name for item in session.inputs]}, {}


def _why(text: str) -> str:
    """What the interpreter wrote before it gave up: its first complaint."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    missing = next((line for line in lines if "opcode" in line.lower() or "op " in line.lower()), None)
    return (missing or (lines[0] if lines else ""))[:250]

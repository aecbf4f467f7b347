"""Arm's Ethos-U NPUs, as Arm's compiler Vela models them: cost is cycles of the NPU, never a time.

An NPU computes in integers, so cost is that of an int8 ``.tflite`` file. Vela compiles it, schedules it and adds up
what each step takes; nothing is executed, and the same file has the same figures everywhere and always. What it cannot
place is left to the CPU beside the NPU, is named, and is not in the cycles.

- ``cycles`` of one inference on the NPU, for memory as fast as ``variants.py`` says;
- ``memory``: the SRAM that Vela lays tensors out in;
- ``flash``: the compiled file, which holds commands for the NPU and compressed weights.

Vela executes nothing: outputs are those of TensorFlow Lite Micro's reference kernels, which the NPU is built to equal.

A float ``.onnx`` file does not run on the NPU. Its cost is that of the int8 file that is made of it, so that networks
can be compared with the one they came from; its outputs are its own, in floats.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from targets.documents import file_hash
from targets.errors import ModelError
from targets.ethos_u import vela_installation
from targets.ethos_u.variants import CONFIGURATION, MEMORY_MODE, VARIANTS
from targets.settings import Setting
from targets.target import Capabilities, Layer, Measurement, Protocol, Watch
from targets.tflite import conversion
from targets.tflite.installation import Say
from targets.tflite.tflite_files import IR_VERSION, OPSET, REFUSES, SUFFIX, TfliteFile, read_tflite
from targets.tflite.tflite_target import TfliteTarget
from targets.workers.inputs import make_feeds
from targets.workers.local import check_request, given
from targets.workers.process import Launch

_FLOATS = (*REFUSES, "fp32", "fp16", "int8-weights", "int8-dynamic")
"""What computes in floats, wholly or in part."""


@dataclass(frozen=True)
class Compiled:
    """What Vela says of a file: cycles, bytes of SRAM, bytes of the compiled file."""

    cycles: int
    sram: int
    flash: int
    cpu: Mapping[str, str]
    """Of every operator that is left to the CPU the name of its output, and why, where Vela says so."""
    file: TfliteFile
    """What was compiled."""

    def why(self, operator: str, output: str) -> str:
        """Why an operator is not on the NPU, in words; empty where it is."""
        if output not in self.cpu:
            return ""
        said = f" ({self.cpu[output]})" if self.cpu[output] else ""
        return f"{operator} on the CPU{said}"

    @property
    def left(self) -> tuple[str, ...]:
        """The operators that are left to the CPU, each once."""
        found = (one.operator for one in self.file.operations if self.file.tensors[one.outputs[0]].name in self.cpu)
        return tuple(sorted(set(found)))


class EthosU(TfliteTarget):
    """Arm Ethos-U NPU as Arm's compiler Vela models it; counts cycles, SRAM and flash, of int8 files."""

    base = "ethos-u"
    runtime = "targets.runtimes.tflm.tflm:TflmRuntime"
    packages = ("tflite-micro", "onnx2tf", "ai-edge-quantizer")
    settings: ClassVar[Mapping[str, Setting]] = {
        "variant": Setting("u55-128", words=tuple(VARIANTS), help="family, and products of 8 bits in a cycle"),
    }
    install: ClassVar[str | None] = vela_installation.COMMAND
    patience = 600.0  # of a large network Vela says nothing for minutes
    counted = True
    deterministic = True
    cost_by_weights = True
    has_npu = True

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.variant = VARIANTS[self.values["variant"]]
        self._known: dict[str, Compiled] = {}
        self._left: set[str] = set()
        self._stood_in = self._ran = False

    @property
    def cost_quantity(self) -> str:
        """Cycles stand for speed; what one takes is the device's affair."""
        return "cycles"

    @staticmethod
    def missing() -> str | None:
        """What has to be installed before this target can be used, in words; None where nothing is missing."""
        return vela_installation.missing()

    @staticmethod
    def bring(say: Say) -> Path:
        """Install what pip alone cannot bring; returns where it is. Raises TargetUnavailable."""
        return vela_installation.install_vela(say)

    def capabilities(self) -> Capabilities:
        """Integers alone; steps are found by measuring."""
        return Capabilities(
            precisions=("int8",), refuses=_FLOATS, int8_format="tflite", opset=OPSET, ir_version=IR_VERSION
        )

    def describe(self) -> dict[str, Any]:
        """The NPU, its memory, compiler and converter; nothing of the machine, which decides nothing."""
        found = super().describe()
        return {
            **found,
            "packages": {**vela_installation.VELA, **found["packages"]},
            "model": {"configuration": CONFIGURATION, "system": self.variant.system, "memory": MEMORY_MODE},
            "machine": {"architecture": self.variant.family, "cpu": f"{self.variant.title} (modelled)"},
        }

    def remarks(self) -> tuple[str, ...]:
        """Whose outputs were given, that a float file was measured as another, and what is left to the CPU, if so."""
        found = []
        if self._stood_in:
            found.append(
                f"{self.name}: a float file does not run on the NPU: its cycles, memory and flash are those of an int8 "
                "file made of it, its outputs are its own"
            )
        if self._left:
            found.append(
                f"{self.name}: left to the CPU beside the NPU, and not in the cycles: {', '.join(sorted(self._left))}"
            )
        if self._ran:
            found.append(
                f"{self.name}: outputs, and so quality, are those of TensorFlow Lite Micro's reference kernels on the "
                "same file, since Vela executes nothing"
            )
        return tuple(found)

    def measure(
        self,
        models: Sequence[Path],
        *,
        inputs: Mapping[str, np.ndarray] | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        protocol: Protocol | None = None,
        watch: Watch | None = None,
    ) -> list[Measurement]:
        """Cycles of each on the NPU, and what it needs of SRAM and flash, as Vela models them (see ``Target``)."""
        paths = [self.for_us(model) for model in models]
        check_request(paths, protocol or Protocol())
        known = given(inputs, shapes)
        found, names = [], list[str]()
        for path in paths:
            taken = self.taken(path)
            items = read_tflite(taken).takes
            names += [item.name for item in items]
            made = self._compiled(path, taken, make_feeds(items, known.arrays, known.shapes, seed=0), watch)
            found.append(Measurement(
                path, self.name, path.stat().st_size, cycles=made.cycles, memory=made.sram, flash=made.flash,
                stand_in=path.suffix != SUFFIX,
            ))  # fmt: skip
        known.check_names(names)
        return found

    def run(self, model: Path, inputs: Mapping[str, np.ndarray], *, batch: int = 64) -> list[np.ndarray]:
        """Outputs for all samples, of TensorFlow Lite Micro on this machine (see ``Target``)."""
        self._ran = True
        return super().run(model, inputs, batch=batch)

    def audit(self, model: Path) -> tuple[Layer, ...] | None:
        """All operators of an int8 file, and which of them run on the NPU; None of a float file (see ``Target``)."""
        path = self.for_us(model)
        if path.suffix != SUFFIX:
            return None
        made = self._compiled(path, path, {}, None)
        return tuple([
            Layer(name, one.operator, made.file.integer(one), made.why(one.operator, name), on_npu=name not in made.cpu)
            for one in made.file.operations
            for name in [made.file.tensors[one.outputs[0]].name]
        ])  # fmt: skip

    def launch(self) -> Launch:
        """How a worker is started: with the environment's Python, and Vela beside it. Raises TargetUnavailable."""
        return vela_installation.launch()

    def _compiled(self, path: Path, taken: Path, feeds: Mapping[str, np.ndarray], watch: Watch | None) -> Compiled:
        """What Vela says of a file; of a float one that was converted (``taken``), of int8 calibrated on ``feeds``."""
        floats = path.suffix != SUFFIX
        parts = [file_hash(taken), *(f"{name}{array.tobytes()!r}" for name, array in feeds.items() if floats)]
        key = hashlib.sha256("".join(parts).encode()).hexdigest()
        with self.lock:
            if key not in self._known:
                with tempfile.TemporaryDirectory(prefix="paretopress-") as folder:
                    if floats:
                        taken = conversion.convert(path, "int8", feeds, Path(folder) / f"{path.stem}{SUFFIX}").path
                    self._known[key] = self._compile(path, taken, watch)
            made = self._known[key]
        self._stood_in |= floats
        self._left |= set(made.left)
        return made

    def _compile(self, path: Path, taken: Path, watch: Watch | None) -> Compiled:
        file = read_tflite(taken)
        mixed = file.first_hybrid
        if mixed is not None:
            raise ModelError(f"{path}: floats meet stored weights in {mixed}, which no NPU computes; give it in int8")
        header = {
            "operation": "call",
            "function": "targets.ethos_u.compiling:compile_file",
            "arguments": {"model": str(taken.absolute()), "variant": self.values["variant"]},
            "doing": f"compiling {path}",
        }
        try:
            answer = self.ask_scorer(header, None, self.listener(watch, 1, 1)).header
        except ModelError as error:
            raise ModelError(str(error).replace(str(taken.absolute()), str(path))) from None
        found = Compiled(answer["cycles"], answer["sram"], answer["flash"], dict(answer["cpu"]), file)
        if len(found.cpu) == len(file.operations) or not found.cycles:
            raise ModelError(
                f"{path}: none of its operators runs on {self.variant.title} ({', '.join(found.left[:3])}), which "
                "computes in integers: give an int8 .tflite file, or the float .onnx file that one is made of"
            )
        return found

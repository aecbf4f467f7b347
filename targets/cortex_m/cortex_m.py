"""TensorFlow Lite Micro with CMSIS-NN on an emulated Cortex-M: cost is instructions, memory and flash, never a time.

The interpreter and its kernels are the real ones, compiled for the core, and run under ``qemu-system-arm``. Counted
are the instructions of one inference; what an instruction costs in cycles depends on the device and its memory. The
same file has the same counts everywhere and always; from one input to another they move by about 0.02 %.

- ``memory`` is what the program needs of RAM: the arena, as the interpreter says it on that core; the deepest that the
  stack got; and the static data of a program with the operators of this file.
- ``flash`` is the file and the code of that program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from targets.cortex_m import cortex_installation
from targets.cortex_m.chips import CHIPS
from targets.cortex_m.cores import CORES
from targets.cortex_m.cortex_installation import COMMAND
from targets.cortex_m.emulator import Emulator, OperatorCount, Run, execute
from targets.cortex_m.operators import REGISTERED
from targets.cortex_m.sessions import EmulatedSession
from targets.cortex_m.sources import REPOSITORIES
from targets.errors import ModelError, TargetError
from targets.settings import Setting, canonical_name, checked_settings
from targets.target import Capabilities, Estimate, Layer, Measurement, Protocol, Target, Watch
from targets.tflite import conversion, installation
from targets.tflite.operators import PRODUCTS
from targets.tflite.tflite_files import IR_VERSION, OPSET, REFUSES, SUFFIX, TfliteFile, read_tflite
from targets.workers.inputs import join, make_feeds, run_batches
from targets.workers.local import check_request, given, pieces

_AT_ONCE = 256
"""Samples in one run of the emulator: few enough that a slow network is done in minutes."""
_NO_CHIP = "any"
_HYBRID = (*REFUSES, "fp16", "int8-weights", "int8-dynamic")
"""Floats that meet stored integers: the interpreter has no kernels for them."""


class CortexM(Target):
    """TensorFlow Lite Micro on an emulated Cortex-M; counts instructions, RAM and flash."""

    base = "cortex-m"
    settings: ClassVar[Mapping[str, Setting]] = {
        "cpu": Setting("m4", words=tuple(CORES), help="emulated core"),
        "chip": Setting(_NO_CHIP, words=(_NO_CHIP, *CHIPS), help="microcontroller whose RAM and flash are limits"),
    }
    requires: ClassVar[tuple[str, ...]] = ()
    install: ClassVar[str | None] = COMMAND
    built_of_sources = True
    counted = True
    deterministic = True
    slow_to_load = True
    probed = False

    def __init__(self, **settings: Any) -> None:
        self.values = checked_settings(self.base, self.settings, settings)
        self.chip = CHIPS.get(self.values["chip"])
        if self.chip is not None:
            if self.values["cpu"] not in (self.settings["cpu"].default, self.chip.cpu):
                raise TargetError(
                    f"target {self.base!r}: {self.values['chip']} has the core {self.chip.cpu}, not "
                    f"{self.values['cpu']}; leave cpu out"
                )
            self.values["cpu"] = self.chip.cpu
        self.name = canonical_name(self.base, self.settings, self.values)
        self.core = CORES[self.values["cpu"]]

    @staticmethod
    def missing() -> str | None:
        """What has to be installed before this target can be used, in words; None where nothing is missing."""
        return cortex_installation.missing()

    @staticmethod
    def bring(say: cortex_installation.Say, archive: Path | None = None) -> Path:
        """Install what pip alone cannot bring; returns where it is. Raises TargetUnavailable."""
        return cortex_installation.install_interpreter(say, archive)

    @property
    def limits(self) -> dict[str, int]:
        """What the chip has, in bytes, by the quantity that it limits; empty where no chip was named."""
        return {} if self.chip is None else {"memory": self.chip.ram, "size": self.chip.flash}

    def capabilities(self) -> Capabilities:
        """Every channel costs; int8 is what the kernels are made for, and floats run too."""
        return Capabilities(
            precisions=("fp32", "int8"), refuses=_HYBRID, int8_format="tflite", opset=OPSET, ir_version=IR_VERSION
        )

    def describe(self) -> dict[str, Any]:
        """Core, sources, compiler, emulator and converter; nothing of the machine, which decides nothing."""
        converter = installation.manifest() or {"packages": {}}
        built = {one.name: one.commit[:12] for one in (REPOSITORIES["tflm"], REPOSITORIES["cmsis_nn"])}
        return {
            "target": self.name,
            "settings": dict(self.values),
            "packages": {name.partition("/")[2]: commit for name, commit in built.items()},
            "conversion": {"version": conversion.VERSION, "packages": dict(converter["packages"])},
            "machine": {"architecture": "armv7-m" if self.core.library == "m4" else "armv8.1-m",
                        "cpu": f"{self.core.title} (emulated)"},
            "installation": cortex_installation.identity(cortex_installation.installed()),
        }  # fmt: skip

    def convert(self, model: Path, precision: str, samples: Mapping[str, np.ndarray], made: Path) -> Path:
        """Write the ``.tflite`` file of a float ``.onnx`` file (see ``Target``)."""
        return conversion.convert(model, precision, samples, made).path

    def measure(
        self,
        models: Sequence[Path],
        *,
        inputs: Mapping[str, np.ndarray] | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        protocol: Protocol | None = None,
        watch: Watch | None = None,
    ) -> list[Measurement]:
        """Instructions of one inference of each, and what it needs of RAM and flash (see ``Target``)."""
        paths = [Path(model) for model in models]
        check_request(paths, protocol or Protocol())
        known = given(inputs, shapes)
        found, names = [], list[str]()
        for path in paths:
            taken, file = self._read(path)
            session = self._session(taken, file)
            names += [item.name for item in session.inputs]
            if watch is not None:
                watch(Estimate(self.name, f"running {path}"))
            _, sample = session.samples(make_feeds(session.inputs, known.arrays, known.shapes, seed=0))
            found.append(self._measurement(path, taken, file, execute(self._emulator(), taken, sample)))
        known.check_names(names)
        return found

    def _measurement(self, path: Path, taken: Path, file: TfliteFile, run: Run) -> Measurement:
        needs = cortex_installation.sizes(cortex_installation.installed(), self.values["cpu"], file.operators)
        return Measurement(
            path, self.name, path.stat().st_size,
            instructions=run.instructions[0],
            memory=run.arena + run.stack + needs.static,
            flash=taken.stat().st_size + needs.code,
        )  # fmt: skip

    def run(self, model: Path, inputs: Mapping[str, np.ndarray], *, batch: int = 64) -> list[np.ndarray]:
        """Outputs for all samples, which run in the emulator (see ``Target``)."""
        if batch < 1:
            raise TargetError(f"batch={batch} is not allowed; it must be 1 or more")
        taken, file = self._read(Path(model))
        session = self._session(taken, file)
        arrays = {name: np.asarray(array) for name, array in inputs.items()}
        parts, counts = [], []
        for piece in pieces(arrays, _AT_ONCE):
            parts.append(run_batches(session, piece, _AT_ONCE))
            counts.append(len(next(iter(piece.values()))))
        return join(parts, counts)

    def audit(self, model: Path) -> tuple[Layer, ...] | None:
        """The products of the file, with the instructions that each executes (see ``Target``)."""
        path = Path(model)
        file = self._read(path)[1]
        found = zip(file.operations, self.count_operators(path), strict=True)
        return tuple([
            Layer(file.tensors[one.outputs[0]].name, one.operator, file.integer(one),
                  "" if file.integer(one) else "float in the file", counted.instructions)
            for one, counted in found
            if one.operator in PRODUCTS
        ])  # fmt: skip

    def count_operators(self, model: Path) -> tuple[OperatorCount, ...]:
        """The instructions of every operator of a file in one inference, in the order in which they run."""
        taken, file = self._read(Path(model))
        session = self._session(taken, file)
        _, sample = session.samples(make_feeds(session.inputs, {}, {}, seed=0))
        return execute(self._emulator(), taken, sample, watch=True).operators

    def _read(self, path: Path) -> tuple[Path, TfliteFile]:
        """The ``.tflite`` file of a model, and what stands in it; raises ModelError for what the interpreter lacks."""
        taken = path if path.suffix == SUFFIX else conversion.float_file(path).path
        file = read_tflite(taken)
        lacking = [name for name in file.operators if name not in REGISTERED]
        if lacking:
            raise ModelError(
                f"{path}: TensorFlow Lite Micro has no {', '.join(lacking)}; use operators it has, or another target"
            )
        mixed = file.first_hybrid
        if mixed is not None:
            raise ModelError(
                f"{path}: floats meet stored weights in {mixed}, which TensorFlow Lite Micro does not compute; give a "
                "file in fp32 or in int8 throughout"
            )
        return taken, file

    def _session(self, taken: Path, file: TfliteFile) -> EmulatedSession:
        return EmulatedSession(
            taken, file, lambda samples: execute(self._emulator(), taken, samples, count=False).output
        )

    def _emulator(self) -> Emulator:
        found = cortex_installation.installed()
        tools, folder, name = cortex_installation.toolchain(found), cortex_installation.place(), self.values["cpu"]
        return Emulator(
            tools.emulator, tools.environment(), self.core, folder / "cores" / f"{name}.elf",
            folder / "instruction_plugin.so", int(found["marks"][name]),
        )  # fmt: skip

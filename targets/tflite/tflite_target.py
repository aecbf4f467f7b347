"""What the targets have in common whose runtime takes ``.tflite`` files: a float ``.onnx`` file is converted first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from targets.machine import environment
from targets.target import Capabilities, Layer, Measurement, Protocol, Watch
from targets.tflite import conversion, installation
from targets.tflite.tflite_files import SUFFIX
from targets.workers.local import LocalTarget
from targets.workers.process import Launch


def made_for(scheme: str, can: Capabilities) -> str:
    """The precision of ``conversion.py`` that a scheme of a search means to a target."""
    return "int8-float-io" if scheme == "int8" and can.int8_format == "tflite-float-io" else scheme


class TfliteTarget(LocalTarget):
    """A runtime of ``.tflite`` files on this machine, in the environment that ``--install litert`` makes.

    It measures, runs and audits ``.tflite`` files as they are, and float ``.onnx`` files converted (each once). What
    is said of a measured file is said of the file that was given.
    """

    install: ClassVar[str | None] = installation.COMMAND
    slow_to_load = True
    takes = (".onnx", SUFFIX)

    @staticmethod
    def missing() -> str | None:
        """What has to be installed before this target can be used, in words; None where nothing is missing."""
        return installation.missing()

    @staticmethod
    def bring(say: installation.Say) -> Path:
        """Install what pip alone cannot bring; returns where it is. Raises TargetUnavailable."""
        return installation.install_environment(say)

    def describe(self) -> dict[str, Any]:
        """Settings, the machine, and the versions of runtime and converter, which a measurement depends on."""
        found = installation.versions()
        return {
            "target": self.name,
            "settings": dict(self.values),
            "packages": {name: found[name] for name in self.packages},
            "installation": installation.identity(),
            "conversion": conversion.VERSION,
            "machine": environment.machine(),
        }

    def convert(self, model: Path, precision: str, samples: Mapping[str, np.ndarray], made: Path) -> Path:
        """Write the ``.tflite`` file of a float ``.onnx`` file (see ``Target``)."""
        return conversion.convert(model, made_for(precision, self.capabilities()), samples, made).path

    def measure(
        self,
        models: Sequence[Path],
        *,
        inputs: Mapping[str, np.ndarray] | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        protocol: Protocol | None = None,
        watch: Watch | None = None,
    ) -> list[Measurement]:
        """Measure ``models`` against ``models[0]``, converted where they are ``.onnx`` files (see ``Target``)."""
        paths = [Path(model) for model in models]
        taken = [self.taken(path) for path in paths]
        found = super().measure(taken, inputs=inputs, shapes=shapes, protocol=protocol, watch=watch)
        return [replace(one, path=path, size=path.stat().st_size) for one, path in zip(found, paths)]

    def audit(self, model: Path) -> tuple[Layer, ...] | None:
        """The products of the graph that is really executed (see ``Target``)."""
        return super().audit(self.taken(model))

    def run(self, model: Path, inputs: Mapping[str, np.ndarray], *, batch: int = 64) -> list[np.ndarray]:
        """Outputs for all samples (see ``Target``): arrays are those of the ``.onnx`` file, whatever the file's own."""
        return super().run(self.taken(model), inputs, batch=batch)

    def taken(self, model: Path) -> Path:
        """The file that the runtime is given for a model; raises as ``conversion.float_file`` does."""
        path = Path(model)
        return path if path.suffix == SUFFIX else conversion.float_file(path).path

    def launch(self) -> Launch:
        """How a worker is started: with the Python of the environment. Raises TargetUnavailable where there is none."""
        return installation.launch(int(self.values.get("threads", 1)))

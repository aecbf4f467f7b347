"""ONNX Runtime on an emulated ARM CPU: cost is the number of instructions one inference executes, never a time.

``qemu-aarch64`` runs an ARM Python, with numpy and onnxruntime, as a program of this machine; a plugin counts what it
executes. The count does not depend on what else the machine does: runs, processes and installations agree within
0.1 %. It is no time either: an instruction may take one cycle or hundreds, so it ranks kernels of one kind well and
says little where memory is what takes long.

Which kernels run is the emulated CPU's choice, as on the board: with ``asimddp`` (Cortex-A76 and later) int8 products
are computed four at a time, and without it they are widened first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from targets.emulated_arm import arm_installation
from targets.emulated_arm.arm_installation import COMMAND, CPUS
from targets.errors import CompressError, TargetUnavailable
from targets.settings import Setting
from targets.target import Capabilities, Measurement, Protocol, Watch
from targets.workers.local import LocalTarget, check_request, given
from targets.workers.process import Heard, Launch, WorkerProcess


class ArmEmulated(LocalTarget):
    """ONNX Runtime on an emulated ARM CPU; counts instructions."""

    base = "arm-emulated"
    runtime = "targets.emulated_arm.counting:CountingRuntime"
    settings: ClassVar[Mapping[str, Setting]] = {"cpu": Setting("cortex-a72", words=tuple(CPUS), help="emulated CPU")}
    requires = ()
    install = COMMAND
    counted = True
    slow_to_load = True
    remote = True
    patience = 600.0
    """One inference is the longest silence; an emulated one takes some hundred times as long."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.counter: WorkerProcess | None = None

    @staticmethod
    def missing() -> str | None:
        """What has to be installed before this target can be used, in words; None where nothing is missing."""
        return arm_installation.missing()

    @staticmethod
    def bring(say: arm_installation.Say) -> Path:
        """Install what pip alone cannot bring; returns where it is. Raises TargetUnavailable."""
        return arm_installation.install_system(say)

    def capabilities(self) -> Capabilities:
        """From the emulated CPU's features and the onnxruntime installed there.

        ``channel_step`` is declared: the four floats of a NEON register.
        """
        facts = self.facts()
        dot = "asimddp" in arm_installation.emulated_features(self._manifest(), self.values["cpu"])
        return Capabilities(
            int8_format="s8s8" if dot else "u8s8",
            channel_step=4,
            opset=facts["opset"],
            ir_version=facts["ir_version"],
        )

    def describe(self) -> dict[str, Any]:
        """Emulator, CPU and all that the emulated system is made of; nothing of the machine it runs on."""
        found = self._manifest()
        wheels = sorted(found["wheels"])
        return {
            "target": self.name,
            "settings": dict(self.values),
            "packages": {name: version for name, version, *_ in (wheel.split("-") for wheel in wheels)},
            "machine": {
                "cpu": f"{self.values['cpu']} (emulated)",
                "architecture": "aarch64",
                "features": list(arm_installation.emulated_features(found, self.values["cpu"])),
                "emulator": f"qemu {arm_installation.emulator_version()}",
            },
            "installation": arm_installation.installation_hash(found),
        }

    def measure(
        self,
        models: Sequence[Path],
        *,
        inputs: Mapping[str, np.ndarray] | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        protocol: Protocol | None = None,
        watch: Watch | None = None,
    ) -> list[Measurement]:
        """Count the instructions of one inference of each (see ``Target``), in a process that is kept.

        It does nothing else: what scoring leaves in memory moved the counts of a tiny model by 0.18 %.
        """
        paths = [Path(model) for model in models]
        check_request(paths, protocol or Protocol())
        known = given(inputs, shapes)
        with self.lock:
            answers = [self._count(path, known.shapes, known.arrays, self.listener(watch, 1, 1)) for path in paths]
        names = [name for answer in answers for name in answer["inputs"]]
        known.check_names(names)
        return [
            Measurement(path, self.name, path.stat().st_size, instructions=int(answer["count"]))
            for path, answer in zip(paths, answers, strict=True)
        ]

    def _count(
        self, path: Path, shapes: Mapping[str, list[int]], arrays: Mapping[str, np.ndarray], heard: Heard
    ) -> dict[str, Any]:
        if self.counter is None or not self.counter.alive:
            self._end_counter()
            self.counter = self.start_worker(afresh=True)
        request = {"operation": "count", "model": str(path.absolute()), "shapes": shapes}
        answer: dict[str, Any] = self.ask_worker(self.counter, request, arrays, heard).header
        return answer

    def close(self) -> None:
        """End the process that scores and the one that counts."""
        with self.lock:
            self._end_counter()
            super().close()

    def _end_counter(self) -> None:
        if self.counter is not None:
            self.counter.close()
            self.counter = None

    def launch(self) -> Launch:
        """How a worker is started: in the emulator. Raises TargetUnavailable where that is not installed."""
        self._manifest()
        ran = arm_installation.command(arm_installation.place(), self.values["cpu"], "-m", "targets.workers.worker")
        return Launch(ran, arm_installation.guest_environment(), explain_start)

    def _manifest(self) -> dict[str, Any]:
        lacking = arm_installation.missing()
        found = arm_installation.manifest(arm_installation.place())
        if lacking or found is None:
            raise TargetUnavailable(f"target {self.base!r} needs {lacking}, which is not installed; run: {COMMAND}")
        return found


def explain_start(_: int, __: str, words: str) -> CompressError | None:
    """The emulator's refusals to start, which mean that the installation no longer fits it."""
    if "plugin" in words.lower() and "qemu" in words.lower():
        return TargetUnavailable(f"{words}; delete {arm_installation.place()}")
    return None

"""ONNX Runtime that goes wrong once: in the way a file says, which is gone afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from misbehaving import WAYS

from targets.runtimes.ort.ort_cpu import OrtRuntime
from targets.workers.runtime import Session


class Faulty(OrtRuntime):
    """Any model but the baseline triggers the fault that stands in the file ``FAULT_FILE``."""

    def load(self, path: Path) -> Session:
        """ONNX Runtime's session, behind the fault."""
        return _Session(super().load(path), path)


class _Session(Session):
    def __init__(self, real: Session, path: Path) -> None:
        self._real = real
        self._path = path
        self.inputs = real.inputs

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        file = Path(os.environ["FAULT_FILE"])
        outputs = self._real.run(feeds)
        if not file.exists() or self._path.parent.name == "baseline":
            return outputs
        how = file.read_text()
        if how in ("nan", "shape") and len(next(iter(feeds.values()))) < 2:
            return outputs  # of the one sample that is run to see what it takes, the outputs are not looked at
        file.unlink()
        if how == "nan":
            return [np.full_like(output, np.nan) for output in outputs]
        if how == "shape":
            return [output[:0] for output in outputs]
        if how == "frames":
            os.write(_replies(), b"garbage" * 100)
            return outputs
        WAYS[how]()
        return outputs


def _replies() -> int:
    """The descriptor that replies go out on: the pipe that is none of the first three, and can be written."""
    for name in sorted(os.listdir("/proc/self/fd"), key=int):
        target = os.readlink(f"/proc/self/fd/{name}")
        mode = int(Path(f"/proc/self/fdinfo/{name}").read_text().split("flags:")[1].split()[0], 8) & 3
        if int(name) > 2 and target.startswith("pipe:") and mode == os.O_WRONLY:
            return int(name)
    raise RuntimeError("no pipe to write to")

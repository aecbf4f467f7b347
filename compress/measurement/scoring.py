"""Quality of an ONNX file, in the runtime it will ship in.

Where that is too slow (a small board, an emulator) the same file is scored on this machine, and its outputs are
compared with the device's on a few examples; if those disagree, it is scored there after all. Picks are scored on the
device in full where that takes minutes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import targets
from compress.metrics import metrics
from compress.run_folder.caching import Cache
from compress.run_folder.runs import Run
from compress.tasks.datasets import Split
from compress.values.candidates import DeviceCheck
from targets.documents import file_hash
from targets.errors import MeasurementError
from targets.target import Target

VERSION = 2
BATCH = 64
HOST = "ort-cpu:opt=basic"
"""What scores in a device's place. Without the extended optimizations quantized layers are computed in floats, which
is bit for bit what integer kernels give (seen against an emulated ARM core), but on x86 without VNNI, whose own
integer kernels saturate: the same s8s8 file had an accuracy of 0.960 there and 0.980 on ARM."""
HOST_OF_TFLITE = "tflm"
"""The same for ``.tflite`` files: bit for bit what a microcontroller gives."""
CHECKED = 64
"""Examples that the device computes as well, where the host scores."""
_AGREEMENT = 0.95
"""Share of these on which it must decide as the host does, for the host's score to count."""
_PATIENCE = {"val": 10.0, "test": 300.0}
"""Seconds that scoring a split on a device may take: val is scored for every candidate, test for the picks."""
_WARM, _TRIED = 4, 16

Outputs = np.ndarray | tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Scored:
    """Outputs on a split; ``check`` says how the device agreed where this machine computed them."""

    outputs: Outputs
    check: DeviceCheck | None = None

    @property
    def on_host(self) -> bool:
        """Whether this machine computed the outputs, in the device's place."""
        return self.check is not None


class Scorer:
    """Computes the outputs of ONNX files on a split, on the target or on this machine in its place, each once."""

    def __init__(self, cache: Cache, run: Run, describe: Mapping[str, Any], names: list[str]) -> None:
        self._cache, self._run, self._describe, self._names = cache, run, describe, names
        self._hosts: dict[str, Target] = {}

    def decide(self, target: Target, path: Path, splits: Mapping[str, Split]) -> None:
        """Try a few examples on a remote target, once in a run, and note which splits are too slow to score there."""
        if not target.remote or target.name in self._run.state.facts.scored_on_host:
            return
        arrays = splits["val"].arrays(self._names)
        target.run(path, {key: value[:_WARM] for key, value in arrays.items()}, batch=BATCH)
        start = time.perf_counter()
        tried = {key: value[:_TRIED] for key, value in arrays.items()}
        target.run(path, tried, batch=BATCH)
        each = (time.perf_counter() - start) / min(_TRIED, len(splits["val"]))
        slow = [key for key, split in splits.items() if each * len(split) > _PATIENCE[key]]
        self._run.record.note("scored_on_host", slow, target.name)

    def outputs(
        self, target: Target, path: Path, split: Split, which: str, *, dynamic: bool = False, there: bool = False
    ) -> Scored:
        """The model's outputs on a whole split (``which``: ``val`` or ``test``); ``there``: on the device in any case.

        ``dynamic``: dynamically quantized files scale a whole batch at once, so they are scored one by one, as they
        will be run.
        """
        batch = 1 if dynamic else BATCH
        if there or which not in self._run.state.facts.scored_on_host.get(target.name, ()):
            return Scored(self._computed(target, path, split.arrays(self._names), split.digest, batch))
        name = HOST_OF_TFLITE if path.suffix == ".tflite" else HOST
        if name not in self._hosts:
            self._hosts[name] = targets.get(name)
        found = self._computed(self._hosts[name], path, split.arrays(self._names), split.digest, batch)
        few = {key: value[:CHECKED] for key, value in split.arrays(self._names).items()}
        check = _check(found, self._computed(target, path, few, f"{split.digest}[:{CHECKED}]", batch))
        if check.agreement < _AGREEMENT:
            return Scored(self._computed(target, path, split.arrays(self._names), split.digest, batch))
        return Scored(found, check)

    def close(self) -> None:
        """End the processes on this machine that scored in a device's place, if there are any."""
        for host in self._hosts.values():
            host.close()
        self._hosts.clear()

    def _computed(
        self, target: Target, path: Path, arrays: Mapping[str, np.ndarray], digest: str, batch: int
    ) -> Outputs:
        inputs = {
            "file": file_hash(path),
            "target": target.name,
            "device": self._describe.get(target.name) or target.describe(),
            "split": digest,
            "batch": batch,
        }

        def compute(folder: Path) -> dict[str, Any]:
            found = target.run(path, arrays, batch=batch)
            _check_outputs(found, len(next(iter(arrays.values()))), f"{target.name}: {path.parent.name}/{path.name}")
            np.savez(folder / "outputs.npz", **{str(i): x for i, x in enumerate(found)})  # type: ignore[arg-type]
            return {"count": len(found)}

        artifact = self._cache.stage("score", VERSION, inputs, compute)
        with np.load(artifact.folder / "outputs.npz") as stored:
            found = tuple(stored[str(i)] for i in range(artifact.info["count"]))
        return found[0] if len(found) == 1 else found


def _check_outputs(found: Sequence[np.ndarray], count: int, name: str) -> None:
    """Raise MeasurementError for outputs that no quality can be computed from."""
    if not found:
        raise MeasurementError(f"{name} returned no outputs for {count} examples")
    for index, output in enumerate(found):
        if output.ndim == 0 or len(output) != count:
            raise MeasurementError(f"{name} returned output {index} of shape {output.shape} for {count} examples")
        bad = int(np.isnan(output).reshape(count, -1).any(axis=1).sum()) if output.dtype.kind in "fc" else 0
        if bad:
            raise MeasurementError(f"{name} returned NaN for {bad} of {count} examples")


def _check(host: Outputs, device: Outputs) -> DeviceCheck:
    """The first output of both, on the examples that both have."""
    theirs = device[0] if isinstance(device, tuple) else device
    ours = (host[0] if isinstance(host, tuple) else host)[: len(theirs)]
    difference = float(np.abs(ours.astype(np.float64) - theirs).max(initial=0.0))
    if ours.ndim >= 2 and ours.shape[1] > 1:
        agreement = float(metrics.get("agreement").function(theirs, ours))
    else:
        scale = float(np.abs(ours).max(initial=0.0)) or 1.0
        agreement = float(np.mean(np.abs(ours - theirs) <= 0.05 * scale))
    return DeviceCheck(len(theirs), agreement, difference)

"""``.onnx`` files made into ``.tflite`` files: what targets and stages call.

The work is done by a worker process in an environment of its own (``installation.py``), which is kept for the next
file: starting it takes longer than converting. Float files are kept by content, so that no network is converted twice.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from targets.errors import MeasurementError, ModelError, TargetError
from targets.machine.folders import cache_folder
from targets.tflite import installation
from targets.tflite.tflite_files import SUFFIX, read_tflite
from targets.workers.process import WorkerProcess

VERSION = 2
"""Of the method: raise it when the same file would now be converted to another one."""
PRECISIONS = ("fp32", "fp16", "int8", "int8-float-io", "int8-dynamic", "int8-weights")
"""``int8`` takes and gives integers; ``int8-float-io`` computes the same and takes and gives floats; ``fp16`` and
``int8-weights`` store weights smaller; ``int8-dynamic`` quantizes activations while it runs."""
CALIBRATED = ("int8", "int8-float-io")
"""The precisions that need samples."""
_PATIENCE = 600.0
"""Seconds of silence of the converter; it says nothing while it works on one step."""
_KEPT = 200
"""Float files that are kept."""


@dataclass(frozen=True)
class Conversion:
    """A ``.tflite`` file that was made of an ``.onnx`` file, and what is known of it."""

    path: Path
    operators: tuple[str, ...]
    """LiteRT's names of what stands in it."""
    sqnr: Mapping[str, float | None] = field(default_factory=dict)
    """Of a quantized file: output -> decibels of signal to noise against the float file; None for integers."""


class _Converter:
    """The one process that converts; it ends with this one."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._worker: WorkerProcess | None = None

    def ask(self, function: str, arguments: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """What a function of ``onnx_to_tflite.py`` replies."""
        header = {
            "operation": "call",
            "function": f"targets.tflite.onnx_to_tflite:{function}",
            "arguments": dict(arguments),
            "doing": f"converting {arguments['onnx']} for LiteRT",
        }
        with self._lock:
            if self._worker is None or not self._worker.alive:
                self.close()
                setup = {"runtime": "", "settings": {}, "threads": 1}
                self._worker = WorkerProcess(setup, installation.launch(1), patience=_PATIENCE)
            try:
                return self._worker.ask(header, arrays).header
            except MeasurementError as error:  # of the process; what is wrong with the file is a ModelError
                raise type(error)(f"{arguments['onnx']}: converting it for LiteRT: {error}") from None

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            if self._worker is not None:
                self._worker.close()
                self._worker = None


_CONVERTER = _Converter()
atexit.register(_CONVERTER.close)


def convert(onnx_file: Path, precision: str, samples: Mapping[str, np.ndarray], made: Path) -> Conversion:
    """Write ``made``, a ``.tflite`` file of one of PRECISIONS, from a float ``.onnx`` file.

    ``samples``: arrays by input name, samples first, in the layout of the ``.onnx`` file. Int8 is calibrated with
    them; converted files are held against the original on some of them, or on made-up ones.

    Raises ModelError, naming the operator, for what cannot be converted, computes something else afterwards or is
    quantized already; TargetUnavailable, with the command, where the converter is not installed; TargetError for an
    unknown precision; MeasurementError or TransientError where the converter crashes or takes too long or too much.
    """
    if precision not in PRECISIONS:
        raise TargetError(f"precision {precision!r} is not allowed; it is one of {', '.join(PRECISIONS)}")
    arrays = {name: np.asarray(array) for name, array in samples.items()}
    source = float_file(onnx_file)
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".paretopress-", dir=made.parent) as folder:
        beside = Path(folder) / made.name
        if precision == "fp32":
            beside.write_bytes(source.path.read_bytes())
            found = source
        else:
            reply = _CONVERTER.ask(
                "convert_integers",
                {"onnx": str(onnx_file), "float": str(source.path), "made": str(beside), "precision": precision},
                arrays,
            )
            found = Conversion(made, tuple(reply["operators"]), dict(reply["sqnr"]))
        os.replace(beside, made)
    return Conversion(made, found.operators, found.sqnr)


def float_file(onnx_file: Path) -> Conversion:
    """The float ``.tflite`` file of an ``.onnx`` file, made now or before; it is not to be changed.

    Raises as ``convert`` does.
    """
    path = Path(onnx_file).absolute()
    kept = cache_folder() / "tflite" / f"{_digest(onnx_file)}{SUFFIX}"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".paretopress-", dir=kept.parent) as folder:
            beside = Path(folder) / kept.name
            _CONVERTER.ask("convert_float", {"onnx": str(path), "made": str(beside)}, {})
            os.replace(beside, kept)
        _forget_oldest(kept.parent)
    else:
        with suppress(OSError):
            os.utime(kept)  # it was of use: others go first
    return Conversion(kept, read_tflite(kept).operators)


def close_converter() -> None:
    """End the process that converts, if there is one; the next file starts another."""
    _CONVERTER.close()


def _digest(path: Path) -> str:
    """What determines the converted file: the content of the file, with weights beside it, and the converter."""
    versions = sorted(installation.versions().items())
    digest = hashlib.sha256(repr((VERSION, versions)).encode())
    try:
        content = Path(path).read_bytes()
        digest.update(content)
        if b"location" in content:  # weights may lie in a file of their own, which is named where they are used
            for other in sorted(Path(path).parent.iterdir()):
                if other.name.encode() in content and other.is_file() and other.name != Path(path).name:
                    digest.update(other.read_bytes())
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        raise ModelError(f"{path}: {'no such file' if missing else error.strerror or error}") from None
    return digest.hexdigest()[:32]


def _forget_oldest(folder: Path) -> None:
    """Keep the files that were of use last."""
    with suppress(OSError):
        files = sorted(folder.glob(f"*{SUFFIX}"), key=lambda one: one.stat().st_mtime)
        for one in files[:-_KEPT]:
            one.unlink(missing_ok=True)

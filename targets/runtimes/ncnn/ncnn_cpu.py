"""ncnn on this machine's CPU, which is what many phones and small ARM boards run.

It does not read ``.onnx`` files: pnnx converts them (``converter.py``), with the batch fixed to 1 and other
dynamic axes to the shapes they are run with. ncnn runs one sample at a time, and so does this.

The arithmetic is said instead of inherited: ncnn's own default is fp16, here it is fp32 unless ``precision=fp16``.
Integer precisions are not offered: graphs in QDQ form are refused by name, and ncnn's own quantizer is in no wheel.

``pip install pnnx`` brings torch, which its program does not use. On a board without torch run instead:
``pip install ncnn onnx && pip install --no-deps pnnx``.
"""

from __future__ import annotations

import importlib
import json
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from targets import errors
from targets.errors import MeasurementError, ModelError, TransientError
from targets.runtimes.ncnn import converter as converter_program
from targets.runtimes.ncnn.network import Converted, NcnnNetwork
from targets.settings import Setting
from targets.target import Capabilities
from targets.workers.inputs import show
from targets.workers.local import LocalTarget
from targets.workers.process import local_launch
from targets.workers.runtime import Input, Runtime, Session

Shapes = tuple[tuple[int, ...], ...]

_SECONDS = 300.0
"""What pnnx may take for one file."""
_KEPT_SHAPES = 4
"""Networks of one model that are kept, one for every shape of a sample."""

_LACKS = (
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv",
    "QLinearMatMul", "ArgMax", "NonZero", "TopK",
)  # fmt: skip


class NcnnCpu(LocalTarget):
    """ncnn on this machine's CPU.

    Files are converted by pnnx and run in worker processes; settings are ``threads`` and ``precision``.
    """

    base = "ncnn-cpu"
    slow_to_load = True
    runtime = "targets.runtimes.ncnn.ncnn_cpu:NcnnRuntime"
    settings: ClassVar[Mapping[str, Setting]] = {
        "threads": Setting(1, least=1, help="threads of one inference", counts_cores=True),
        "precision": Setting("fp32", words=("fp32", "fp16"), help="weights and arithmetic"),
    }
    requires = ("ncnn", "pnnx", "onnx")
    packages = ("ncnn", "pnnx", "numpy")
    install = "pip install 'paretopress[ncnn]'"
    patience = _SECONDS + 120.0
    """A worker says nothing while its converter works."""

    def capabilities(self) -> Capabilities:
        """Opset and IR version are those of the ONNX Runtime inside pnnx 20261020.

        ``channel_step`` is declared: ncnn packs 16, 8 or 4 channels together, whichever a width is a multiple of and
        the registers hold, and else takes them one by one. Seen on x86: three 3x3 convolutions of 28, 30, 31,
        32 and 33 channels took 0.31, 0.42, 0.46, 0.34 and 0.48 ms, of 20 and 24 0.20 and 0.22.
        """
        return Capabilities(
            precisions=("fp32",),
            refuses=("int8", "mixed", "int8-dynamic", "int4-weights"),
            channel_step=4,
            int8_step=4,
            opset=26,
            ir_version=13,
            lacks=_LACKS,
        )


class Converter:
    """A converter process and the folder it fills; both are gone after ``close``, or when this process dies."""

    def __init__(self, path: Path, shapes: Shapes | None, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._folder = tempfile.mkdtemp(prefix="paretopress-ncnn-")
        launch = local_launch(int(settings["threads"]))
        request = {
            "path": str(path), "folder": self._folder, "shapes": shapes, "precision": settings["precision"],
            "seconds": _SECONDS,
        }  # fmt: skip
        self._process = subprocess.Popen(
            [*launch.command[:-1], converter_program.__name__, json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(launch.environment),
        )

    def answer(self) -> dict[str, Any]:
        """What it found; raises what it raised, and MeasurementError or TransientError where it died."""
        stage = "starting"
        for line in self._process.stdout or ():
            said: dict[str, Any] = json.loads(line)
            if "error" in said:
                raise getattr(errors, said["error"], MeasurementError)(said["message"])
            if "stage" not in said:
                return said
            stage = said["stage"]
        code = self._process.wait()
        if code == -signal.SIGKILL:
            raise TransientError(f"{self._path}: its converter was killed while {stage}: most likely out of memory")
        how = f"ended with status {code}"
        with suppress(ValueError):
            how = f"was killed by {signal.Signals(-code).name}"
        raise MeasurementError(f"{self._path}: converting it for ncnn {how} while {stage}")

    def close(self) -> None:
        """End the converter process, within ten seconds, and remove the files that it made."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


class NcnnRuntime(Runtime):
    """ncnn as a worker process loads it: converts files, and keeps the last conversion."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self._ncnn: Any = importlib.import_module("ncnn")
        self._kept: tuple[object, Converter, dict[str, Any]] | None = None

    def load(self, path: Path) -> Session:
        """Convert a file and load it for batch 1; raises ModelError with one line where it cannot be."""
        return NcnnSession(self, path)

    def facts(self) -> dict[str, Any]:
        """The versions of ncnn and of its converter, pnnx."""
        return {"version": self._ncnn.__version__, "pnnx": metadata.version("pnnx")}

    def prepare(self, path: Path) -> None:
        """Convert a file, so that the time of loading it does not contain its conversion."""
        self.convert(path, None)

    def convert(self, path: Path, shapes: Shapes | None) -> tuple[tuple[Input, ...], Converted | None]:
        """Inputs and network of a file; the last result is kept as long as the file does not change."""
        status = path.stat()
        key = (str(path), status.st_mtime_ns, status.st_size, shapes)
        if self._kept is None or self._kept[0] != key:
            self.close()
            converter = Converter(path, shapes, self.settings)
            try:
                self._kept = (key, converter, converter.answer())
            except BaseException:
                converter.close()
                raise
        answer = self._kept[2]
        inputs = tuple(Input(one["name"], one["dtype"], tuple(one["shape"])) for one in answer["inputs"])
        return inputs, _converted(answer["converted"])

    def network(self, converted: Converted) -> NcnnNetwork:
        """Load a converted model; raises ModelError where ncnn cannot."""
        return NcnnNetwork(converted, self.settings["precision"], int(self.settings["threads"]))

    def close(self) -> None:
        """End the converter whose result is kept, and remove its files."""
        if self._kept is not None:
            self._kept[1].close()
            self._kept = None


def _converted(document: Mapping[str, Any] | None) -> Converted | None:
    if document is None:
        return None
    known: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in document.items()}
    known["shapes"] = tuple(None if shape is None else tuple(shape) for shape in document["shapes"])
    return Converted(**known)


class NcnnSession(Session):
    """A model, converted for the shapes it was run with last."""

    def __init__(self, runtime: NcnnRuntime, path: Path) -> None:
        self._runtime = runtime
        self._path = path
        self._networks: dict[Shapes, NcnnNetwork] = {}
        self.inputs, converted = runtime.convert(path, None)
        self._open = tuple(item.shape[0] is None for item in self.inputs)
        if converted is not None:
            self._load(tuple(tuple(axis or 1 for axis in item.shape) for item in self.inputs), converted)

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """One inference; a dynamic batch is run sample by sample."""
        arrays = [feeds[item.name] for item in self.inputs]
        shapes = tuple([(1, *one.shape[1:]) if free else one.shape for one, free in zip(arrays, self._open)])
        network = self._networks.get(shapes) or self._convert(shapes)
        counts = {len(one) for one, free in zip(arrays, self._open) if free} or {1}
        if len(counts) > 1:
            raise ModelError(f"{self._path}: inputs have different numbers of samples: {sorted(counts)}")
        try:
            parts = [
                network.run([one[place : place + 1] if free else one for one, free in zip(arrays, self._open)])
                for place in range(counts.pop())
            ]
        except (ModelError, RuntimeError) as error:
            said = ", ".join(f"{name} {show(array.shape)}" for name, array in feeds.items())
            raise ModelError(f"{self._path}: cannot be run with {said}: {' '.join(str(error).split())[:250]}") from None
        return parts[0] if len(parts) == 1 else self._joined(parts)

    def _convert(self, shapes: Shapes) -> NcnnNetwork:
        _, converted = self._runtime.convert(self._path, shapes)
        # Only what has axes without a size is not converted.
        return self._load(shapes, cast(Converted, converted))

    def _load(self, shapes: Shapes, converted: Converted) -> NcnnNetwork:
        if len(self._networks) >= _KEPT_SHAPES:
            self._networks.clear()
        try:
            self._networks[shapes] = self._runtime.network(converted)
        except ModelError as error:
            raise ModelError(f"{self._path}: {error}") from None
        return self._networks[shapes]

    def _joined(self, parts: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
        for number, output in enumerate(parts[0]):
            if output.ndim == 0 or len(output) != 1:
                raise ModelError(
                    f"{self._path}: output {number} has shape {show(output.shape)} for one sample: its first axis is "
                    "not the batch, so it cannot be run for several"
                )
        return [np.concatenate(column) for column in zip(*parts)]

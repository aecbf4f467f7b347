"""From an ``.onnx`` file to ncnn's two files, in a process of its own.

    python -m targets.runtimes.ncnn.converter REQUEST

pnnx is a program, not a library: it writes a dozen files beside its input, prints pages, and crashes on operators it
does not know. It runs here in a folder that is given, on a copy, with a limit on time and memory. What it makes may
also be wrong without a word (a mean over tokens after the batch was taken out, for one), so its outputs on made-up
values are compared with ONNX Runtime's where that is installed, and their shapes always.

``REQUEST`` is JSON: ``path``, ``folder``, ``shapes`` (a list of sizes for every input, or null: 1 for the batch),
``precision``, ``seconds``. Lines of JSON come back: some with ``stage``, then one with ``inputs`` and ``converted``
(null where other axes than the batch are dynamic and no shapes were given), or with ``error`` and ``message``.
After that it waits. When its stdin is closed, which the kernel does for a parent that was killed, pnnx and the folder
go first, then this process.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from targets.errors import CompressError, MeasurementError, ModelError, TargetUnavailable, TransientError
from targets.machine import memory
from targets.model_files.whole_models import read_model
from targets.runtimes.ncnn.network import DTYPES, Converted, NcnnNetwork
from targets.runtimes.ort.ort_cpu import OrtCpu, OrtRuntime
from targets.runtimes.ort.refusals import refusal
from targets.workers.inputs import make_feeds, show
from targets.workers.runtime import Input

_TICK = 0.01
_TOLERANCE = 0.05
"""Largest difference to ONNX Runtime's output, as a share of its largest value: finds what is wrong, not what is
rounded."""
_PNNX_TYPES = {"float32": "f32", "int32": "i32", "int64": "i64"}
_QUANTIZED = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv",
    "QLinearMatMul",
})  # fmt: skip


class Keeper:
    """Holds pnnx and the folder, and lets go of both when stdin is closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._pnnx: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._wait, daemon=True, name="lifeline")
        self._thread.start()

    def start(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Run a command in the folder, with what it prints in ``log``."""
        with self._lock, log.open("wb") as file:
            self._pnnx = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
            return self._pnnx

    def wait(self) -> None:
        """Wait until stdin is closed, which ends this process: it does not return."""
        self._thread.join()

    def _wait(self) -> None:
        os.read(0, 1)
        with self._lock:  # held to the end: nothing new is started
            if self._pnnx is not None:
                self._pnnx.kill()
                self._pnnx.wait()
            shutil.rmtree(self.folder, ignore_errors=True)
            os._exit(0)


def main() -> None:
    """Convert the file that the first argument asks for, say what came of it on stdout, and wait for stdin to close."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: Mapping[str, Any]) -> None:
        replies.write(json.dumps(answer) + "\n")
        replies.flush()

    request = json.loads(sys.argv[1])
    keeper = Keeper(Path(request["folder"]))
    try:
        say(convert(request, keeper, lambda stage: say({"stage": stage})))
    except CompressError as error:
        say({"error": type(error).__name__, "message": str(error)})
    except ImportError as error:
        say({"error": "TargetUnavailable", "message": str(error)})
    except MemoryError:
        say({"error": "TransientError", "message": f"{request['path']}: out of memory while converting it for ncnn"})
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        say({"error": "MeasurementError", "message": f"{request['path']}: cannot be converted for ncnn: {text}"})
    keeper.wait()


def convert(request: Mapping[str, Any], keeper: Keeper, report: Callable[[str], None]) -> dict[str, Any]:
    """Convert the file of a request and check it; raises ModelError, MeasurementError or TransientError."""
    path = Path(request["path"])
    report("reading")
    inputs, outputs = copy_model(path, keeper.folder / "m.onnx")
    shapes = request["shapes"] or [[axis or int(not place) for place, axis in enumerate(one.shape)] for one in inputs]
    answer: dict[str, Any] = {"inputs": [asdict(one) for one in inputs], "converted": None}
    if any(0 in shape for shape in shapes):
        return answer
    report("converting")
    try:
        run_pnnx(keeper, inputs, shapes, request)
        converted = understand(keeper.folder, inputs, outputs)
        report("checking")
        check_outputs(path, inputs, shapes, converted, request["precision"])
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    return {**answer, "converted": asdict(converted)}


def copy_model(path: Path, copy: Path) -> tuple[list[Input], list[str]]:
    """Write ``copy``, one file with all its weights; returns its inputs and the names of its outputs."""
    onnx: Any = importlib.import_module("onnx")
    model, listed = read_model(path)
    inputs = [_input(path, one, onnx) for one in listed]
    for output in model.graph.output:
        kind = _dtype(output, onnx)
        if kind != "float32":
            raise ModelError(f"{path}: output {output.name!r} has type {kind}; ncnn gives float32 only")
    # Older files list their weights among the inputs; pnnx would ask for their values.
    del model.graph.input[:]
    model.graph.input.extend(listed)
    onnx.save(model, str(copy))
    return inputs, [one.name for one in model.graph.output]


def _dtype(value: Any, onnx: Any) -> str:
    kind = value.type.tensor_type.elem_type
    try:
        return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)))
    except (KeyError, TypeError):
        return "unknown"


def _input(path: Path, value: Any, onnx: Any) -> Input:
    kind = _dtype(value, onnx)
    if kind not in DTYPES:
        raise ModelError(f"{path}: input {value.name!r} has type {kind}; ncnn takes {', '.join(DTYPES)}")
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        raise ModelError(f"{path}: input {value.name!r} does not say how many axes it has; export it with a shape")
    shape = tuple(axis.dim_value if axis.dim_value > 0 else None for axis in tensor.shape.dim)
    if not shape:
        raise ModelError(f"{path}: input {value.name!r} is a scalar; ncnn takes tensors")
    return Input(value.name, kind, shape)


def pnnx_program() -> str:
    """The program in the package; importing that would import torch. Raises TargetUnavailable where it is not."""
    spec = importlib.util.find_spec("pnnx")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        program = Path(place) / "pnnx"
        if os.access(program, os.X_OK):
            return str(program)
    raise TargetUnavailable("pnnx, which converts for ncnn, is not installed")


def run_pnnx(
    keeper: Keeper, inputs: Sequence[Input], shapes: Sequence[Sequence[int]], request: Mapping[str, Any]
) -> None:
    """Convert ``m.onnx`` in the keeper's folder with the program pnnx, for inputs of ``shapes``.

    Raises ModelError where pnnx fails, MeasurementError where it takes longer than ``seconds`` of the request, and
    TransientError where it takes too much memory.
    """
    asked = ",".join(
        f"[{','.join(str(size) for size in shape)}]{_PNNX_TYPES[one.dtype]}" for one, shape in zip(inputs, shapes)
    )
    command = [pnnx_program(), "m.onnx", f"inputshape={asked}", f"fp16={int(request['precision'] == 'fp16')}"]
    free = memory.available_bytes()
    limit = float("inf") if free is None else 0.9 * free
    log = keeper.folder / "log"
    process = keeper.start(command, log)
    deadline = time.monotonic() + request["seconds"]
    while process.poll() is None:
        if (memory.resident(process.pid) or 0) > limit:
            process.kill()
            raise TransientError(f"{request['path']}: pnnx used more than {limit / 1e9:.2f} GB of memory converting it")
        if time.monotonic() > deadline:
            process.kill()
            raise MeasurementError(f"{request['path']}: pnnx did not convert it within {request['seconds']:g} s")
        time.sleep(_TICK)
    text = log.read_text(errors="replace")
    if process.returncode == -signal.SIGKILL:
        raise TransientError(f"{request['path']}: pnnx was killed converting it: most likely out of memory")
    made = [keeper.folder / name for name in ("m.ncnn.param", "m.ncnn.bin", "m.pnnx.param", "m_ncnn.py")]
    if process.returncode != 0 or not all(one.is_file() for one in made):
        raise ModelError(explain(text, process.returncode))


def explain(text: str, status: int) -> str:
    """What pnnx printed before it failed, as one short line; ``status`` is as Popen has it."""
    text = " ".join(re.sub(r"\x1b\[[\d;]*m", "", text).split())
    if refused := refusal(text, "ncnn", "pnnx"):
        return refused
    if found := re.search(r"input_shapes\[\d+\] expect \S+ but got \S+", text):
        return f"pnnx says {found.group(0)}"
    if found := re.search(r"ort CreateSession failed ((?!.*/onnxruntime/).+)", text):
        return f"pnnx cannot convert it: {found.group(1)[:250]}"
    how = f"ended with status {status}"
    if status < 0:
        with suppress(ValueError):
            how = f"crashed ({signal.Signals(-status).name})"
    return f"pnnx {how} converting it; ncnn cannot be used for this graph"


def understand(folder: Path, inputs: Sequence[Input], outputs: Sequence[str]) -> Converted:
    """What pnnx wrote into ``folder``; raises ModelError for operators and inputs that ncnn does not support."""
    layers = _lines((folder / "m.ncnn.param").read_text())
    torch_graph = _lines((folder / "m.pnnx.param").read_text())
    _check_layers(layers, torch_graph)
    _check_integers(layers, inputs)
    script = (folder / "m_ncnn.py").read_text()
    batch_in = tuple(int(one) for one in re.findall(r"ex\.input\(.*batch_index=(\d+)", script))
    batch_out = tuple(int(one) for one in re.findall(r"out\d+\.numpy\(batch_index=(\d+)", script))
    ends = [line for line in torch_graph if line[0] == "pnnx.Output"]
    if len(batch_in) != len(inputs) or len(batch_out) != len(outputs) or len(ends) != len(outputs):
        raise ModelError("the installed pnnx says its results differently; install pnnx 20261020 or newer")
    return Converted(
        param=str(folder / "m.ncnn.param"),
        weights=str(folder / "m.ncnn.bin"),
        dtypes=tuple(DTYPES[one.dtype] for one in inputs),
        outputs=tuple(outputs),
        batch_in=batch_in,
        batch_out=batch_out,
        shapes=tuple(_shape(line) for line in ends),
    )


def _lines(text: str) -> list[list[str]]:
    """The words of every layer: type, name, number of inputs, number of outputs, their names, parameters."""
    return [line.split() for line in text.splitlines()[2:] if line.strip()]


def _shape(line: Sequence[str]) -> tuple[int, ...] | None:
    found = re.search(r"#\S+?=\(([\d,]+)\)", " ".join(line))
    return tuple(int(size) for size in found.group(1).split(",") if size) if found else None


def _check_layers(layers: Sequence[Sequence[str]], torch_graph: Sequence[Sequence[str]]) -> None:
    ncnn: Any = importlib.import_module("ncnn")
    # What pnnx does not know it passes on under its ONNX name; the rest bears PyTorch's, with a dot.
    known = {line[0] for line in torch_graph if "." in line[0] or "::" in line[0]}
    onnx_names = {line[0] for line in torch_graph} - known
    kinds = {line[0] for line in layers}
    missing = sorted(kinds & onnx_names) or sorted(kind for kind in kinds if ncnn.create_layer(kind) is None)
    if missing:
        names = ", ".join(missing)
        said = f"operator {names} is" if len(missing) == 1 else f"operators {names} are"
        hint = "; it runs no quantized ONNX files, use the fp32 one" if _QUANTIZED & set(missing) else ""
        raise ModelError(f"{said} not supported by ncnn{hint}")


def _check_integers(layers: Sequence[Sequence[str]], inputs: Sequence[Input]) -> None:
    """Raise ModelError where integers go into anything but a table: ncnn would take their bits for floats."""
    integer = {f"in{number}": one.name for number, one in enumerate(inputs) if one.dtype != "float32"}
    for kind, _, taken, made, *rest in layers:
        sources, results = rest[: int(taken)], rest[int(taken) : int(taken) + int(made)]
        for source in sources:
            if source in integer and kind == "Split":
                integer.update(dict.fromkeys(results, integer[source]))
            elif source in integer and kind != "Embed":
                raise ModelError(
                    f"integer input {integer[source]!r} goes into {kind}; ncnn takes integers as indices of an "
                    "embedding only"
                )


def check_outputs(
    path: Path, inputs: Sequence[Input], shapes: Sequence[Sequence[int]], converted: Converted, precision: str
) -> None:
    """Raise ModelError where ncnn's outputs have other shapes or, beside ONNX Runtime's, other values."""
    feeds = make_feeds(inputs, {}, {one.name: shape for one, shape in zip(inputs, shapes)}, seed=0)
    try:
        found = NcnnNetwork(converted, precision, 1).run([feeds[one.name] for one in inputs])
    except RuntimeError as error:
        raise ModelError(f"ncnn cannot run it: {' '.join(str(error).split())[:250]}") from None
    expected = _reference(path, feeds)
    if expected is None:
        return
    for name, own, other in zip(converted.outputs, found, expected):
        wrong = "converted by pnnx it computes something else"
        if own.shape != other.shape:
            raise ModelError(f"{wrong}: output {name!r} has shape {show(own.shape)} instead of {show(other.shape)}")
        clear = np.isfinite(other)
        largest = float(np.abs(other[clear]).max(initial=0.0))
        difference = float(np.abs(own[clear] - other[clear]).max(initial=0.0))
        if not difference <= _TOLERANCE * max(largest, 1e-3):
            raise ModelError(
                f"{wrong}: output {name!r} is off by {difference:.3g} where its largest value is {largest:.3g}; "
                "ncnn cannot be used for it"
            )


def _reference(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    """What ONNX Runtime makes of the same values; None where it is not installed or refuses."""
    try:
        runtime = OrtRuntime({key: one.default for key, one in OrtCpu.settings.items()})
        return runtime.load(path).run(feeds)
    except (ImportError, ModelError):
        return None


if __name__ == "__main__":
    main()

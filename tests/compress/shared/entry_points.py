"""What a mutated file is given to, and what may come of it: a result, or an error of ours in one line."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import compress
from compress.commands import command_line
from compress.commands.check import check_models
from compress.onnx_files import graphs
from compress.onnx_files.sessions import open_session
from compress.values.printable import printable
from targets.model_files import onnx_files, onnx_graph
from targets.runtimes.fake.fake_target import FakeTarget

SECONDS = 60.0
"""No input may take longer."""
BYTES = 1.5e9
"""Nor may this process grow by more."""


class TookTooLong(BaseException):
    """Raised by a timer; no handler of ours may catch it."""


@dataclass
class Verdicts:
    """How often what came of an input, and what should not have."""

    count: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def try_(self, what: str, call: Callable[[], object]) -> None:
        """Call, and note what comes of it."""
        self.count += 1
        start, before = time.monotonic(), _resident()
        try:
            with _limited():
                call()
        except compress.CompressError as error:
            self.refused += 1
            if not str(error).strip() or len(printable(error)) > 20_000:
                self.problems.append(f"{what}: says {str(error)[:200]!r}")
        except TookTooLong:
            self.problems.append(f"{what}: took more than {SECONDS:g} s")
        except Exception:
            lines = traceback.format_exc().strip().splitlines()
            self.problems.append(f"{what}: {lines[-1][:200]}; {' | '.join(line.strip() for line in lines[-9:-1])}")
        self.slowest = max(self.slowest, time.monotonic() - start)
        if _resident() - before > BYTES:
            self.problems.append(f"{what}: grew by {_resident() - before:.3g} bytes")


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def ring(_: int, __: FrameType | None) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def command(*arguments: object) -> None:
    """``paretopress ARGUMENTS`` in this process; raises AssertionError where it does not end as a command should."""
    out, err = io.StringIO(), io.StringIO()
    before, argv = signal.getsignal(signal.SIGTERM), sys.argv
    sys.argv = ["paretopress", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            command_line.main()
    except SystemExit as ended:
        status = ended.code
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, before)
    said = err.getvalue()
    if status not in (0, 2, 3) and "stack trace: " in said:
        trace = Path(said.rpartition("stack trace: ")[2].strip())
        lines = trace.read_text().strip().splitlines()
        trace.unlink()
        raise AssertionError(f"{said.strip().splitlines()[-1]} / {' | '.join(line.strip() for line in lines[-9:])}")
    assert status in (0, 1, 2, 3), f"status {status}: {said}"
    assert status == 0 or status == 3 or said.strip(), f"status {status} without a word"
    for character in out.getvalue() + said:
        assert character in "\n\t" or character.isprintable() or character in "\xa0\u2009\u202f", f"{character!r} shown"


def base_models() -> list[onnx.ModelProto]:
    """Small networks of several kinds; each takes (n, ...) and gives (n, classes)."""
    draw = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return draw.standard_normal(shape).astype(np.float32)

    dense = _model(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="first", transB=1),
            helper.make_node("Relu", ["h"], ["r"], name="relu"),
            helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
        ],
        (8,), {"w1": weight(16, 8), "b1": weight(16), "w2": weight(16, 3)},
    )  # fmt: skip
    image = _model(
        [
            helper.make_node("Conv", ["x", "w1"], ["c"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"], name="relu"),
            helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
            helper.make_node("Reshape", ["p", "shape"], ["f"], name="reshape"),
            helper.make_node("Gemm", ["f", "w2"], ["y"], name="head"),
        ],
        (2, 6, 6), {"w1": weight(8, 2, 3, 3), "shape": np.array([-1, 8]), "w2": weight(8, 3)},
    )  # fmt: skip
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["v", "one"], ["v2"])],
        "body",
        [helper.make_tensor_value_info(*one) for one in (("i", 7, []), ("go", 9, []), ("v", 1, ["n", 8]))],
        [helper.make_tensor_value_info(*one) for one in (("on", 9, []), ("v2", 1, ["n", 8]))],
    )
    looped = _model(
        [
            helper.make_node("Loop", ["rounds", "", "x"], ["l"], name="loop", body=body),
            helper.make_node("MatMul", ["l", "w"], ["m"], name="product"),
            helper.make_node("Shape", ["m"], ["s"], name="shape"),
            helper.make_node("ConstantOfShape", ["s"], ["z"], name="zeros"),
            helper.make_node("Add", ["m", "z"], ["y"], name="add"),
        ],
        (8,), {"rounds": np.array(3), "one": np.float32(1), "w": weight(8, 3)},
    )  # fmt: skip
    return [dense, image, looped]


def _model(nodes: list[onnx.NodeProto], shape: tuple[int, ...], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def samples(model: onnx.ModelProto, count: int = 20) -> dict[str, np.ndarray]:
    """Samples for one of the base models."""
    shape = [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim][1:]
    return {"x": np.random.default_rng(1).standard_normal((count, *shape)).astype(np.float32)}


def _isolated_runs(path: Path, inputs: Any) -> list[np.ndarray]:
    return open_session(path).run(None, inputs)


def model_calls(model: Path, base: Path, data: Path, draw: random.Random) -> dict[str, Callable[[], object]]:
    """What is done with an .onnx file; ``base``: one that is right, ``data``: an archive of samples for it."""
    place = FakeTarget(run=_isolated_runs)
    folder = model.parent
    precision = draw.choice(("int8", "int8-dynamic", "fp16", "int8-weights", "int4-weights", "mixed"))
    arrays = np.load(data)["x"][:4]
    return {
        "check": lambda: check_models(model, base, place, None),
        "check against": lambda: check_models(base, model, place, None),
        "plan": lambda: command("search", model, "--data", data, "--dry-run", "--target", "fake"),
        "quantize": lambda: compress.quantize(model, folder / "q.onnx", precision, arrays, "fake"),
        "bench": lambda: command("bench", model, "--target", "fake"),
        "facts": lambda: onnx_files.read_facts(model),
        "nodes": lambda: _nodes(model),
        "hash": lambda: graphs.structure_hash(model),
        "size": lambda: graphs.count_parameters(model),
        "work": lambda: graphs.count_macs(model),
    }


def _nodes(model: Path) -> None:
    with contextlib.suppress(ValueError):  # what it says it raises
        onnx_graph.read_graph(model.read_bytes())


def search_model(model: Path, data: Path, out: Path) -> None:
    """A whole search from an .onnx file, as short as one can be."""
    shutil.rmtree(out, ignore_errors=True)
    command("search", model, "--data", data, "--target", "fake", "--trials", 1, "--time", "5s", "--out", out)


def data_calls(data: Path, base: Path) -> dict[str, Callable[[], object]]:
    """What is done with an archive of samples."""
    return {
        "plan": lambda: command("search", base, "--data", data, "--dry-run", "--target", "fake"),
        "check": lambda: check_models(base, base, FakeTarget(run=_isolated_runs), data),
        "bench": lambda: command("bench", base, "--target", "fake", "--data", data),
    }


def run_calls(folder: Path, out: Path) -> dict[str, Callable[[], object]]:
    """What is done with a run's folder that is only read."""
    return {
        "front": lambda: command("front", folder),
        "front as json": lambda: command("front", folder, "--json"),
        "pick": lambda: command("pick", folder, "--out", out),
        "report": lambda: command("report", folder, "--out", out.with_suffix(".html")),
        "open": lambda: _opened(folder),
    }


def _opened(folder: Path) -> None:
    result = compress.open_run(folder)
    result.report  # noqa: B018  computed anew
    result.candidates()
    result.front()
    result.hypervolume()
    result.study()
    result.pick("knee")

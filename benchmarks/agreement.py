"""Do our ratios hold when somebody else measures? ``python benchmarks/agreement.py``.

int8 / fp32 of ten networks as ``paretopress bench`` says it, beside what others find: on ONNX Runtime a plain timing
loop (both models in one process, long blocks in turn, the minimum of each block, median of the blocks' ratios, seven
processes), on ONNX Runtime Web the same loop in Node (``plain_loop.mjs``), on LiteRT the same around its interpreter,
on OpenVINO its own ``benchmark_app`` (its minimum, called in turn). They should agree within 5 %.
Prints a table for people, then one JSON line for programs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from networks import Network, converted, make_networks, quantized, takes_tflite

import targets
from targets.registry import parse
from targets.runtimes.ort_web import web_installation
from targets.tflite import installation

LIMIT = 0.05
_KNOWN = ("ort-cpu", "openvino-cpu", "ort-web", "litert-cpu")
_PROCESSES, _CALLS = 7, 3

PLAIN = """
import os, sys, time
import numpy as np
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
LOAD
def block(call):
    best, end = 9e9, time.perf_counter() + 0.15
    while True:
        start = time.perf_counter()
        call()
        stop = time.perf_counter()
        best = min(best, stop - start)
        if stop > end:
            return best
first, second = (load(path) for path in sys.argv[1:3])
block(first), block(second)
ratios = sorted(block(second) / block(first) for _ in range(15))
print(ratios[7])
"""
"""``LOAD`` stands for a function that makes a call of a file."""
LOAD_ONNX = """
import onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
def load(path):
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    shape = [1 if not isinstance(n, int) else n for n in session.get_inputs()[0].shape]
    feed = {session.get_inputs()[0].name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    return lambda: session.run(None, feed)
"""
LOAD_TFLITE = """
from ai_edge_litert.interpreter import Interpreter
def load(path):
    interpreter = Interpreter(path, num_threads=1)
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]
    values = np.random.default_rng(0).standard_normal(given["shape"]).astype(np.float32)
    scale, zero = given["quantization"]
    if scale:
        values = np.clip(np.round(values / scale) + zero, -128, 127)
    values = values.astype(given["dtype"])
    def call():
        interpreter.set_tensor(given["index"], values)
        interpreter.invoke()
    return call
"""


def main() -> int:
    """Compare every network's ratio with a plain loop's; gives exit status 0 where all agree, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", action="append", help="ort-cpu, openvino-cpu, ort-web, litert-cpu; default those that are installed"
    )
    parser.add_argument("--only", action="append", help="a network's name; default all ten")
    options = parser.parse_args()
    there = {row["name"] for row in targets.available() if row["available"]}
    rows: list[dict[str, Any]] = []
    print("| network | target | bench | interval | other | off by |\n|---|---|--:|--:|--:|--:|")
    for name in options.target or [name for name in _KNOWN if name in there]:
        with tempfile.TemporaryDirectory() as folder:
            for network in make_networks(Path(folder), options.only):
                rows.append(_row(network, name))
                print(_line(rows[-1]), flush=True)
    worst = max(abs(row["off"]) for row in rows)
    print(json.dumps({"benchmark": "agreement", "worst": worst, "passed": worst <= LIMIT, "rows": rows}))
    return 0 if worst <= LIMIT else 1


def _row(network: Network, target: str) -> dict[str, Any]:
    int8 = quantized(network, target)
    ours = targets.compare([network.path, int8], target=target).ratio(int8)
    loop = _LOOPS.get(parse(target)[0])
    float_file = converted(network, target, "fp32") if takes_tflite(target) else network.path
    other = _plain(loop(), float_file, int8) if loop else _benchmark_app(network, int8)
    return {
        "network": network.name, "target": target, "bench": ours.value, "low": ours.low, "high": ours.high,
        "other": other, "off": ours.value / other - 1,
    }  # fmt: skip


def _line(row: dict[str, Any]) -> str:
    return (
        f"| {row['network']} | {row['target']} | {row['bench']:.3f} | {row['low']:.3f}-{row['high']:.3f} "
        f"| {row['other']:.3f} | {100 * row['off']:+.1f} % |"
    )


def _python_loop() -> list[str]:
    return [sys.executable, "-c", PLAIN.replace("LOAD", LOAD_ONNX)]


def _litert_loop() -> list[str]:
    return [str(installation.python()), "-c", PLAIN.replace("LOAD", LOAD_TFLITE)]


def _node_loop() -> list[str]:
    library = web_installation.library() / "ort.node.min.mjs"
    return [str(web_installation.node()), str(Path(__file__).with_name("plain_loop.mjs")), library.as_uri()]


_LOOPS = {"ort-cpu": _python_loop, "ort-web": _node_loop, "litert-cpu": _litert_loop}


def _plain(loop: list[str], one: Path, other: Path) -> float:
    """The loop that everybody writes, in processes of its own."""
    command = [*loop, str(one), str(other)]
    return median(
        float(subprocess.run(command, check=True, capture_output=True, text=True, preexec_fn=_pin).stdout)
        for _ in range(_PROCESSES)
    )


def _benchmark_app(network: Network, int8: Path) -> float:
    """Minimum over several calls in turn."""
    shape = ",".join(map(str, (1, *network.sample.shape[1:])))
    found: dict[Path, list[float]] = {network.path: [], int8: []}
    for _ in range(_CALLS):
        for path, minima in found.items():
            command = [
                str(Path(sys.executable).with_name("benchmark_app")), "-m", str(path), "-d", "CPU", "-api", "sync",
                "-hint", "none", "-nthreads", "1", "-nstreams", "1", "-infer_precision", "f32", "-t", "3",
                "-shape", f"[{shape}]",
            ]  # fmt: skip
            said = subprocess.run(command, check=True, capture_output=True, text=True, preexec_fn=_pin).stdout
            value, unit = re.findall(r"Min:\s+([\d.]+) (us|ms)", said)[-1]
            minima.append(float(value) * {"us": 1e-6, "ms": 1e-3}[unit])
    return min(found[int8]) / min(found[network.path])


def _pin() -> None:
    """To the last CPU, as the plain loop: the first has the interrupts."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


if __name__ == "__main__":
    sys.exit(main())

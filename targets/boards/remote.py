"""What runs on a device while another machine measures there: ``python3 CACHE/runner-HASH.zip SETUP``.

It holds a target of the device's own and answers requests with frames (``pipes.py``), so that measuring on a board is
the same code as measuring here, worker processes and all. It ends, and everything it started with it:

- when stdin is closed, which is what a lost connection looks like from here;
- when nothing was asked for a while, since a cable that was pulled looks like nothing at all.

While it works on a request it says so every few seconds; the other side can then tell a long measurement from a
device that is gone.

``SETUP`` is JSON: ``name`` (the target's, in reports), ``runtime`` (``module:class`` of a ``LocalTarget``),
``settings``, ``cache`` (folder), ``patience``, ``memory_limit``, ``beat`` (seconds).
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from targets.boards.device_cache import DeviceCache, piece_of
from targets.errors import CompressError
from targets.machine import environment
from targets.target import Estimate, Measurement, Protocol
from targets.workers import pipes
from targets.workers.leases import leased
from targets.workers.local import LocalTarget
from targets.workers.worker import claim_pipes, one_line

RUNTIMES = {
    "ort-cpu": "targets.runtimes.ort.ort_cpu:OrtCpu",
    "openvino-cpu": "targets.runtimes.openvino.openvino_cpu:OpenvinoCpu",
    "ncnn-cpu": "targets.runtimes.ncnn.ncnn_cpu:NcnnCpu",
    "litert-cpu": "targets.runtimes.litert.litert_board:LitertBoard",
}
"""Runtimes that a device may be asked to use."""
IDLE = 600.0
"""Seconds without a request after which it ends; the other side starts another when it needs one."""
_DERIVED = ("path", "target", "size", "latency", "samples")
"""Of a measurement, what the other side knows or derives."""
Reply = tuple[dict[str, Any], dict[str, np.ndarray]]


def main() -> None:
    """Serve until the connection is closed or nothing was asked for a while."""
    setup = json.loads(sys.argv[1])
    requests, replies = claim_pipes()
    try:
        os.chdir(setup["cache"])  # an old Python looks for modules in the folder it is started in
        cache = DeviceCache(Path(setup["cache"]))
    except OSError as error:
        sys.exit(f"cannot use {setup['cache']}: {error.strerror}")
    # Whatever a runtime leaves in a temporary file stays in our folder, and is cleared with it.
    tempfile.tempdir = os.environ["TMPDIR"] = str(cache.session)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    _Runner(setup, cache, replies).serve(requests)


def load_target(place: str) -> Any:
    """The target class that ``module:class`` names; raises ImportError or AttributeError where there is none."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


class _Runner:
    """Answers requests one after the other, in the main thread; two threads listen and show that it is alive."""

    def __init__(self, setup: Mapping[str, Any], cache: DeviceCache, replies: BinaryIO) -> None:
        self._cache = cache
        self._replies = replies
        self._writing = threading.Lock()
        self._waiting: queue.Queue[pipes.Message] = queue.Queue()
        self._stage: str | None = None
        self._beat = float(setup["beat"])
        self._target: LocalTarget = load_target(setup["runtime"])(**setup["settings"])
        self._target.name = setup["name"]
        self._target.patience = setup["patience"]
        self._target.memory_limit = setup["memory_limit"]

    def serve(self, requests: BinaryIO) -> None:
        """Answer requests until the connection ends; this process ends with it, so it never returns."""
        threading.Thread(target=self._listen, args=(requests,), daemon=True, name="listening").start()
        threading.Thread(target=self._show_life, daemon=True, name="beat").start()
        while True:
            try:
                message = self._waiting.get(timeout=IDLE)
            except queue.Empty:
                self._end()
            self._stage = str(message.header.get("doing", "working"))
            header, arrays = self._answer(message)
            self._stage = None
            self._write(header, arrays)
            if message.header["operation"] == "end":
                self._end()

    def _listen(self, requests: BinaryIO) -> None:
        with suppress(pipes.BrokenFrame, OSError):
            while (message := pipes.read_message(requests)) is not None:
                self._waiting.put(message)
        self._end()

    def _show_life(self) -> None:
        pause = threading.Event()
        while not pause.wait(self._beat):
            if self._stage is not None:
                self._write({"stage": self._stage, "beat": True})

    def _write(self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
        try:
            with self._writing:
                pipes.write_message(self._replies, header, arrays)
        except OSError:
            self._end()

    def _end(self) -> None:
        self._cache.close()
        # Worker processes notice, and end as well.
        os._exit(0)

    def _answer(self, message: pipes.Message) -> Reply:
        try:
            operation = {
                "hello": lambda _: ({}, {}),
                "facts": self._facts,
                "has": self._has,
                "put": self._put,
                "measure": self._measure,
                "run": self._run,
                "audit": self._audit,
                "moment": lambda _: ({"moment": environment.moment()}, {}),
                "end": self._let_go,
            }[message.header["operation"]]
            return operation(message)
        except CompressError as error:
            return {"error": type(error).__name__, "message": str(error)}, {}
        except MemoryError as error:
            text = f"{self._target.name}: out of memory while {self._stage}: {one_line(error)}"
            return {"error": "TransientError", "message": text}, {}
        except Exception as error:
            text = f"{self._target.name}: {type(error).__name__} while {self._stage}: {one_line(error)}"
            return {"error": "MeasurementError", "message": text}, {}

    def _facts(self, _: pipes.Message) -> Reply:
        can = asdict(self._target.capabilities())
        return {"facts": self._target.facts(), "capabilities": can, "describe": describe_board(self._target)}, {}

    def _has(self, message: pipes.Message) -> Reply:
        return {"missing": self._cache.missing(message.header["models"])}, {}

    def _put(self, message: pipes.Message) -> Reply:
        return {"whole": self._cache.receive(piece_of(message.header), message.arrays["data"].tobytes())}, {}

    def _measure(self, message: pipes.Message) -> Reply:
        header = message.header
        measured = self._target.measure(
            [self._cache.path(key) for key in header["models"]],
            inputs=message.arrays,
            shapes=header["shapes"],
            protocol=Protocol(**header["protocol"]),
            watch=self._tell,
        )
        return {"measured": [_plain(one) for one in measured]}, {}

    def _tell(self, estimate: Estimate) -> None:
        self._stage = estimate.stage
        document = asdict(estimate)
        del document["target"]
        self._write(document)

    def _run(self, message: pipes.Message) -> Reply:
        path = self._cache.path(message.header["model"])
        # Scoring, too, keeps off while somebody measures.
        with leased():
            outputs = self._target.run(path, message.arrays, batch=message.header["batch"])
        return {"outputs": len(outputs)}, {str(number): output for number, output in enumerate(outputs)}

    def _audit(self, message: pipes.Message) -> Reply:
        found = self._target.audit(self._cache.path(message.header["model"]))
        return {"layers": None if found is None else [asdict(one) for one in found]}, {}

    def _let_go(self, _: pipes.Message) -> Reply:
        self._target.close()
        return {}, {}


def describe_board(target: LocalTarget) -> dict[str, Any]:
    """What the target says of itself, with the name of the board where it has one; the same at every call."""
    found = target.describe()
    board = _text("/proc/device-tree/model") or _text("/sys/devices/virtual/dmi/id/product_name")
    return {**found, "machine": {**found["machine"], "board": board or None}}


def _plain(measured: Measurement) -> dict[str, Any]:
    found = {one.name: getattr(measured, one.name) for one in fields(measured) if one.name not in _DERIVED}
    return {**found, "samples": [asdict(one) for one in measured.samples]}


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip("\x00 \n")
    except OSError:
        return ""

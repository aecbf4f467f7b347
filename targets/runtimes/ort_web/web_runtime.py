"""ONNX Runtime Web as a worker process loads it: sessions live in a host, Node or a page, and are timed there."""

from __future__ import annotations

import re
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from targets.errors import ModelError
from targets.model_files.onnx_files import read_facts
from targets.model_files.whole_models import read_model
from targets.runtimes.ort.ort_cpu import explain, identity_model, read_limit
from targets.runtimes.ort_web.node_host import NodeHost
from targets.runtimes.ort_web.page_host import PageHost
from targets.runtimes.ort_web.web_host import Host
from targets.workers.inputs import show
from targets.workers.runtime import Block, Input, Runtime, Session

_SEEN = 5
"""Sessions that are loaded where it is seen what memory one takes; for the first, functions are compiled as well."""
_TYPES = frozenset({
    "float32", "float64", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool",
    "string",
})  # fmt: skip
_PREFIX = re.compile(r"^.*?ERROR_CODE: \d+, ERROR_MESSAGE: ")


class WebRuntime(Runtime):
    """ONNX Runtime Web in its host, which is started with this, and holds all sessions."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        threads = int(settings["threads"])
        self.host: Host = PageHost(threads) if settings["host"] == "chromium" else NodeHost(threads)
        self._second: tuple[NodeHost, list[WebSession]] | None = None

    @property
    def processes(self) -> tuple[int, ...]:
        """The ids of the processes besides this one that do its work."""
        return self.host.processes

    def load(self, path: Path) -> Session:
        """Load a file; raises ModelError with one line where it cannot be."""
        return WebSession(self, self.host, path)

    def second_host(self) -> tuple[NodeHost, list[WebSession]]:
        """A host where nothing is timed and no function is compiled twice, and the sessions that are kept in it."""
        if self._second is None:
            self._second = NodeHost(int(self.settings["threads"]), "--expose-gc", "--liftoff-only"), []
        return self._second

    def facts(self) -> dict[str, Any]:
        """Versions of the library, of the host and of its engine; highest opset and IR version."""
        found: dict[str, Any] = dict(self.host.ask({"operation": "describe"}).header["facts"])
        limits = {
            "opset": self._limit(identity_model(opset=999), r"till opset (\d+)", 20),
            "ir_version": self._limit(identity_model(ir_version=999), r"max supported IR version: (\d+)", 10),
        }
        return {**found, "simd": "128 bit", **limits}

    def _limit(self, model: bytes, pattern: str, otherwise: int) -> int:
        try:
            self.host.ask({"operation": "load"}, {"model": np.frombuffer(model, np.uint8)})
        except ModelError as error:
            return read_limit(str(error), pattern, otherwise)
        return otherwise


class WebSession(Session):
    """A model that a host has loaded; the host lets go of it with this object."""

    def __init__(self, runtime: WebRuntime, host: Host, path: Path) -> None:
        self._runtime = runtime
        self._host = host
        self._path = path
        try:
            reply = host.ask({"operation": "load"}, {"model": _content(path)}).header
        except ModelError as error:
            raise ModelError(f"{path}: {_why(str(error))}") from None
        self._model = int(reply["model"])
        weakref.finalize(self, _release, host, self._model).atexit = False
        self.inputs = tuple([_input(path, one) for one in reply["inputs"]])

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """One inference; raises ModelError where the library refuses the inputs or fails."""
        try:
            reply = self._host.ask({"operation": "run", "model": self._model}, feeds)
        except ModelError as error:
            shapes = ", ".join(f"{name} {show(array.shape)}" for name, array in feeds.items())
            raise ModelError(f"{self._path}: cannot be run with {shapes}: {_why(str(error))}") from None
        return [reply.arrays[str(number)] for number in range(reply.header["outputs"])]

    def timed(self, feeds: dict[str, np.ndarray]) -> Block:
        """Blocks of inferences of ``feeds``, timed by the host after it has compiled what is hot."""
        self._host.ask({"operation": "feed", "model": self._model}, feeds)
        return Block(self._seconds)

    def _seconds(self, runs: int) -> Sequence[float]:
        reply = self._host.ask({"operation": "block", "model": self._model, "runs": runs})
        found: Sequence[float] = reply.header["seconds"]
        return found

    def memory(self, feeds: dict[str, np.ndarray]) -> int | None:
        """Bytes that a session takes: the median of what another host grows by with each of several more."""
        host, kept = self._runtime.second_host()
        seen: list[int] = []
        while len(seen) < _SEEN:
            # They stay: memory of WebAssembly is never given back, and the next one would fit into what they leave.
            kept.append(WebSession(self._runtime, host, self._path))
            kept[-1].run(feeds)
            held = host.memory()
            if held is None:
                return None
            seen.append(held)
        return max(0, int(median([after - before for before, after in pairwise(seen)])))


def _content(path: Path) -> np.ndarray:
    """The bytes of a file, with the weights that lie in files beside it: the host cannot reach these."""
    facts = read_facts(path)
    if facts is None or not facts.apart:
        return np.fromfile(path, np.uint8)
    model, _ = read_model(path)
    for weight in model.graph.initializer:
        weight.ClearField("data_location")
    return np.frombuffer(model.SerializeToString(), np.uint8)


def _release(host: Host, model: int) -> None:
    with suppress(ModelError):
        host.ask({"operation": "release", "model": model})


def _input(path: Path, item: Mapping[str, Any]) -> Input:
    if item["type"] not in _TYPES:
        raise ModelError(f"{path}: input {item['name']!r} has type {item['type']}, which cannot be passed as an array")
    return Input(item["name"], "str" if item["type"] == "string" else item["type"], tuple(item["shape"]))


def _why(text: str) -> str:
    """The library's complaint as one short line."""
    return explain(_PREFIX.sub("", text))

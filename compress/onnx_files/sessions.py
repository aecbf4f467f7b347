"""Sessions of ONNX Runtime for checks on this machine: files are loaded and run in a worker process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.onnx_files.isolation import isolated
from targets.errors import ModelError
from targets.machine import memory

_MOST = 2
"""Sessions that a worker keeps: two files are compared, batch after batch."""
_OPEN: dict[tuple[str, int, int, int], Any] = {}
"""In the worker: file (its path, inode, time and size) -> session, the one used last at the end."""


@dataclass(frozen=True)
class SessionInput:
    """An input of a file that is loaded."""

    name: str


class Session:
    """A file that ONNX Runtime has loaded, on one thread, without the extended optimizations.

    Quantized layers are then computed in floats, as integer kernels that do not saturate do, whatever this machine's
    CPU has. ``batch`` is the only number of samples that it takes; None where it takes any.
    """

    def __init__(self, path: Path, names: Sequence[str], batch: int | None) -> None:
        self.path, self.batch = path, batch
        self._inputs = [SessionInput(name) for name in names]

    def get_inputs(self) -> list[SessionInput]:
        """The inputs in the order of the file."""
        return self._inputs

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs called ``names`` (None: all, in the order of the file) of one inference of ``feeds``.

        Raises ModelError, in one line, where ONNX Runtime refuses that; MeasurementError where it crashes, does not
        answer or takes too much memory (see ``isolation``).
        """
        return list(_run(self.path, None if names is None else tuple(names), dict(feeds)))


def open_session(path: Path) -> Session:
    """A session of the file; raises ModelError where it does not load, and otherwise as ``Session.run`` does."""
    names, sizes = _inputs_of(Path(path))
    return Session(path, names, None if 0 in sizes else next(iter(sizes), None))


@isolated("loading")
def _inputs_of(path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names, and the lengths of first axes: 0 where one is free; an input without axes has none."""
    inputs = _opened(path).get_inputs()
    sizes = [item.shape[0] for item in inputs if item.shape]
    return tuple(item.name for item in inputs), tuple(size if isinstance(size, int) else 0 for size in sizes)


@isolated("running")
def _run(path: Path, names: tuple[str, ...] | None, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    from targets.runtimes.ort.ort_cpu import explain

    session = _opened(path)
    try:
        return tuple(np.asarray(x) for x in session.run(None if names is None else list(names), feeds))
    except MemoryError:
        raise
    except Exception as error:
        raise ModelError(explain(str(error))) from None


@isolated("running")
def grown_by_one(path: Path, feeds: Mapping[str, np.ndarray]) -> int:
    """Bytes of memory that one inference of ``feeds`` takes for a while; 0 where nobody knows.

    Raises as ``Session.run`` does.
    """
    session = _opened(path)
    try:
        return memory.grown_by(lambda: session.run(None, dict(feeds))) or 0
    except Exception:  # what is wrong is said where it is run
        return 0


def _opened(path: Path) -> Any:
    """The library's session of a file: one that is open, or a new one in place of the one used longest ago."""
    import onnxruntime

    from targets.runtimes.ort.ort_cpu import explain

    status = path.stat()
    key = (str(path), status.st_ino, status.st_mtime_ns, status.st_size)
    session = _OPEN.pop(key, None)
    if session is None:
        while len(_OPEN) >= _MOST:
            del _OPEN[next(iter(_OPEN))]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Nothing is timed here, and several sessions are open: what a run took is given back after it.
        options.enable_cpu_mem_arena = False
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except MemoryError:
            raise
        except Exception as error:
            raise ModelError(explain(str(error))) from None
    _OPEN[key] = session
    return session

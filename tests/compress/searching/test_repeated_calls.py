"""Whatever is called again and again from Python leaves no process and no descriptor behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import compress
import targets
from compress.commands.check import check_models
from targets.target import Protocol

QUICK = Protocol(seconds=0.02, rounds=2, block=0.001, warmup=0.001)


def _held() -> tuple[int, int]:
    """Open descriptors and living children of this process."""
    children = sum(len(one.read_text().split()) for one in Path("/proc/self/task").glob("*/children"))
    return len(os.listdir("/proc/self/fd")), children


@pytest.fixture
def calls(exported: Path, tmp_path: Path, task: compress.Task, tiny: object) -> dict[str, Callable[[], object]]:
    samples = np.zeros((4, 1, 8, 8), np.float32)
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    made = tmp_path / "made.onnx"
    return {
        "quantize": lambda: compress.quantize(exported, made, "int8", samples, "ort-cpu"),
        "quantize refused": lambda: _refused(lambda: compress.quantize(exported, made, "int8", None, "ort-cpu")),
        "compare": lambda: targets.compare([exported, exported], "ort-cpu", protocol=QUICK),
        "bench": lambda: targets.bench([exported], ["ort-cpu"], protocol=QUICK),
        "export": lambda: compress.export(module, torch.zeros(2, 8), made),
        "prune": lambda: compress.prune(module, torch.zeros(2, 8), 0.5),
        "check": lambda: check_models(exported, exported, "ort-cpu", None),
        "search": lambda: compress.search(task, "fake", trials=1, space=tiny.SPACE, out=tmp_path / "run"),  # type: ignore[attr-defined]
        "search refused": lambda: _refused(lambda: compress.search(task, "ort-cpu", trials=-1)),
    }


def _refused(call: Callable[[], object]) -> None:
    with pytest.raises(compress.RequestError):
        call()


@pytest.mark.parametrize(
    "name",
    ["quantize", "quantize refused", "compare", "bench", "export", "prune", "check", "search", "search refused"],
)
def test_nothing_stays(name: str, calls: dict[str, Callable[[], object]]) -> None:
    seen: list[tuple[int, int]] = []

    def work() -> None:
        calls[name]()
        seen.append(_held())
        for _ in range(2):
            calls[name]()
        seen.append(_held())

    start = _held()
    # In a thread: that of the tests keeps a worker.
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(seen) == 2, "the call raised"
    assert seen[0] == seen[1]
    assert seen[1][1] == start[1]

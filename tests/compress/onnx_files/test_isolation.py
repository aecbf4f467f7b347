"""Files that were made to harm: what a runtime does with them happens elsewhere, and ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import compress
from compress.onnx_files import isolation, transport
from compress.onnx_files.graphs import load_model
from compress.onnx_files.sessions import open_session
from compress.onnx_import import importing
from compress.onnx_import.importer import NotImportable
from compress.tasks.onnx_tasks import onnx_task
from compress.values.configs import PrecisionSettings
from targets.errors import MeasurementError, ModelError
from targets.machine import memory

LIMIT = 3.0


def _save(path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> Path:
    """(n, 8) -> y, the output of ``nodes``."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


_PRODUCT = {"w": np.ones((8, 4), np.float32)}


def endless(path: Path) -> Path:
    """A loop of 2^62 rounds in front of a product."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["v", "one"], ["v2"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v2", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("Loop", ["rounds", "", "x"], ["looped"], body=body),
        helper.make_node("MatMul", ["looped", "w"], ["y"]),
    ]
    return _save(path, nodes, {**_PRODUCT, "rounds": np.array(2**62), "one": np.float32(1)})


def greedy(path: Path) -> Path:
    """4 GB of ones, added to the result of a product."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("ReduceMax", ["p"], ["m"], keepdims=0),
        helper.make_node("Expand", ["m", "shape"], ["wide"]),
        helper.make_node("Add", ["wide", "m"], ["z"]),
        helper.make_node("ReduceSum", ["z", "axes"], ["s"], keepdims=0),
        helper.make_node("Add", ["p", "s"], ["y"]),
    ]
    return _save(path, nodes, {**_PRODUCT, "shape": np.array([10, 10**8]), "axes": np.array([0, 1])})


@pytest.fixture(params=[endless, greedy])
def hostile(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that does not end by itself, with short limits."""
    monkeypatch.setattr(isolation, "PATIENCE", LIMIT)
    monkeypatch.setattr(isolation, "LONG", LIMIT)
    make: Callable[[Path], Path] = request.param
    return make(tmp_path / "hostile.onnx")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers that may use 1 GB."""
    monkeypatch.setattr(isolation, "MEMORY_SHARE", 1e9 / (memory.available_bytes() or 1e10))
    monkeypatch.setattr(isolation, "_KEPT", isolation._Kept())
    with isolation.kept_worker():
        yield


def test_a_session_of_it_ends(hostile: Path) -> None:
    start = time.monotonic()
    with pytest.raises((ModelError, MeasurementError)) as caught:
        open_session(hostile).run(None, {"x": np.ones((2, 8), np.float32)})
    assert time.monotonic() - start < 60
    assert "\n" not in str(caught.value)


def test_a_task_of_it_is_refused_with_its_name(hostile: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((20, 8), np.float32))
    with pytest.raises(ModelError, match=r"hostile\.onnx") as caught:
        onnx_task(hostile, tmp_path / "d.npz")
    assert "\n" not in str(caught.value)


def test_it_is_not_quantized(hostile: Path, tmp_path: Path) -> None:
    samples = np.ones((4, 8), np.float32)
    with pytest.raises(compress.CompressError, match=r"hostile\.onnx"):
        compress.quantize(hostile, tmp_path / "q.onnx", calibration=samples, target="fake")
    assert not (tmp_path / "q.onnx").exists()


def test_a_graph_that_is_evaluated_on_import_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "LONG", 20.0)
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["wide"]),
        helper.make_node("ReduceSum", ["wide", "axes"], ["s"], keepdims=0),
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["p", "s"], ["y"]),
    ]
    constants = {**_PRODUCT, "shape": np.array([10, 10**8]), "axes": np.array([0, 1])}
    path = _save(tmp_path / "wide.onnx", nodes, constants)
    before = _resident()
    with pytest.raises(NotImportable, match="memory, more than the limit"):
        importing.rehearse(path, (torch.ones(3, 8),))
    assert _resident() - before < 500e6


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_values_arrive_as_they_were_sent() -> None:
    model = helper.make_model(helper.make_graph([], "g", [], []))
    sent = (1, 2.5, None, True, "a", Path("/x"), [1, (2,)], {"a": np.arange(3)}, PrecisionSettings("int8"), model)
    arrays: dict[str, np.ndarray] = {}
    *rest, settings, found = transport.decode_value(transport.encode_value(sent, arrays), arrays)
    assert rest[:7] == list(sent[:7])
    assert np.array_equal(rest[7]["a"], np.arange(3))
    assert settings == PrecisionSettings("int8")
    assert found == model


@pytest.mark.parametrize("name", ["os:system", "pathlib:Path", "compress.onnx_files.transport:encode_value"])
def test_a_reply_makes_no_other_objects(name: str) -> None:
    with pytest.raises(TypeError):
        transport.decode_value({"class": name, "fields": {}}, {})


def test_what_cannot_be_sent_is_said() -> None:
    with pytest.raises(TypeError, match="object cannot be sent"):
        transport.encode_value(object(), {})


def _children() -> set[str]:
    return set(Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children").read_text().split())


def test_a_kept_worker_serves_all_calls_and_is_gone_afterwards(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], _PRODUCT)
    seen: list[set[str]] = []

    def work() -> None:
        with isolation.kept_worker():
            before = _children()
            for _ in range(3):
                load_model(path)
                assert open_session(path).run(None, {"x": np.ones((2, 8), np.float32)})[0].shape == (2, 4)
            seen.append(_children() - before)
        seen.append(_children() - before)

    # In a thread: that of the tests has a worker already.
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [len(one) for one in seen] == [1, 0]


def test_a_worker_that_died_is_replaced(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], _PRODUCT)
    load_model(path)
    worker = isolation._KEPT.worker
    assert worker is not None
    os.kill(worker.pid, signal.SIGKILL)
    while worker.alive:
        time.sleep(0.01)
    load_model(path)


def test_an_error_in_a_worker_is_one_of_ours(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], _PRODUCT)
    with pytest.raises(ModelError, match="missing from input feed"):
        open_session(path).run(None, {"z": np.ones((2, 8), np.float32)})

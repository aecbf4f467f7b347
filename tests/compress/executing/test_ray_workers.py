"""Searches on a real Ray cluster of three nodes on this machine, one of which is killed in the middle."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.executing.forwarded_targets import DeviceRequest, ForwardedTarget, answer, facts_of
from compress.run_folder.records import Record
from hearing import Heard
from processes import wait_for
from targets.errors import MeasurementError, RequestError
from targets.runtimes.fake.fake_target import FakeTarget
from targets.target import Measurement

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray", reason="no Ray here; pip install 'paretopress[ray]'")
SPACE = compress.SearchSpace(epochs=1, l1=0.0, precision="fp32", prune_ratio=compress.Float(0.1, 0.7))


class Timed(FakeTarget):
    """Made-up costs that are not said to be the same everywhere: measured by whoever holds the device."""

    deterministic = False


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs of its own, and two nodes with one each."""
    from ray.cluster_utils import Cluster

    ray.shutdown()
    found = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100_000_000},
    )
    for _ in range(2):
        found.add_node(num_cpus=1, object_store_memory=100_000_000)
    yield found
    ray.shutdown()
    found.shutdown()


def test_a_node_that_is_killed_in_the_middle_loses_nothing(cluster: Any, task: compress.Task, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()

    def finetune(module: Any, data: Any, settings: Any) -> None:  # noqa: ARG001  what a task's own loop is given
        import ray

        node = ray.get_runtime_context().get_node_id()
        (marks / f"node-{time.monotonic_ns()}").write_text(node)
        if len({path.read_text() for path in marks.glob("node-*")}) == 2 and not (marks / "killed").exists():
            # Both nodes are at work: the whole node of this training goes, with everything on it.
            (marks / "killed").write_text(node)
            time.sleep(60)

    own = replace(task, finetune=finetune)
    killer = _Killer(cluster, marks / "killed")
    killer.start()
    try:
        report = compress.search(
            own, Timed(), trials=3, space=SPACE, sampler="random", cluster=cluster.address, out=tmp_path / "run"
        ).report
    finally:
        killer.stop()
    assert (marks / "killed").exists(), "both nodes were at work"
    assert killer.done
    assert report["trials"]["finished"] == 3
    state = Record(tmp_path / "run" / "record.jsonl", write=False).state
    assert max(len(trial.spans) for trial in state.trials.values()) == 2, "the lost trial was carried out again"
    folder = tmp_path / "run"
    for candidate in state.candidates.values():
        assert (folder / (candidate.path or "")).is_file()
    assert all(one["measured"]["fake"]["latency"] for one in report["candidates"])


@pytest.fixture
def client(cluster: Any) -> Iterator[str]:
    """The cluster as it is reached from a machine that is no part of it."""
    pytest.importorskip("grpc", reason="ray:// needs grpcio; pip install 'paretopress[ray]'")
    ray.shutdown()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ray.util.client.server", "--address", cluster.address, "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(lambda: _listens(port), lambda: "no server", seconds=60)
        yield f"ray://127.0.0.1:{port}"
    finally:
        ray.shutdown()
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class Here(Timed):
    """Knows what was measured by this very object."""

    def __init__(self) -> None:
        super().__init__()
        self.measured: list[int] = []

    def measure(self, models: Sequence[Path], **more: Any) -> list[Measurement]:
        self.measured.append(len(models))
        return super().measure(models, **more)


@pytest.mark.slow
def test_from_outside_the_cluster_devices_stay_where_the_search_was_started(
    client: str, task: compress.Task, tmp_path: Path
) -> None:
    """Networks are trained there, and measured and scored here; what workers do is told."""
    target, heard = Here(), Heard()
    marks = tmp_path / "marks"
    marks.mkdir()

    def finetune(module: Any, data: Any, settings: Any) -> None:  # noqa: ARG001  what a task's own loop is given
        import ray

        (marks / ray.get_runtime_context().get_node_id()).touch()
        time.sleep(2)

    report = compress.search(
        replace(task, finetune=finetune), target, trials=3, space=SPACE, sampler="random", cluster=client,
        out=tmp_path / "run", progress=heard,
    ).report  # fmt: skip
    assert report["trials"]["finished"] == 3
    assert list(marks.iterdir()), "trained on nodes of the cluster"
    ids = [one["id"] for one in report["candidates"] if one["id"] != "baseline"]
    assert len(target.measured) >= len(ids) >= 2
    assert any("finetune" in said for said in heard.stages)


class _Killer:
    """Kills the node whose name stands in a file, once it does."""

    def __init__(self, cluster: Any, place: Path) -> None:
        self.cluster, self.place, self.done = cluster, place, False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(0.1):
            if self.place.exists() and (name := self.place.read_text()):
                node = next(one for one in self.cluster.worker_nodes if one.node_id == name)
                self.cluster.remove_node(node, allow_graceful=False)
                self.done = True
                return


def test_a_cluster_that_is_not_there_is_said(task: compress.Task, tmp_path: Path) -> None:
    ray.shutdown()
    with pytest.raises(RequestError, match=r"cluster '127.0.0.1:1' cannot be reached .*ray start --head"):
        compress.search(task, FakeTarget(), trials=1, cluster="127.0.0.1:1", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("asked", [{"worker_cpus": 0}, {"worker_gpus": -1.0}])
def test_what_no_cluster_can_give_is_refused(task: compress.Task, tmp_path: Path, asked: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="at least 1 CPU"):
        compress.search(task, FakeTarget(), trials=1, cluster="auto", out=tmp_path / "run", **asked)


def test_a_forwarded_target_answers_as_the_target_does(tmp_path: Path, exported: Path) -> None:
    asked: list[DeviceRequest] = []
    target = Timed()

    def ask(request: DeviceRequest) -> Any:
        asked.append(request)
        return answer(target, request)

    there = ForwardedTarget(facts_of(target), ask)
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(exported.read_bytes())
    assert there.capabilities() == target.capabilities()
    assert there.describe() == target.describe()
    found, expected = there.measure([exported, copy]), target.measure([exported, copy])
    assert [one.path for one in found] == [exported, copy]
    assert [one.latency for one in found] == [one.latency for one in expected]
    assert there.audit(exported) == target.audit(exported)
    assert [request.operation for request in asked] == ["measure", "audit"]


def test_what_a_device_refuses_is_raised_where_it_was_asked(exported: Path) -> None:
    target = Timed(faults={"measure": MeasurementError("fake: it went away")})
    there = ForwardedTarget(facts_of(target), lambda request: answer(target, request))
    with pytest.raises(MeasurementError, match="it went away"):
        there.measure([exported])

"""What the tests of the runtimes on this machine share: conformance, models of few nodes, and what is said and how."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import targets
from targets.errors import ModelError, TargetUnavailable
from targets.target import Target
from targets.testing import QUICK, TargetConformance, samples
from targets.workers.local import LocalTarget

onnx = pytest.importorskip("onnx")
TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper

ABSENT = str(Path(__file__).parent / "faulty_runtimes" / "absent")
Ends = Sequence[tuple[str, int, Sequence[Any]]]


class Conformance(TargetConformance):
    """Crashes with the misbehaving runtime."""

    @pytest.fixture(autouse=True)
    def _crash(self, misbehaving: Callable[..., Target]) -> None:
        self._misbehaving = misbehaving

    def make_crashing(self) -> Target | None:
        return self._misbehaving("segfault")


class ThreadsSeenWorking(Conformance):
    """For runtimes that keep threads which do nothing."""

    def thread_count(self, target: Target, model: Path) -> int | None:
        """Threads of the scoring process that run while it scores; a helper that is late gets another chance."""
        assert isinstance(target, LocalTarget)
        target.run(model, {"x": samples(512)}, batch=512)
        assert target.scorer is not None
        if not Path(f"/proc/{target.scorer.pid}/task").is_dir():
            return None
        before, count = working_threads(target.scorer.pid), 0
        for _ in range(50):
            target.run(model, {"x": samples(512)}, batch=512)
            after = working_threads(target.scorer.pid)
            count = sum(ran > before.get(task, 0) for task, ran in after.items())
            if count >= self.asked_threads() > 1:
                break
        return count


class ThreadsBesideOne(Conformance):
    """For runtimes that start their threads with a session: those beyond the ones of a target with one thread."""

    def process(self, target: LocalTarget) -> int:
        """The process that computes while ``target`` scores."""
        assert target.scorer is not None
        return target.scorer.pid

    def thread_count(self, target: Target, model: Path) -> int | None:
        """One, and as many as the process has beyond the one of a plain target."""
        if not os.path.isdir("/proc/self/task"):
            return None
        assert isinstance(target, LocalTarget)
        plain = type(target)()
        counts = []
        for one in (plain, target):
            one.run(model, {"x": samples(1)})
            counts.append(len(os.listdir(f"/proc/{self.process(one)}/task")))
        plain.close()
        return 1 + counts[1] - counts[0]


def working_threads(pid: int) -> dict[str, int]:
    """Nanoseconds every thread of a process has run."""
    folder = Path(f"/proc/{pid}/task")
    return {task.name: int((task / "schedstat").read_text().split()[0]) for task in folder.iterdir()}


def graph_model(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Ends,
    outputs: Ends,
    weights: dict[str, Any] | None = None,
    *,
    opset: int = 17,
    ir: int = 8,
) -> Path:
    """A graph of nodes; inputs and outputs are (name, type, shape), a weight is an array or a tensor."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*one) for one in outputs],
        [
            value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name)
            for name, value in (weights or {}).items()
        ],
    )
    domains = {node.domain for node in nodes} - {""}
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=ir).SerializeToString())
    return path


def node_model(
    path: Path, op: str, *, domain: str = "", dtype: int = TensorProto.FLOAT, opset: int = 17, ir: int = 8
) -> Path:
    """One node from x to y, both (n, 3)."""
    node = helper.make_node(op, ["x"], ["y"], name="n", domain=domain)
    return graph_model(path, [node], [("x", dtype, ["n", 3])], [("y", dtype, ["n", 3])], opset=opset, ir=ir)


def window_model(path: Path) -> Path:
    """The maximum of 3x3 windows, from x to y; batch, height and width are dynamic."""
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3])
    ends = [("x", TensorProto.FLOAT, ["n", 1, "h", "w"])], [("y", TensorProto.FLOAT, ["n", 1, "i", "j"])]
    return graph_model(path, [node], *ends)


def see_windows(target: Target, path: Path) -> None:
    """The window model gives what it must at two sizes, and is timed at a third; no window fits at 1x1."""
    x = np.arange(64, dtype=np.float32).reshape(4, 1, 4, 4)
    for size in (4, 3):
        (y,) = target.run(path, {"x": x[:, :, :size, :size]})
        assert y.shape == (4, 1, size - 2, size - 2)
        np.testing.assert_array_equal(y[:, 0, 0, 0], x[:, 0, 2, 2])
    (measured,) = target.measure([path], shapes={"x": (1, 1, 8, 8)}, protocol=QUICK)
    assert measured.latency is not None


def see_refused_on_one_line(target: Target, path: Path, said: str, longest: int = 200) -> None:
    """Running a model of one node says what is wrong with which file, shortly."""
    with pytest.raises(ModelError) as caught:
        target.run(path, {"x": np.zeros((1, 3), np.float32)})
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < longest + len(str(path))
    assert "\n" not in str(caught.value)


def see_install_said(kind: type[LocalTarget], install: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the runtime is missing, asking for the target and listing it say the command."""
    monkeypatch.setattr(kind, "requires", ("no_such_module_here",))
    with pytest.raises(TargetUnavailable) as caught:
        targets.get(kind.base)
    assert str(caught.value).endswith(f"run: {install}")
    row = next(row for row in targets.available() if row["name"] == kind.base)
    assert (row["available"], row["install"]) == (False, install)


def see_worker_says_install(target: LocalTarget, model: Path, install: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does a worker that cannot import it."""
    monkeypatch.setenv("PYTHONPATH", ABSENT, prepend=os.pathsep)
    with pytest.raises(TargetUnavailable) as caught:
        target.measure([model], protocol=QUICK)
    assert str(caught.value).endswith(install)

"""A board behind ssh: a real sshd on the loopback interface, targets that reach it, and what they leave there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sshd as servers
from processes import naming, wait_for
from targets.boards import bundle
from targets.boards.ssh import Ssh
from targets.target import Target

RUNTIMES = str(Path(__file__).parent / "faulty_runtimes")
needs_sshd = pytest.mark.skipif(servers.find() is None, reason=servers.MISSING)


class Board(Ssh):
    """With a runtime more, which goes wrong as it is told to; what is lost is said at once."""

    pauses = ()
    runtimes = {**Ssh.runtimes, "misbehaving": "misbehaving_target:Misbehaving"}  # noqa: RUF012


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An sshd for those who do not kill it."""
    made = servers.Sshd(tmp_path_factory.mktemp("quiet") / "sshd", {"PYTHONPATH": RUNTIMES})
    made.start()
    yield made
    made.kill()


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Any]:
    """An sshd to be killed."""
    made = servers.Sshd(tmp_path / "sshd")
    made.start()
    yield made
    made.kill()


class Boards:
    """Makes targets, closes them, and sees what they leave behind."""

    def __init__(self, cache: Path, *, seeded: bool = False) -> None:
        self.cache = cache
        self.made: list[Target] = []
        if seeded:
            cache.mkdir(exist_ok=True)
            (cache / bundle.make().name).write_bytes(bundle.make().data)

    def __call__(self, server: Any, **settings: Any) -> Board:
        known = {"host": "board", "config": str(server.config), "cache": str(self.cache), "python": sys.executable}
        target = Board(**{**known, **settings})
        self.made.append(target)
        return target

    def runners(self) -> dict[int, str]:
        """Processes on the device."""
        return {pid: said for pid, said in naming(f"{self.cache}/runner-").items() if "ssh -F" not in said}

    def left(self) -> list[str]:
        """Files in the cache that are neither a runner nor a whole model."""
        # The misbehaving runtime notes its process id beside the model.
        kept = ("runner-*.zip", "models/*/model.onnx", "models/*/model.pid")
        found = [path for path in self.cache.rglob("*") if path.is_file()] + [*self.cache.glob("session-*")]
        return [str(path) for path in found if not any(path.match(pattern) for pattern in kept)]

    def see_nothing_left(self) -> None:
        """Soon, no process and no half file."""
        wait_for(lambda: not self.runners(), self.runners)
        assert self.left() == []

    def close(self) -> None:
        for target in self.made:
            target.close()


@pytest.fixture
def boards(tmp_path: Path) -> Iterator[Boards]:
    """A device that has the runner already: to send it takes a second."""
    made = Boards(tmp_path / "device", seeded=True)
    yield made
    made.close()
    made.see_nothing_left()


def external_model(folder: Path, location: str) -> Path:
    """y = x + 1, with the constant (1, 300) in a file of its own."""
    import onnx

    value = onnx.numpy_helper.from_array(np.ones((1, 300), np.float32), "one")
    float32 = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "one"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", float32, ["n", 300])],
        [onnx.helper.make_tensor_value_info("y", float32, ["n", 300])],
        [value],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.external_data_helper.set_external_data(value, location)
    made.graph.initializer[0].CopyFrom(value)
    raw = made.graph.initializer[0].raw_data
    (folder / location).parent.mkdir(parents=True, exist_ok=True)
    (folder / location).write_bytes(raw)
    made.graph.initializer[0].ClearField("raw_data")
    (folder / "external.onnx").write_bytes(made.SerializeToString())
    return folder / "external.onnx"

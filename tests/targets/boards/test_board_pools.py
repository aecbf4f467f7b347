"""Several boards as one target: who measures what, which boards differ, and what happens when one goes away."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sshd as servers
from ssh_boards import Boards, needs_sshd
from targets import registry
from targets.benches.benching import bench
from targets.boards.board_pools import BoardPool
from targets.boards.ssh import Ssh
from targets.errors import ModelError, TargetError, TransientError
from targets.runtimes.fake.fake_target import FakeTarget
from targets.target import Estimate, Latency, Measurement
from targets.testing import QUICK, samples

CPU = {"cpu": "A76", "architecture": "aarch64", "features": [], "cores": 4}


class OneBoard(FakeTarget):
    """A board without a board: how long a file takes, what it is, and whether it answers."""

    def __init__(self, name: str, seconds: float = 1e-3, **machine: Any) -> None:
        super().__init__()
        self.name, self.seconds, self.machine = name, seconds, {**CPU, **machine}
        self.is_there, self.measured = True, 0
        self.entered, self.may_go = threading.Event(), threading.Event()
        self.may_go.set()

    def describe(self) -> dict[str, Any]:
        self._answer()
        return {"target": self.name, "machine": self.machine, "packages": {"onnxruntime": "1.31"}}

    def moment(self) -> dict[str, Any]:
        self._answer()
        return {"load": [0.0]}

    def measure(self, models: Sequence[Path], **more: Any) -> list[Measurement]:
        self._answer()
        self.entered.set()
        assert self.may_go.wait(30)
        self.measured += 1
        found = super().measure(models, **more)
        latency = Latency(self.seconds, self.seconds, 1.0, 1.0, 1.0, 10)
        return [replace(one, target=self.name, latency=latency) for one in found]

    def run(self, model: Path, inputs: Mapping[str, np.ndarray], *, batch: int = 64) -> list[np.ndarray]:
        self._answer()
        return super().run(model, inputs, batch=batch)

    def _answer(self) -> None:
        if not self.is_there:
            raise TransientError(f"lost the connection to {self.name}")


@pytest.fixture(autouse=True)
def _leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETOPRESS_LEASES", str(tmp_path / "leases"))


def pool(**boards: OneBoard) -> BoardPool:
    return BoardPool(boards, "ssh:host=" + "+".join(boards))


def test_each_comparison_goes_to_one_board_that_is_free(model: Path) -> None:
    a, b = OneBoard("a"), OneBoard("b")
    both = pool(a=a, b=b)
    both.measure([model, model])
    assert (a.measured, b.measured) == (1, 0)  # as long as one is enough, times are those of one board
    a.may_go.clear()
    a.entered.clear()
    held = threading.Thread(target=both.measure, args=([model],))
    held.start()
    assert a.entered.wait(30)
    found = both.measure([model, model])
    assert [one.target for one in found] == ["b", "b"]
    a.may_go.set()
    held.join()
    assert (a.measured, b.measured) == (2, 1)
    assert both.at_once == 2


def test_who_finds_no_free_board_waits_and_says_so(model: Path) -> None:
    a, b = OneBoard("a"), OneBoard("b")
    both = pool(a=a, b=b)
    holding = []
    for board in (a, b):
        board.may_go.clear()
        holding.append(threading.Thread(target=both.measure, args=([model],)))
        holding[-1].start()
        assert board.entered.wait(30)
    said: list[Estimate] = []

    def watch(estimate: Estimate) -> None:
        said.append(estimate)
        b.may_go.set()

    [found] = both.measure([model], watch=watch)
    assert said[0].stage == "waiting for a board"
    assert found.target == "b"
    a.may_go.set()
    for one in holding:
        one.join()


def test_a_board_that_is_lost_costs_nothing_but_its_share(model: Path) -> None:
    a, b = OneBoard("a"), OneBoard("b")
    both = pool(a=a, b=b)
    a.is_there = False
    assert both.describe()["boards"] == ["a", "b"]
    [found] = both.measure([model])
    assert found.target == "b"
    np.testing.assert_array_equal(both.run(model, {"x": samples(2)})[0], b.run(model, {"x": samples(2)})[0])
    assert both.remarks() == ("ssh:host=a+b: a is left out: lost the connection to a",)
    assert list(both.moment()["boards"]) == ["b"]
    b.is_there = False
    with pytest.raises(TransientError, match="ssh:host=a\\+b: none of 2 boards answers; b: lost the connection to b"):
        both.measure([model])
    # Where none answered, all are asked again.
    a.is_there = True
    [found] = both.measure([model])
    assert found.target == "a"


def test_what_is_wrong_with_a_file_is_wrong_on_all_boards(tmp_path: Path) -> None:
    a, b = OneBoard("a"), OneBoard("b")
    with pytest.raises(ModelError):
        pool(a=a, b=b).measure([tmp_path / "none.onnx"])
    assert b.measured == 0


def test_boards_that_differ_by_more_than_a_tie_are_named(model: Path) -> None:
    boards = {"a": OneBoard("a", 1.02e-3), "b": OneBoard("b", 1e-3), "c": OneBoard("c", 1.2e-3)}
    three = pool(**boards)
    assert three.remarks() == ()  # nothing was measured yet
    three.measure([model])
    [said] = three.remarks()
    assert said.startswith("ssh:host=a+b+c: c takes 20 % longer than b for one file")


def test_a_bench_warns_of_boards_that_differ(model: Path) -> None:
    found = bench([model], [pool(a=OneBoard("a", 1e-3), b=OneBoard("b", 1.5e-3))])
    assert any("b takes 50 % longer than a" in text for text in found.warnings)


def test_boards_of_two_kinds_are_no_pool() -> None:
    mixed = pool(a=OneBoard("a"), b=OneBoard("b", cpu="A72"))
    with pytest.raises(TargetError, match="boards of a pool are of one kind, and b has cpu A72, a has A76; give it as"):
        mixed.capabilities()


def test_none_is_there_when_the_search_begins() -> None:
    both = pool(a=OneBoard("a"), b=OneBoard("b"))
    for board in both.boards.values():
        board.is_there = False  # type: ignore[attr-defined]  # they are OneBoards
    with pytest.raises(TransientError, match="none of 2 boards answers; a: lost the connection to a"):
        both.describe()


def test_the_registry_makes_a_pool_of_several_hosts() -> None:
    made = registry.get("ssh:host=pi@a+b+c,threads=2")
    assert isinstance(made, BoardPool)
    assert made.name == "ssh:host=pi@a+b+c,threads=2"
    assert [board.name for board in made.boards.values()] == [
        f"ssh:host={host},threads=2" for host in ("pi@a", "b", "c")
    ]
    assert registry.get(made.name).name == made.name
    with pytest.raises(TargetError, match=r"host=a\+b\+a names 'a' more than once"):
        registry.get("ssh:host=a+b+a")
    with pytest.raises(TargetError, match="needs the name of a host"):
        registry.get("ssh:host=a+")


@needs_sshd
class TestRealBoards:
    """Two sshd of this machine are two boards of one kind."""

    @pytest.fixture
    def powered(self, tmp_path: Path) -> Iterator[tuple[Any, Any]]:
        made = (servers.Sshd(tmp_path / "one"), servers.Sshd(tmp_path / "two"))
        for one in made:
            one.start()
        yield made
        for one in made:
            one.kill()

    def test_one_of_them_loses_its_power(self, powered: Any, tmp_path: Path, model: Path) -> None:
        one, two = powered
        config = tmp_path / "config"
        config.write_text(
            one.config.read_text().replace("Host board", "Host one")
            + two.config.read_text().replace("Host board", "Host two")
        )
        boards = Boards(tmp_path / "device", seeded=True)
        each = {name: boards(one, host=name, config=str(config)) for name in ("one", "two")}
        both = BoardPool(each, "ssh:host=one+two")
        assert isinstance(each["one"], Ssh)
        assert both.describe()["boards"] == ["one", "two"]
        [before] = both.measure([model], protocol=QUICK)
        one.kill()
        [after] = both.measure([model], protocol=QUICK)
        assert before.latency is not None
        assert after.latency is not None
        assert [said.split(":")[2].strip() for said in both.remarks()] == ["one is left out"]
        boards.close()

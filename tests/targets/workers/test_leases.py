"""The machine's lease: one at a time, whoever holds it, and free again when its holder ends."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from processes import wait_for
from targets.workers import leases
from targets.workers.leases import leased

HOLDER = """
import sys, time
from targets.workers.leases import leased
with leased():
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETOPRESS_LEASES", str(tmp_path / "leases"))


def test_threads_take_turns() -> None:
    inside, most = 0, 0
    changing = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with leased():
                with changing:
                    inside += 1
                    most = max(most, inside)
                with changing:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_process_that_is_killed_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    monkeypatch.setattr(leases, "_SAY", 0.05)

    def waits() -> None:
        with leased(waiting=lambda: said.append("waiting")):
            said.append("mine")

    thread = threading.Thread(target=waits)
    thread.start()
    wait_for(lambda: "waiting" in said)
    assert "mine" not in said
    holder.kill()
    holder.wait()
    thread.join(30)
    assert said[-1] == "mine"


def test_other_names_are_other_leases() -> None:
    with leased("one"), leased("two"):
        pass


def test_nobody_waits_for_ever_for_one_who_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "PATIENCE", 0.1)
    with leased(), leased():
        pass


def test_where_no_lock_can_be_had_nothing_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PARETOPRESS_LEASES", str(tmp_path / "file"))
    with leased(), leased():
        pass

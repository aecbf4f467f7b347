"""What is lost when something goes wrong at a random moment of a search: `python benchmarks/workers/faults.py`.

Each row is a search of `--trials` trials with two workers whose trainings sleep a second. At a moment drawn from the
seed, after some of its trials have finished, one thing happens: a worker is killed, the driver is killed, the disk is
full for three seconds, a training sleeps for ever, the board that measures is gone for three seconds (its sshd is
killed); with `--cluster`, where workers are actors on a Ray cluster of two nodes, also a node is killed. A search that
ended with an error is given again. A trial counts as lost if it was finished before and is not there after, as told
twice if it is recorded as finished twice, and its training as repeated if it ran to its end more than once (one that
was cut off has to be).
Needs Linux; a full disk needs root (a small tmpfs), a lost board needs sshd.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "targets"))
SEARCH = """
import sys
sys.path.insert(0, {here!r})
from faults import searched
searched({folder!r}, {run!r}, {trials}, {cluster!r}, {target!r})
"""
AWAY = 3.0
"""Seconds that a disk is full, or a board is gone."""
SOON = 8.0
"""Seconds without a word after which a worker hangs, here."""


def searched(folder: str, run: str, trials: int, cluster: str | None, target: str | None) -> None:
    """One call of the search, in this process."""
    import torch
    from speed_up import SPACE, task

    import compress
    from compress.executing import silences
    from targets.runtimes.fake.fake_target import FakeTarget

    torch.set_num_threads(1)
    silences.SILENCE, silences._LOOK = SOON, 1.0
    marks = Path(folder) / "marks"
    own = task(0.0)

    def finetune(network: Any, train: Any, settings: Any) -> None:  # noqa: ARG001  what a task's own loop is given
        with contextlib.suppress(FileNotFoundError):
            (marks.parent / "hang").unlink()
            time.sleep(1000)
        time.sleep(1.0)
        size = sum(p.numel() for p in network.parameters())
        name = hashlib.sha256(f"{size} {settings}".encode()).hexdigest()[:16]
        (marks / f"{name}-{time.monotonic_ns()}").touch()

    from dataclasses import replace

    compress.search(
        replace(own, finetune=finetune), target or FakeTarget(), trials=trials, space=SPACE, sampler="random",
        workers=2, cluster=cluster, constraints=["quality_drop<=1"], out=run,
    )  # fmt: skip


class Scene:
    """A search in a process of its own, and what it runs on."""

    def __init__(self, folder: Path, trials: int, cluster: Any, nodes: Path | None, rng: random.Random) -> None:
        self.folder, self.trials, self.cluster, self.nodes, self.rng = folder, trials, cluster, nodes, rng
        self.run, self.target = folder / "run", None
        (folder / "marks").mkdir()

    def call(self) -> subprocess.Popen[bytes]:
        """The search, begun or begun again."""
        address = None if self.cluster is None else self.cluster.address
        code = SEARCH.format(
            here=str(HERE), folder=str(self.folder), run=str(self.run), trials=self.trials, cluster=address,
            target=self.target,
        )  # fmt: skip
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def events(self) -> list[dict[str, Any]]:
        """The record as far as it is whole."""
        path = self.run / "record.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    @contextlib.contextmanager
    def prepared(self, kind: str) -> Iterator[Any]:
        """What the accident needs is there inside; gives what happens, called with the driver's process."""
        with contextlib.ExitStack() as opened:
            if kind == "disk":
                disk = opened.enter_context(small_disk(self.folder / "disk")) if self.nodes is None else self.nodes
                self.run = disk / "run" if self.nodes is None else self.run
                yield lambda _: fill(disk)
            elif kind == "board":
                board = opened.enter_context(sshd(self.folder / "sshd"))
                cache = self.folder / "board"
                self.target = f"ssh:host=board,config={board.config},cache={cache},python={sys.executable}"
                yield lambda _: lose(board)
            else:
                yield getattr(self, kind)

    def worker(self, driver: subprocess.Popen[bytes]) -> None:
        """A worker is killed, one of those that run at that moment."""
        there = workers_of(driver.pid) if self.cluster is None else processes(b"ray::TrialActor")
        if there:
            os.kill(self.rng.choice(there), signal.SIGKILL)

    def driver(self, driver: subprocess.Popen[bytes]) -> None:
        """The driver is killed; its workers notice and end."""
        driver.kill()

    def node(self, _: subprocess.Popen[bytes]) -> None:
        """A node of the cluster is killed, and another one joins."""
        self.cluster.remove_node(self.rng.choice(list(self.cluster.worker_nodes)), allow_graceful=False)
        self.cluster.add_node(num_cpus=1, object_store_memory=100_000_000)

    def hang(self, _: subprocess.Popen[bytes]) -> None:
        """The next training sleeps for ever."""
        (self.folder / "hang").touch()


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A disk of its own, small enough to be filled."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> None:
    """Leave nothing free for some seconds."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    time.sleep(AWAY)
    filler.unlink()


@contextlib.contextmanager
def sshd(place: Path) -> Iterator[Any]:
    """A board: an sshd of its own on this machine."""
    from sshd import Sshd

    made = Sshd(place)
    made.start()
    try:
        yield made
    finally:
        made.kill()


def lose(board: Any) -> None:
    """The board loses its power, and is back after some seconds."""
    board.kill()
    time.sleep(AWAY)
    board.start()


def processes(text: bytes) -> list[int]:
    """Those in whose command line a text stands."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and text in Path(f"/proc/{name}/cmdline").read_bytes():
                found.append(int(name))
    return found


def workers_of(driver: int) -> list[int]:
    """Processes of the workers that a driver has started."""
    found = []
    for pid in processes(b"compress.executing.worker"):
        with contextlib.suppress(OSError, IndexError):
            if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == driver:
                found.append(pid)
    return found


def one(kind: str, number: int, trials: int, cluster: Any, nodes: Path | None) -> str:
    """A row: what came of one accident."""
    rng = random.Random(f"{kind}-{number}")
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as opened:
        scene = Scene(Path(place), trials, cluster, nodes, rng)
        strike = opened.enter_context(scene.prepared(kind))
        driver = scene.call()
        start, count = time.monotonic(), rng.randint(1, trials - 3)
        while driver.poll() is None and sum(event["event"] == "finished" for event in scene.events()) < count:
            time.sleep(0.05)
        time.sleep(rng.uniform(0.0, 2.0))
        moment = time.monotonic() - start
        before = {event["trial"] for event in scene.events() if event["event"] == "finished"}
        over = driver.poll() is not None
        strike(driver)
        _, words = driver.communicate()
        again = 0
        while driver.returncode != 0 and again < 3:
            again += 1
            driver = scene.call()
            _, words = driver.communicate()
        found = scene.events()
        finished = Counter(event["trial"] for event in found if event["event"] == "finished")
        ended = Counter(path.name.partition("-")[0] for path in (scene.folder / "marks").iterdir())
        lost = len(before - finished.keys())
        twice = sum(count > 1 for count in finished.values())
        repeated = sum(ended.values()) - len(ended)
        failed = sum(event["event"] == "failed" for event in found)
        said = "" if driver.returncode == 0 else f": {words.decode(errors='replace').strip().splitlines()[-1]}"
        return (
            f"{kind} {number} after {moment:4.1f} s{' (over)' if over else ''}: {len(before)} finished before, "
            f"{len(finished)} after, {lost} lost, {twice} told twice, {repeated} trainings repeated, {failed} failed, "
            f"status {driver.returncode} after {again} more calls{said}"
        )


def main() -> None:
    """Print a row for each accident."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=["worker", "driver", "disk", "hang", "board"])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--cluster", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as opened:
        cluster = nodes = None
        if arguments.cluster:
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
            from ray.cluster_utils import Cluster

            head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100_000_000}
            cluster = Cluster(initialize_head=True, head_node_args=head)
            if "disk" in arguments.kinds:
                # What workers write, they write there.
                nodes = opened.enter_context(small_disk(Path(place) / "nodes"))
                os.environ["TMPDIR"] = str(nodes)
            for _ in range(2):
                cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
            os.environ.pop("TMPDIR", None)
            opened.callback(cluster.shutdown)
        for kind in arguments.kinds:
            for number in range(arguments.times):
                print(one(kind, number, arguments.trials, cluster, nodes), flush=True)


if __name__ == "__main__":
    main()

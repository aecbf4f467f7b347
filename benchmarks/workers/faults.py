"""What is lost when a worker, or the driver, is killed at a random moment: `python benchmarks/workers/faults.py`.

Each row is a search of `--trials` trials with two workers whose trainings sleep a second. At a moment drawn from the
seed a worker is killed, or the driver is killed and the same search given again. A trial counts as lost if it was
finished before and is not there after, and as done twice if its training ran to its end more than once. With
`--cluster` workers are actors on a Ray cluster of two nodes, and `node` kills one of these.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

SEARCH = """
import sys
sys.path.insert(0, {here!r})
from faults import searched
searched({folder!r}, {trials}, {cluster!r})
"""


def searched(folder: str, trials: int, cluster: str | None) -> None:
    """One call of the search, in this process."""
    import torch
    from speed_up import SPACE, task

    import compress
    from targets.runtimes.fake.fake_target import FakeTarget

    torch.set_num_threads(1)
    marks = Path(folder) / "marks"
    own = task(0.0)

    def finetune(network: Any, train: Any, settings: Any) -> None:  # noqa: ARG001  what a task's own loop is given
        time.sleep(1.0)
        name = sum(p.numel() for p in network.parameters())
        (marks / f"{name}-{time.monotonic_ns()}").touch()

    from dataclasses import replace

    compress.search(
        replace(own, finetune=finetune), FakeTarget(), trials=trials, space=SPACE, sampler="random", workers=2,
        cluster=cluster, constraints=["quality_drop<=1"], out=Path(folder) / "run",
    )  # fmt: skip


def begun(folder: Path, trials: int, cluster: str | None) -> subprocess.Popen[bytes]:
    """The search in a process of its own."""
    code = SEARCH.format(here=str(Path(__file__).parent), folder=str(folder), trials=trials, cluster=cluster)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def events(folder: Path) -> list[dict[str, Any]]:
    """The record as far as it is whole."""
    path = folder / "run" / "record.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def workers_of(driver: int) -> list[int]:
    """Processes of the workers that a driver has started."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parent = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
                if parent == driver and b"compress.executing.worker" in Path(f"/proc/{name}/cmdline").read_bytes():
                    found.append(int(name))
            except (OSError, IndexError):
                continue
    return found


def one(kind: str, number: int, trials: int, cluster: Any) -> str:
    """A row: what came of one accident."""
    rng = random.Random(f"{kind}-{number}")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "marks").mkdir()
        address = None if cluster is None else cluster.address
        driver = begun(folder, trials, address)
        while driver.poll() is None and not any(event["event"] == "begun" for event in events(folder)):
            time.sleep(0.05)
        time.sleep(rng.uniform(0.0, 12.0))
        before = {event["trial"] for event in events(folder) if event["event"] == "finished"}
        if kind == "driver":
            driver.kill()
        elif kind == "node":
            cluster.remove_node(rng.choice(list(cluster.worker_nodes)), allow_graceful=False)
        else:
            there = workers_of(driver.pid)
            if there:
                os.kill(rng.choice(there), signal.SIGKILL)
        driver.wait()
        again = 0
        while driver.returncode != 0 and again < 3:
            again += 1
            driver = begun(folder, trials, address)
            driver.wait()
        if kind == "node":
            cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
        found = events(folder)
        finished = Counter(event["trial"] for event in found if event["event"] == "finished")
        ended = Counter(path.name.partition("-")[0] for path in (folder / "marks").iterdir())
        lost = len(before - finished.keys())
        twice = sum(count > 1 for count in finished.values())
        repeated = sum(ended.values()) - len(ended)
        failed = sum(event["event"] == "failed" for event in found)
        return (
            f"{kind} {number}: {len(before)} finished before, {len(finished)} after, {lost} lost, {twice} told twice, "
            f"{repeated} trainings repeated, {failed} failed, status {driver.returncode} after {again} more calls"
        )


def main() -> None:
    """Print a row for each accident."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=["worker", "driver"])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--cluster", action="store_true")
    arguments = parser.parse_args()
    cluster = None
    if arguments.cluster:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100_000_000}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    for kind in arguments.kinds:
        for number in range(arguments.times):
            print(one(kind, number, arguments.trials, cluster), flush=True)


if __name__ == "__main__":
    main()

"""paretopress with the same budget, weights and data as its peers: its run as an outcome like theirs.

    python benchmarks/peers/ours.py digits --weights digits.pt --seconds 40 --out out/ours \\
        [--sampler tpe] [--seed 0]

The default space of ``compress.SearchSpace``, not the recipe's own. The budget is wall time here (``--time``): run it
pinned to one core of a quiet machine, ``taskset -c 1``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from subjects import load
from yardstick import Outcome, Tried, peer_arguments

import compress


def main() -> None:
    """Search, and write what was tried."""
    parser = peer_arguments(__doc__)
    parser.add_argument("--sampler")
    parser.add_argument("--limit", type=float, default=0.01, help="drop of the metric that is allowed")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    subject = load(asked.name, asked.data, asked.weights)
    task = replace(subject.task, model=subject.module)
    result = compress.search(
        task, time=asked.seconds, seed=asked.seed, sampler=asked.sampler, out=asked.out / "run",
        space=compress.SearchSpace(), constraints=[f"quality_drop<={asked.limit}"],
    )  # fmt: skip
    baseline = result.baseline
    peer = "paretopress" + (f", {asked.sampler}" if asked.sampler else "")
    outcome = Outcome(peer, task.name, asked.seed, asked.seconds, str(baseline.path), baseline.quality.value)
    for one in result.candidates():
        if one.id != baseline.id and one.latency is not None and one.path.exists():
            outcome.tried.append(Tried(str(one.path), one.latency.ratio, one.quality.value, asked.seconds))
    outcome.trainings = result.report["stages"].get("finetune", {}).get("count", 0)
    outcome.save(asked.out / "outcome.json")
    print(f"{peer}: {len(outcome.tried)} files, {outcome.best(asked.limit)}")


if __name__ == "__main__":
    main()

"""What one does by hand where epochs are dear: one uniform cut, trained for all the time there is.

    python benchmarks/dear/hand.py benchmarks/dear/mobilenet_cifar.py --data cifar10.zip --weights mobilenet.pt \\
        --seconds 360 --out out/hand [--ratio 0.5] [--round 8]

The same budget, weights, training and clock as the peers (benchmarks/peers/yardstick.py), and compared with them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import compress

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "peers"))
from plain_optuna import exported, finetuned
from subjects import load
from yardstick import Budget, Outcome, Tried, peer_arguments, ratios, scored

_EXPORT = 15.0
"""Seconds kept for the export and the measurement."""


def main() -> None:
    """Cut, train, and write what came of it."""
    parser = peer_arguments(__doc__)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--round", type=int, default=8)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    subject = load(asked.name, asked.data, asked.weights)
    asked.out.mkdir(parents=True, exist_ok=True)
    budget = Budget(asked.seconds - _EXPORT)
    module = compress.prune(subject.module, subject.example(), asked.ratio, step=asked.round).module
    first = Budget(budget.left)
    finetuned(subject, module, 1, 3e-3, 1e-4, asked.seed, budget)  # how long an epoch takes
    epochs = int(budget.left / max(first.spent, 1e-3))
    if epochs > 0:
        finetuned(subject, module, epochs, 3e-3, 1e-4, asked.seed, budget)
    baseline = exported(subject, subject.module, asked.out / "baseline.onnx")
    path = exported(subject, module.eval(), asked.out / "cut.onnx")
    peer = f"by hand, {asked.ratio:.0%} cut"
    outcome = Outcome(peer, subject.task.name, asked.seed, asked.seconds, str(baseline), scored(baseline, subject.val))
    ratio, val = ratios([baseline, path], subject)[1], scored(path, subject.val)
    outcome.tried.append(Tried(str(path), ratio, val, budget.spent))
    outcome.trainings = 1
    outcome.save(asked.out / "outcome.json")
    print(f"{peer}: {ratio:.3f}x, val {val:.4f} after {1 + max(epochs, 0)} epochs; baseline {outcome.baseline_val:.4f}")


if __name__ == "__main__":
    main()

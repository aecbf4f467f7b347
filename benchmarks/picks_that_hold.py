"""Whether first choices hold on test, and whether the probability that the search gives them is right.

    python benchmarks/picks_that_hold.py digits residual-digits --seeds 4 --seconds 80 --out out/holds \\
        [keyword-spotting=fsdd.zip]

A task is a recipe's name, with its data behind ``=`` where it needs them, or ``residual-digits``: a small residual
network on scikit-learn's digits, which is in this file. The first choice is the candidate that is read on test first
for ``fastest``; it holds if its drop there is within the limit.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import compress
from compress.run_folder.runs import open_for_reading
from compress.tasks.loading import load_task
from recipes import digits


class Residual(nn.Module):
    """Three residual blocks of 32 channels on (batch, 1, 8, 8) -> (batch, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
                nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32),
            )
            for _ in range(3)
        )  # fmt: skip
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Takes images of (batch, 1, 8, 8) and gives class logits of (batch, 10)."""
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(x)


def residual_digits() -> compress.Task:
    """The data of the recipe digits with the residual network, trained for 20 epochs."""
    recipe = digits.task()

    def trained() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = Residual().train()
            optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3, weight_decay=1e-3)
            loader = torch.utils.data.DataLoader(recipe.train, 64, shuffle=True)
            for _ in range(20):
                for inputs, labels in loader:
                    optimizer.zero_grad()
                    torch.autograd.backward(nn.functional.cross_entropy(module(inputs), labels))
                    optimizer.step()
        return module.eval()

    return compress.Task(name="residual-digits", model=trained, train=recipe.train, val=recipe.val, test=recipe.test)


def first_choice(result: compress.Result) -> dict[str, object]:
    """What was read on test first for ``fastest``, and how it fared there."""
    report = result.report
    target = next(iter(report["targets"]))
    pick = report["picks"][target]["fastest"]
    first = (pick["refuted"] or [pick["id"]])[0]
    measured = next(one for one in report["candidates"] if one["id"] == first)["measured"][target]
    certainties = open_for_reading(result.folder).state.facts.certainties
    return {
        "id": first, "ratio": measured["latency"]["ratio"], "val": measured["quality_drop"]["val"]["value"],
        "test": measured["quality_drop"]["test"]["value"], "certainty": certainties.get(first),
        "held": not pick["refuted"] and pick["verdict"] != "refuted", "shipped": pick["id"],
        "verdict": pick["verdict"],
    }  # fmt: skip


def main() -> None:
    """Search, and print a line for each, and how many first choices held against how many were expected to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=80.0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for text in asked.tasks:
        name, _, data = text.partition("=")
        task = residual_digits() if name == "residual-digits" else load_task(name, data or None).task
        for seed in range(asked.seeds):
            out = asked.out / f"{name}-{seed}"
            result = compress.search(task, time=asked.seconds, seed=seed, out=out)
            rows.append({"task": name, "seed": seed, **first_choice(result)})
            print(json.dumps(rows[-1]), flush=True)
    held = np.array([bool(row["held"]) for row in rows])
    sure = np.array([row["certainty"] if row["certainty"] is not None else np.nan for row in rows], dtype=float)
    print(
        f"{held.sum()} of {len(held)} first choices held; expected {np.nansum(sure):.1f} of {np.sum(~np.isnan(sure))}"
    )


if __name__ == "__main__":
    main()

"""Replays searches on tables of finished trainings, with a simulated clock: ours and Optuna's samplers.

    python -m benchmarks.tabular.replay [--table FILE.json | --synthetic keywords] [--seeds 20] [--samplers ours tpe]

Nothing is trained or timed; a search is told what the table says, and its clock goes on by what it would have taken:
0.7 s to measure a network, the table's seconds for its epochs. A search is judged by the hypervolume of all that it
has trained, as it is on test (luck on val is no merit), over simulated minutes, and by what it ships: the network that
it says, or else the fastest within the limit on val, of the weights kept last. Optuna's samplers choose the length of
training as one more parameter, or take the longest; both are shown. What they ask for a second time costs nothing.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tabular import synthetic
from benchmarks.tabular.tables import Table, load, volume
from compress.sampling import cost_model, quality_model, rungs
from compress.sampling.network_features import Eyes
from compress.sampling.next_training import Aim, Known, Options, Trained, Training, UnderWay, next_training, shipped
from compress.sampling.pool import spread
from compress.values.networks import Network

MEASURING = 0.7
"""Seconds to export and time one network."""
REFITTED = 3
"""Hyperparameters are found anew after so many trainings."""
_PLAIN = ("tpe", "nsga2", "gp", "random", "grid")
_ASKS = 400


@dataclass
class Clock:
    """What a replayed search has done, and when."""

    table: Table
    budget: float
    seconds: float = 0.0
    points: list[tuple[float, float]] = field(default_factory=lambda: [(1.0, 0.0)])
    curve: list[tuple[float, float]] = field(default_factory=list)
    """(seconds, hypervolume)."""
    kept: dict[Network, int] = field(default_factory=dict)
    """Network -> index of the length that it was trained for last."""
    trainings: int = 0
    choice: Network | None = None
    """What is shipped, if the search says so itself; else the fastest within the limit on val."""

    def measure(self, count: int = 1) -> None:
        """Time that measuring so many networks takes."""
        self.seconds += MEASURING * count

    def train(self, network: Network, length: int, epochs: float) -> bool:
        """Whether it ended in time; then what was read counts."""
        self.seconds += epochs * self.table.of[network].seconds_per_epoch
        return self.trained(network, length)

    def trained(self, network: Network, length: int) -> bool:
        """The same of a training that has just ended."""
        entry = self.table.of[network]
        if self.seconds > self.budget:
            return False
        self.trainings += 1
        self.kept[network] = length
        for precision, errors in entry.test.items():
            self.points.append((entry.costs[precision], errors[length] - self.table.baseline_test))
        self.curve.append((self.seconds, volume(self.points)))
        return True

    def shipped(self) -> tuple[float, float]:
        """(cost, drop on test) of the network that is shipped, in its fastest precision within the limit on val."""
        found = [(1.0, 0.0)]
        for network, length in self.kept.items():
            if self.choice not in (None, network):
                continue
            entry = self.table.of[network]
            for precision, errors in entry.val.items():
                if errors[length] - self.table.baseline_error <= self.table.limit:
                    found.append((entry.costs[precision], entry.test[precision][length] - self.table.baseline_test))
        return min(found)

    def reached(self, share: float) -> float:
        """Seconds until this share of the exact hypervolume was there; infinite if it never was."""
        return next((at for at, value in self.curve if value >= share * self.table.exact), float("inf"))


@dataclass(frozen=True)
class Running:
    """A training that is under way."""

    ends: float
    order: int
    found: Training
    length: int


def replay_ours(
    table: Table, seed: int, budget: float, workers: int = 1, most: int | None = None, **changes: Any
) -> Clock:
    """The search that this project runs, without the parts that need real networks.

    ``workers``: trainings that go on at once. ``most``: of them in all. ``changes``: of its ``Aim``.
    """
    clock = Clock(table, budget)
    patterns = table.by_dropped
    measured = [network for network in spread(patterns, 18, seed) if network in table.of]
    clock.measure(len(measured))
    models = {
        precision: cost_model.fit(patterns, measured, [table.of[n].costs[precision] for n in measured], table.step)
        for precision in next(iter(table.entries)).costs
    }
    networks = tuple(entry.network for entry in table.entries)
    eyes = Eyes(patterns)
    response = quality_model.Response.of_proportion(table.baseline_error, table.val_examples)
    own_noise = quality_model.proportion_noise(table.baseline_error, table.val_examples)
    allowed = table.baseline_error + table.limit
    noise = quality_model.proportion_noise(allowed, table.val_examples) / (allowed + response.floor)
    aim = replace(Aim(table.limit, noise), **changes)
    seconds = np.array([entry.seconds_per_epoch for entry in table.entries])
    plan = rungs.plan(budget, [table.of[n].seconds_per_epoch for n in measured], table.lengths)
    readings: list[quality_model.Reading] = []
    trained: dict[Network, Trained] = {}
    running: list[Running] = []
    endings = begun = 0
    model = quality_model.fit(eyes, response, readings, own_noise)
    while True:
        while len(running) < workers and (most is None or begun < most):
            options = Options(networks, {p: each.costs(networks) for p, each in models.items()}, seconds)
            busy = tuple(UnderWay(each.found.network, table.lengths[each.length]) for each in running)
            past = [one for one in trained.values() if one.network not in {each.network for each in busy}]
            known = Known(plan, clock.seconds, aim, options, past, model, busy, endings // workers)
            found = next_training(known)
            now = shipped(known)
            clock.choice = now[0] if now else None
            if found is None:
                break
            entry = table.of[found.network]
            if found.network not in models["fp32"].measured:
                clock.measure()
                models = {p: each.with_measured(found.network, entry.costs[p]) for p, each in models.items()}
            endings += found.reason == "ending"
            before = trained[found.network].rungs if found.network in trained else 0
            length = len(table.lengths) - 1 if found.reason == "ending" else before
            running.append(Running(clock.seconds + found.epochs * entry.seconds_per_epoch, begun, found, length))
            begun += 1
        if not running:
            return clock
        done = min(running, key=lambda each: (each.ends, each.order))
        running.remove(done)
        network, length = done.found.network, done.length
        clock.seconds = max(clock.seconds, done.ends)
        if not clock.trained(network, length):
            return clock
        drops = {p: errors[length] - table.baseline_error for p, errors in table.of[network].val.items()}
        trained[network] = Trained(network, length + 1, table.lengths[length], drops)
        readings += _readings(table, network, length)
        scales = model.scales if clock.trainings % REFITTED else None
        model = quality_model.fit(eyes, response, readings, own_noise, scales)


def _readings(table: Table, network: Network, length: int) -> list[quality_model.Reading]:
    entry, epochs = table.of[network], table.lengths[length]
    found = []
    for precision, errors in entry.val.items():
        noise = quality_model.proportion_noise(errors[length], table.val_examples)
        found.append(quality_model.Reading(network, epochs, errors[length], noise, "val", precision))
    drop = entry.train_drop[length]
    noise = quality_model.proportion_noise(drop, table.train_examples)
    return [*found, quality_model.Reading(network, epochs, drop, noise, "train")]


def replay_plain(table: Table, seed: int, budget: float, name: str, *, lengths: bool) -> Clock:
    """One of Optuna's samplers, over dropped blocks, widths and, if ``lengths``, the length of training."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    clock = Clock(table, budget)
    whole = table.by_dropped[()]
    blocks = sorted({block for pattern in table.patterns for block in pattern.dropped})
    last = len(table.lengths) - 1

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        dropped = tuple(block for block in blocks if trial.suggest_categorical(f"drop.{block}", [False, True]))
        places = {g.name: trial.suggest_int(f"width.{g.name}", 0, len(g.widths) - 1) for g in whole.groups}
        length = trial.suggest_int("length", 0, last) if lengths else last
        left = {group.name: group for group in table.by_dropped[dropped].groups}
        widths = sorted((name, group.widths[places[name]]) for name, group in left.items())
        network = Network(dropped, tuple(widths))
        entry = table.of[network]
        if clock.kept.get(network, -1) < length:
            clock.measure()
            if not clock.train(network, length, table.lengths[length]):
                trial.study.stop()
        best = min(entry.costs, key=lambda p: entry.costs[p])
        return entry.costs[best], entry.val[best][length] - table.baseline_error

    study = optuna.create_study(directions=["minimize"] * 2, sampler=_sampler(name, seed, whole, blocks))
    study.optimize(objective, n_trials=_ASKS)
    return clock


def _sampler(name: str, seed: int, whole: Any, blocks: list[str]) -> Any:
    from optuna import samplers

    if name == "grid":
        grid: dict[str, list[Any]] = {f"drop.{block}": [False, True] for block in blocks}
        grid |= {f"width.{group.name}": list(range(len(group.widths))) for group in whole.groups}
        return samplers.GridSampler(grid, seed=seed)
    made: dict[str, Callable[[], Any]] = {
        "tpe": lambda: samplers.TPESampler(seed=seed),
        "nsga2": lambda: samplers.NSGAIISampler(population_size=20, seed=seed),
        "gp": lambda: samplers.GPSampler(seed=seed),
        "random": lambda: samplers.RandomSampler(seed=seed),
    }
    return made[name]()


def summary(clocks: list[Clock]) -> dict[str, float]:
    """Medians over seeds: where they stand at the end, and how long they took to get there."""
    exact = clocks[0].table.exact
    ends = np.array([clock.curve[-1][1] / exact if clock.curve else 0.0 for clock in clocks])
    picks = np.array([clock.shipped() for clock in clocks])
    return {
        "hypervolume": float(np.median(ends)),
        "worst": float(ends.min()),
        "minutes to 90 %": float(np.median([clock.reached(0.90) for clock in clocks])) / 60,
        "minutes to 95 %": float(np.median([clock.reached(0.95) for clock in clocks])) / 60,
        "shipped": float(picks[:, 0].mean()),
        "its drop on test": float(picks[:, 1].mean()),
        "beyond the limit": float((picks[:, 1] > clocks[0].table.limit).mean()),
        "networks": float(np.median([len(clock.kept) for clock in clocks])),
        "trainings": float(np.median([clock.trainings for clock in clocks])),
    }


def compare(table: Table, samplers: list[str], seeds: int, times: float) -> dict[str, dict[str, float]]:
    """Sampler -> its summary. Plain samplers get ``times`` as much time, to see when they would be as far."""
    found: dict[str, dict[str, float]] = {}
    for name in samplers:
        begun = time.perf_counter()
        if name == "ours":
            found[name] = summary([replay_ours(table, seed, table.budget) for seed in range(seeds)])
        else:
            for lengths in (False, True) if name != "grid" else (False,):
                budget = times * table.budget
                clocks = [replay_plain(table, seed, budget, name, lengths=lengths) for seed in range(seeds)]
                found[f"{name}, length {'searched' if lengths else 'longest'}"] = summary(clocks)
        print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
    return found


def by_workers(table: Table, workers: list[int], seeds: int, trainings: int) -> None:
    """Print where a search stands after so many trainings, whatever time it took, for each number of workers."""
    for count in workers:
        # Each has time for all of them; what is kept for the end is a share of that.
        clocks = [replay_ours(table, seed, table.budget * 4 / count, count, trainings) for seed in range(seeds)]
        ends = np.array([clock.curve[-1][1] / table.exact for clock in clocks])
        found, error, last = summary(clocks), ends.std(ddof=1) / np.sqrt(len(ends)), 100 * ends.min()
        print(
            f"{count:3d} workers: {found['trainings']:.0f} trainings of {found['networks']:.0f} networks, "
            f"hypervolume {100 * ends.mean():.1f} % in the mean (error {100 * error:.1f}), worst {last:.1f} %, "
            f"shipped {found['shipped']:.3f}, beyond the limit {100 * found['beyond the limit']:.0f} %",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="a table that make_table.py made")
    parser.add_argument("--synthetic", choices=list(synthetic.KINDS), default="keywords")
    parser.add_argument("--table-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samplers", nargs="+", default=["ours", *_PLAIN])
    parser.add_argument("--times", type=float, default=1.0, help="budget of the plain samplers, in budgets of ours")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", help="only ours, with so many trainings at once")
    parser.add_argument("--trainings", type=int, default=64, help="with --workers: after how many it is judged")
    asked = parser.parse_args()
    table = load(asked.table) if asked.table else synthetic.make(asked.synthetic, asked.table_seed)
    print(f"{table.name}: {len(table.entries)} networks, {table.budget / 60:.0f} min, fastest {table.fastest:.3f}")
    if asked.workers:
        by_workers(table, asked.workers, asked.seeds, asked.trainings)
        return
    found = compare(table, asked.samplers, asked.seeds, asked.times)
    for name, values in found.items():
        print(f"{name:24s}", "  ".join(f"{key} {value:.3f}" for key, value in values.items()))
    if asked.json:
        finite = {
            name: {key: value if np.isfinite(value) else None for key, value in values.items()}
            for name, values in found.items()
        }
        asked.json.write_text(json.dumps({"table": table.name, "seeds": asked.seeds, "found": finite}, indent=1) + "\n")


if __name__ == "__main__":
    main()

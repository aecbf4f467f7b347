"""A model against itself: ``python benchmarks/same_model.py --count 200``.

Comparisons of a model with a copy that differs in a comment only, spread over the targets that are installed, every
other one beside a busy loop on one core. An honest instrument says 1: at least 95 % of the ratios should be within
1.5 % of it, and none be called a win. Prints a table for people, then one JSON line for programs.

    python benchmarks/same_model.py --count 200 --target ort-cpu --target openvino-cpu
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from networks import make_networks

import targets
from targets.benches.comparing import CAREFUL

WITHIN, SHARE = 0.015, 0.95
"""Largest distance from 1 that counts as right, and the share of ratios that must be."""
MODELS = ("cnn-small", "cnn-large", "depthwise-medium", "transformer-small", "recurrent")


def main() -> int:
    """Status 0 where the instrument is honest."""
    options = _options()
    names = options.target or [row["name"] for row in targets.available() if row["available"] and _local(row["name"])]
    with tempfile.TemporaryDirectory() as folder:
        pairs = [_pair(network.path, Path(folder)) for network in make_networks(Path(folder), MODELS)]
        rows = list(_compared(options.count, names, pairs, options.seconds))
    _print(names, rows)
    print(json.dumps({"benchmark": "same_model", **_summary(rows), "rows": rows}))
    return 0 if _summary(rows)["passed"] else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--target", action="append", help="default: every local one that is installed")
    parser.add_argument("--seconds", type=float, default=8.0, help="of one comparison")
    return parser.parse_args()


def _local(name: str) -> bool:
    return name not in ("fake", "ssh")  # a board's address has to be given


def _pair(path: Path, folder: Path) -> tuple[Path, Path]:
    """The model and a copy of it with other bytes."""
    model = onnx.load(path)
    model.doc_string = "the same"
    onnx.save(model, copy := folder / f"copy-of-{path.name}")
    return path, copy


def _compared(count: int, names: list[str], pairs: list[tuple[Path, Path]], seconds: float) -> Iterator[dict[str, Any]]:
    """One row a comparison; targets and models in turn, every other one beside a busy loop."""
    protocol = replace(CAREFUL, total=seconds)
    runnable = {name: list(pairs) for name in names}
    for number in range(count):
        name, busy = names[number % len(names)], number // len(names) % 2 == 1
        start = time.perf_counter()
        ratio = None
        while ratio is None:
            if not runnable[name]:
                raise SystemExit(f"{name} runs none of the models")
            one, same = pair = runnable[name][number // len(names) % len(runnable[name])]
            try:
                with _busy_loop() if busy else contextlib.nullcontext():
                    ratio = targets.compare([one, same], target=name, protocol=protocol).ratio(same)
            except targets.ModelError as error:
                # Not every runtime has every operator: the next model takes its place.
                print(f"{name}: {error}", file=sys.stderr)
                runnable[name].remove(pair)
        row = {
            "target": name, "model": one.stem, "busy": busy, "ratio": ratio.value, "low": ratio.low, "high": ratio.high,
            "win": not ratio.tied, "seconds": time.perf_counter() - start,
        }  # fmt: skip
        print(f"{number + 1}/{count} {name} {one.stem} {'busy ' * busy}{ratio}", file=sys.stderr)
        yield row


@contextlib.contextmanager
def _busy_loop() -> Iterator[None]:
    """A process that keeps the first core busy."""
    process = multiprocessing.get_context("spawn").Process(target=_spin, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _spin() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    parent = os.getppid()
    while os.getppid() == parent:  # it must not outlive a benchmark that is killed
        pass


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    within = sum(abs(row["ratio"] - 1) <= WITHIN for row in rows)
    wins = sum(row["win"] for row in rows)
    passed = bool(rows) and within >= SHARE * len(rows) and wins == 0
    return {"count": len(rows), "within": within, "wins": wins, "passed": passed}


def _print(names: list[str], rows: list[dict[str, Any]]) -> None:
    print("| target | core | comparisons | within 1.5 % | called a win | smallest | largest | seconds each |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for name in names:
        for busy in (False, True):
            here = [row for row in rows if row["target"] == name and row["busy"] == busy]
            if here:
                found, each = _summary(here), sum(row["seconds"] for row in here) / len(here)
                ratios = [row["ratio"] for row in here]
                print(
                    f"| {name} | {'one busy' if busy else 'as it is'} | {len(here)} | {found['within']} "
                    f"| {found['wins']} | {min(ratios):.4f} | {max(ratios):.4f} | {each:.1f} |"
                )


if __name__ == "__main__":
    sys.exit(main())

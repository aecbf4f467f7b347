"""What each ingredient buys: ``python benchmarks/ingredients.py keyword-spotting --data fsdd.zip``.

One network, cut to a quarter of its channels, trained again and quantized with the default settings, then with one
setting changed at a time, each with several seeds. Judged on val, never on test: accuracy of the float and the int8
file, and their cross-entropy, which tells small differences apart that accuracy cannot (n = 300). Costs come from the
fake target, so nothing depends on timing; what a row trains is kept, so a run that is broken off goes on.

    python benchmarks/ingredients.py keyword-spotting --data fsdd.zip --seeds 3 --only ema --only mixup
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from compress.baseline import preparing
from compress.baseline.contexts import Context
from compress.onnx_files import parity
from compress.run_folder.caching import Cache
from compress.run_folder.records import Record
from compress.run_folder.runs import Request, Run
from compress.stages import trials
from compress.stages.latency_gate import Gated
from compress.tasks import splits as tasks_splits
from compress.tasks.loading import load_task
from compress.values.domains import Choice
from compress.values.search_spaces import SearchSpace
from targets.runtimes.fake.fake_target import FakeTarget


@dataclass(frozen=True, eq=False)
class Row:
    """One line of the table: what is changed from the default."""

    ingredient: str
    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)


BASE: Mapping[str, Any] = {
    "prune_ratio": 0.75, "prune_skew": 0.0, "prune_delta": 0.0, "epochs": 8, "lr": 5e-3, "weight_decay": 1e-3,
    "l1": 0.0, "dropout": 0.0, "label_smoothing": 0.0, "distill_weight": 0.7, "temperature": 4.0,
    "calibration": "minmax", "float_share": 0.2, "precision": Choice("fp32", "int8"),
}  # fmt: skip
ROWS = (
    Row("default", "-"),
    *(Row("importance", name, {"importance": name}) for name in ("l1", "bn", "fpgm", "taylor", "random")),
    *(Row("allocation", name, {"allocation": name}) for name in ("global", "sensitivity")),
    Row("iterative", "2 cuts", {"prune_steps": 2}),
    *(Row("distillation", f"weight {w:g}", {"distill_weight": w}) for w in (0.0, 0.4, 1.0)),
    Row("distillation", "features too", {"feature_weight": 10.0}),
    Row("sparsity learning", "batch norm", {"sparsity": 0.2}),
    Row("sparsity learning", "group lasso", {"sparsity": 0.2, "sparsity_kind": "group"}),
    Row("averaging (EMA)", "0.998", {"ema": 0.998}),
    Row("dropout", "0.1", {"dropout": 0.1}),
    Row("mixup", "0.2", {"mixup": 0.2}),
    Row("label smoothing", "0.1", {"label_smoothing": 0.1}),
    *(Row("weight decay", f"{w:g}", {"weight_decay": w}) for w in (0.0, 1e-2)),
    *(Row("calibration", name, {"calibration": name}) for name in ("percentile", "search")),
    Row("bias correction", "on", {"correct_bias": True}),
    Row("rounding", "on", {"adaround": True}),
    Row("rounding", "and bias correction", {"adaround": True, "correct_bias": True}),
    Row("training in int8 (QAT)", "3 epochs", {"qat_epochs": 3}),
    Row("together", "taylor, label smoothing", {"importance": "taylor", "label_smoothing": 0.1}),
    Row(
        "together",
        "label smoothing, dropout, weight decay",
        {"label_smoothing": 0.1, "dropout": 0.1, "weight_decay": 1e-2},
    ),
)


def main() -> int:
    """Trains what is not there yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task")
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", help="an ingredient; default all")
    parser.add_argument("--out", type=Path, default=Path("runs/ingredients"))
    options = parser.parse_args()
    rows = [row for row in ROWS if not options.only or row.ingredient in ("default", *options.only)]
    found: dict[Row, list[dict[str, Any]]] = {row: [] for row in rows}
    for seed in range(options.seeds):
        for row, values in _measured(options, seed, rows):
            found[row].append(values)
            print(f"seed {seed}, {row.ingredient} {row.name}: {values}", file=sys.stderr)
    _print(found)
    print(json.dumps({"benchmark": "ingredients", "rows": [[r.ingredient, r.name, v] for r, v in found.items()]}))
    return 0


def _measured(options: argparse.Namespace, seed: int, rows: list[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Row -> what its files do on val, in a run of this seed."""
    task = load_task(options.task, options.data).task
    everything = {name: [BASE[name]] for name in BASE} | {"qat_epochs": [0]}
    for row in ROWS:
        for name, value in row.changes.items():
            everything.setdefault(name, [])
            everything[name].append(value)
    # What is prepared once (gradients, losses, ranges) depends on what the space may ask for.
    space = SearchSpace(
        **{n: v[0] if len(set(map(str, v))) == 1 else Choice(*dict.fromkeys(v)) for n, v in everything.items()}
    )
    folder = options.out / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    target = FakeTarget(run=_floats)
    request = Request(None, space, ("quality", "latency"), (), (target.name,), seed, "auto", "fastest", {})
    record = Record(folder / "record.jsonl")
    try:
        run = Run(folder, record, request)
        cache = Cache(folder / "cache", lambda *_: None)
        splits = tasks_splits.read_splits(task)
        context = preparing.prepare(task, run, cache, [target], splits, "cpu", lambda _: None)
        for row in rows:
            settings = {**BASE, **row.changes, "precision": "fp32"}
            config = SearchSpace(**settings).config({})
            outcome = trials.evaluate(context, ROWS.index(row), config, (), lambda _: None)
            if isinstance(outcome, Gated):
                raise SystemExit(f"{row.name} was gated, with nothing to be gated by")
            for scheme, cause in outcome.skipped:
                print(f"{row.name}: {scheme} left out: {cause}", file=sys.stderr)
            yield row, _judged(context, run, outcome)
    finally:
        record.close()


def _floats(path: Path, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs with quantized layers computed in floats: the same on every CPU, also where int8 saturates."""
    session = parity.open_session(path)
    return [np.asarray(output) for output in session.run(None, dict(inputs))]


def _judged(context: Context, run: Run, outcome: trials.Finished) -> dict[str, Any]:
    """Accuracy and cross-entropy on val by precision, and multiply-accumulates against the baseline's."""
    found: dict[str, Any] = {}
    labels = context.val.labels.numpy()
    for candidate in outcome.candidates:
        outputs = _floats(run.folder / candidate.path, context.val.arrays(context.names))[0].astype(np.float64)
        shifted = outputs - outputs.max(1, keepdims=True)
        nats = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
        scheme = (
            "int8" if candidate.config["precision"]["scheme"] == "int8-qat" else candidate.config["precision"]["scheme"]
        )
        # Where there is a network trained in int8, it is what the row is about.
        if scheme not in found or candidate.config["precision"]["scheme"] == "int8-qat":
            found[scheme] = {"accuracy": float((outputs.argmax(1) == labels).mean()), "nats": float(nats.mean())}
        found["macs"] = candidate.macs / context.baseline.macs
    return found


def _print(found: Mapping[Row, list[dict[str, Any]]]) -> None:
    print("| ingredient | setting | MACs | fp32: accuracy | cross-entropy | int8: accuracy | cross-entropy |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for row, values in found.items():
        cells = [row.ingredient, row.name, f"{mean(v['macs'] for v in values):.2f}"]
        for scheme in ("fp32", "int8"):
            cells.append(_spread([100 * v[scheme]["accuracy"] for v in values if scheme in v], 1))
            cells.append(_spread([v[scheme]["nats"] for v in values if scheme in v], 3))
        print("| " + " | ".join(cells) + " |")


def _spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return "-"
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


if __name__ == "__main__":
    sys.exit(main())

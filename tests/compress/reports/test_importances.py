"""What each setting mattered: a cost has importances of what can change it, and of nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from compress.reports.importances import importances
from compress.run_folder.records import Record
from compress.run_folder.runs import Request, Run
from compress.tasks.tasks import TaskIdentity
from compress.values.candidates import Candidate
from compress.values.configs import SETTINGS
from compress.values.domains import Choice, Float, Int
from compress.values.search_spaces import SearchSpace

SPACE = SearchSpace(
    importance=Choice("l2", "l1"), allocation=Choice("uniform", "global"), depth=Float(0.0, 1.0),
    sparsity=Float(0.0, 1.0), epochs=Int(1, 9), ema=Float(0.0, 0.9), prune_steps=Int(1, 3),
    correct_bias=Choice(False, True),
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, candidate: Callable[..., Candidate]) -> Run:
    """Thirty trials, each with a drop and a ratio that follow from depth and epochs."""
    record = Record(tmp_path / "record.jsonl")
    identity = TaskIdentity("t", "accuracy", "g", "v", None)
    names = ("quality", "latency", "size")
    asked = Request(identity, SPACE, names, ("quality_drop<=0.01",), ("fake",), 0, "auto", "fastest", {})
    record.append("candidate", candidate=candidate("baseline"))
    record.note("groups", ["a", "b"])
    record.note("blocks", 2)
    dice = random.Random(0)
    dimensions = SPACE.dimensions(("a", "b"), 2)
    for number in range(30):
        params = {
            name: dice.choice(domain.values) if isinstance(domain, Choice)
            else dice.randint(domain.low, domain.high) if isinstance(domain, Int)
            else dice.uniform(domain.low, domain.high)
            for name, domain in dimensions.items()
        }  # fmt: skip
        ratio = 1.0 - 0.8 * params["depth"]
        made = candidate(f"{number:04d}-fp32", drop=0.1 / params["epochs"], ratio=ratio, size=int(1000 * ratio))
        record.append("asked", trial=number, params=params)
        record.append("finished", trial=number, candidates=[made], seconds=1.0)
    return Run(tmp_path, record, asked)


def test_a_cost_depends_on_depth_and_never_on_how_long_it_was_trained(run: Run) -> None:
    found = importances(run)
    assert set(found) == {"quality_loss", "latency", "size"}
    for cost in ("latency", "size"):
        assert max(found[cost], key=found[cost].__getitem__) == "depth"
        assert {"depth", "allocation", "importance", "sparsity", "prune_ratio", "correct_bias"} <= set(found[cost])
        assert {"epochs", "ema", "lr", "prune_steps"}.isdisjoint(found[cost])
    assert max(found["quality_loss"], key=found["quality_loss"].__getitem__) == "epochs"


def test_a_cost_of_what_only_trains_has_no_importances(run: Run) -> None:
    fixed = {name: one.neutral for name, one in SETTINGS.items() if one.setting.changes_cost and name != "prune_delta"}
    run.request = Request(
        run.request.task, SearchSpace(**{**fixed, "prune_delta": 0.0}), run.request.objectives,
        run.request.constraints, ("fake",), 0, "auto", "fastest", {},
    )  # fmt: skip
    assert set(importances(run)) == {"quality_loss"}

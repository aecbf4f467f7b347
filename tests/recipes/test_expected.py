"""Every recipe against what it is expected to reach (``recipes/expected.json``): a real search, minutes long.

A range's bad end is a failure; its good end, passed, is a warning: an unexpected improvement is more often a
mistake in measuring than a discovery, and otherwise the expectation has to be raised.
"""

from __future__ import annotations

import importlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

import compress

REPOSITORY = Path(__file__).resolve().parents[2]
EXPECTED: dict[str, dict[str, Any]] = json.loads((REPOSITORY / "recipes" / "expected.json").read_text())
DATA = {"detection": None, "digits": None, "image-classification": "cifar10-jpeg.zip", "keyword-spotting": "fsdd.zip"}
"""Recipe -> the file it needs in the data folder."""
HIGHER_IS_BETTER = {"baseline_quality"}


def data_for(recipe: str) -> str | None:
    """The recipe's data, looked for in PARETOPRESS_DATA or in shared/data beside the checkout; skips without."""
    name = DATA[recipe]
    if name is None:
        return None
    folder = Path(os.environ.get("PARETOPRESS_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (folder / name).is_file():
        pytest.skip(f"no {name} in {folder}; set PARETOPRESS_DATA to the folder that holds it")
    return str(folder / name)


def reached(report: dict[str, Any]) -> dict[str, float]:
    """From a report, the figures that are expected."""
    [(target, picks)] = report["picks"].items()
    candidates = {candidate["id"]: candidate["measured"][target] for candidate in report["candidates"]}
    assert picks["fastest"] is not None, report["nearest_miss"]
    fastest = candidates[picks["fastest"]["id"]]
    return {
        "baseline_quality": candidates[report["baseline"]]["quality"]["val"]["value"],
        "fastest_ratio": fastest["latency"]["ratio"],
        "fastest_drop_val": fastest["quality_drop"]["val"]["value"],
        "fastest_drop_test": fastest["quality_drop"]["test"]["value"],
    }


def judge(name: str, value: float, low: float, high: float) -> str:
    """``worse``, ``better`` or ``as expected``; a hair of float error is forgiven."""
    if low - 1e-9 <= value <= high + 1e-9:
        return "as expected"
    return "better" if (value > high) == (name in HIGHER_IS_BETTER) else "worse"


@pytest.mark.parametrize(
    ("name", "value", "verdict"),
    [
        ("fastest_ratio", 0.3, "as expected"),
        ("fastest_ratio", 0.5, "worse"),
        ("fastest_ratio", 0.1, "better"),
        ("baseline_quality", 0.5, "better"),
        ("baseline_quality", 0.1, "worse"),
    ],
)
def test_judge_knows_which_end_is_good(name: str, value: float, verdict: str) -> None:
    assert judge(name, value, 0.2, 0.4) == verdict


@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted(EXPECTED))
def test_recipe_reaches_what_is_expected(recipe: str, tmp_path: Path) -> None:
    expected = dict(EXPECTED[recipe])
    module = importlib.import_module(f"recipes.{recipe.replace('-', '_')}")
    data = data_for(recipe)
    task = module.task() if data is None else module.task(data)
    constraints = getattr(module, "CONSTRAINTS", ())
    compress.search(
        task, space=module.SPACE, constraints=constraints, time=expected.pop("time"), seed=0, out=tmp_path / "run"
    )
    figures = reached(json.loads((tmp_path / "run" / "report.json").read_text()))
    verdicts = {name: judge(name, figures[name], low, high) for name, (low, high) in expected.items()}
    better = {name: figures[name] for name, verdict in verdicts.items() if verdict == "better"}
    if better:
        warnings.warn(f"{recipe} is better than expected, look into it: {better} against {expected}", stacklevel=1)
    assert "worse" not in verdicts.values(), f"{recipe}: {figures} against {expected}"

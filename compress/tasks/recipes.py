"""What a recipe is expected to reach: ``expected.json`` in its package, by the recipe's name.

``{"digits": {"time": "75s", "baseline_quality": [low, high], "fastest_ratio": [low, high], ...}}``; a package
without the file, or without the recipe in it, promises nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from importlib import resources
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from compress.tasks.user_code import guarded
from targets.documents import parse_json


def expectations() -> dict[str, dict[str, Any]]:
    """Recipe -> what is expected of it, for the recipes (entry-point group ``paretopress.recipes``) that say so."""
    found: dict[str, dict[str, Any]] = {}
    for point in entry_points(group="paretopress.recipes"):
        package = point.module.rpartition(".")[0] or point.module
        try:
            known = parse_json((resources.files(package) / "expected.json").read_text())
        except (OSError, ValueError, TypeError, ModuleNotFoundError):
            continue
        if isinstance(known, dict) and _is_expectation(known.get(point.name)):
            found[point.name] = known[point.name]
    return found


def _is_expectation(value: Any) -> bool:
    """Whether an entry of the file can be shown: ranges are pairs of numbers, the time is text."""
    if not isinstance(value, dict) or not isinstance(value.get("time", ""), str):
        return False
    ranges = [value[name] for name in ("fastest_ratio", "fastest_drop_test") if name in value]
    return all(isinstance(one, list) and len(one) == 2 and all(map(_is_number, one)) for one in ranges)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


def in_words(expected: Mapping[str, Any]) -> str:
    """``0.35-0.70x in 75s, accuracy -2.5 to +2.0 points on test``: the essence, for people."""
    if "fastest_ratio" not in expected:
        return "see expected.json"
    low, high = expected["fastest_ratio"]
    words = f"{low:.2f}-{high:.2f}x in {expected['time']}" if "time" in expected else f"{low:.2f}-{high:.2f}x"
    if "fastest_drop_test" in expected:
        gain, loss = expected["fastest_drop_test"]
        words += f", accuracy {-100 * loss:+.1f} to {-100 * gain:+.1f} points on test"
    return words


def recipes() -> list[dict[str, str]]:
    """Name and first docstring line of every recipe (entry-point group ``paretopress.recipes``)."""
    rows = []
    for name, value in sorted(_recipe_modules().items()):
        lines = (_recipe(name, value).__doc__ or "").strip().splitlines()
        rows.append({"name": name, "description": lines[0] if lines else ""})
    return rows


def _recipe_modules() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group="paretopress.recipes")}


def _recipe(name: str, module: str) -> ModuleType:
    return guarded(f"recipe {name!r}", lambda: importlib.import_module(module))

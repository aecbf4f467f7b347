"""What holds for every recipe: it is named, described, expected of, and quick to import."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import compress

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
RECIPES: dict[str, str] = PROJECT["entry-points"]["paretopress.recipes"]


def test_every_file_is_an_entry_point_and_has_expectations() -> None:
    files = {f"recipes.{file.stem}" for file in (REPOSITORY / "recipes").glob("*.py")} - {"recipes.__init__"}
    assert set(RECIPES.values()) == files
    assert set(json.loads((REPOSITORY / "recipes" / "expected.json").read_text())) == set(RECIPES)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipe_offers_what_the_command_line_reads(name: str) -> None:
    module = importlib.import_module(RECIPES[name])
    assert callable(module.task)
    assert isinstance(module.SPACE, compress.SearchSpace)
    first = (module.__doc__ or "").splitlines()[0]
    assert 20 < len(first) <= 120


def test_importing_recipes_loads_nothing_heavy() -> None:
    code = f"import sys, {', '.join(RECIPES.values())}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not {"torch", "sklearn", "optuna", "onnxruntime"} & set(done.stdout.split())

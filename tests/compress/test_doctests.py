"""The examples in docstrings do what they show: every module that has some is found by reading the sources."""

import doctest
import importlib
from pathlib import Path

import pytest

import compress
import targets

_PACKAGES = {package.__name__: Path(package.__path__[0]) for package in (compress, targets)}


def _modules_with_examples() -> list[str]:
    found = []
    for name, folder in _PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            if ">>> " in path.read_text():
                parts = path.relative_to(folder).with_suffix("").parts
                found.append(".".join([name, *(part for part in parts if part != "__init__")]))
    return found


@pytest.mark.parametrize("name", _modules_with_examples())
def test_the_examples_in_docstrings_hold(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried, f"{name} has >>> in its text, but no example in a docstring"
    assert not failed


def test_what_may_be_used_alone_has_examples() -> None:
    assert {"compress.metrics.intervals", "compress.pruning.widths"} <= set(_modules_with_examples())

"""What `import compress` gives, and what it says of what it does not."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

import compress


def test_names_are_found_where_they_live_and_no_others() -> None:
    assert all(getattr(compress, name) is not None for name in compress.__all__)
    assert isinstance(compress.reports, ModuleType)
    with pytest.raises(AttributeError, match="module 'compress' has no attribute 'prnue'"):
        _ = compress.prnue


def test_a_library_that_is_missing_is_not_taken_for_a_name_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ModuleNotFoundError, match="'torch'"):
        _ = compress.anything

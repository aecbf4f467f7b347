"""Whole numbers that a module keeps in something of its own: a dict or an object of settings, a function it was given.

``self.config.n_head``, ``self.sizes["hidden"]``, a window partition that remembers a number of channels in its closure
or by ``functools.partial``. Such a thing is often shared by many modules: it is never written to. A module whose number
changes gets one of its own.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

_FOREIGN = ("builtins", "torch", "numpy", "collections", "functools", "enum", "typing", "abc")
"""Packages whose objects are no settings of the user's."""


def numbers_held(value: Any) -> dict[str, int]:
    """{key: whole number of more than 1} that ``value``, an attribute of a module, holds; empty for most."""
    if isinstance(value, partial):
        found: Mapping[str, Any] = value.keywords
    elif isinstance(value, types.FunctionType):
        found = _closure(value)
    elif type(value) is dict:
        found = {key: one for key, one in value.items() if isinstance(key, str) and key.isidentifier()}
    elif _is_settings(value):
        found = vars(value)
    else:
        return {}
    return {key: n for key, n in found.items() if isinstance(n, int) and not isinstance(n, bool) and n > 1}


def with_number(value: Any, key: str, number: int) -> Any:
    """A copy of ``value`` that holds another number."""
    if isinstance(value, partial):
        return partial(value.func, *value.args, **{**value.keywords, key: number})
    if isinstance(value, types.FunctionType):
        return _with_closure(value, key, number)
    if isinstance(value, dict):
        return {**value, key: number}
    changed = copy.copy(value)
    object.__setattr__(changed, key, number)  # it may be frozen
    return changed


def _is_settings(value: Any) -> bool:
    own = type(value).__module__.partition(".")[0] not in _FOREIGN or type(value) is types.SimpleNamespace
    return own and hasattr(value, "__dict__") and not isinstance(value, nn.Module | Tensor | type | types.ModuleType)


def _closure(function: types.FunctionType) -> dict[str, Any]:
    """The variables around a function that it uses."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    found: dict[str, Any] = {}
    for name, cell in cells:
        try:
            found[name] = cell.cell_contents
        except ValueError:  # it is not filled yet
            continue
    return found


def _with_closure(function: types.FunctionType, key: str, number: int) -> types.FunctionType:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    closure = tuple(types.CellType(number) if name == key else cell for name, cell in cells)
    made = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, closure
    )
    made.__kwdefaults__, made.__qualname__, made.__module__ = (
        function.__kwdefaults__, function.__qualname__, function.__module__,
    )  # fmt: skip
    return made

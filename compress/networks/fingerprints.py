"""Hashes that stand in cache keys for what cannot be written there: a module's weights, a user's functions.

All are the first 16 hex digits of a SHA-256.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def state_hash(module: nn.Module) -> str:
    """A hash of all parameters and buffers of ``module``: names, types, shapes and values."""
    return _tensor_hash(module.state_dict())


def source_hash(function: Any) -> str | None:
    """A hash of a user's function: its source, and the plain values that it was made with; None for no function.

    Those values are the arguments of a ``functools.partial``, defaults, the variables that a closure holds, and the
    state of a callable object or module. Where the source is not at hand, the function's name stands for it.
    """
    return None if function is None else hashlib.sha256(_text(function).encode()).hexdigest()[:16]


def _text(function: Any) -> str:
    if isinstance(function, functools.partial):
        return f"{_text(function.func)} {_plain(function.args)} {_plain(function.keywords)}"
    if isinstance(function, nn.Module):
        return f"{_source(type(function))} {_plain(vars(function))} {function} {state_hash(function)}"
    if inspect.ismethod(function):
        return f"{_source(function)} {_text(function.__self__)}"
    if not inspect.isfunction(function):
        return f"{_source(type(function))} {_plain(getattr(function, '__dict__', {}))}"
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    # A cell may not be filled yet: a function that names itself before it is made.
    values = {name: cell.cell_contents for name, cell in cells.items() if cell != types.CellType()}
    return f"{_source(function)} {_plain(function.__defaults__ or ())} {_plain(values)}"


def _source(thing: Any) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return str(getattr(thing, "__qualname__", repr(type(thing))))


def _plain(value: Any) -> Any:
    """``value`` with tensors as hashes, and without what prints differently in every process."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if not str(k).startswith("_")}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, torch.Tensor):
        return _tensor_hash({"": value})
    return value if value is None or isinstance(value, (bool, int, float, str)) else type(value).__qualname__


def _tensor_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]

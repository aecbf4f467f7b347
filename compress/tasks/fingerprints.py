"""What stands in a key for what the user brings as code: a function, or a dataset that is too large to be read whole.

A function is its source, the values that it was made with (defaults, closure, a partial's arguments, a method's
object), and what it uses of its own module: constants, and functions and classes of the user's, each in the same way.
What it changes itself (a counter, a list that it appends to) is its memory and no part of it. Libraries are left out:
their versions stand in the run.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import inspect
import itertools
import sys
import textwrap
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from compress.networks.fingerprints import state_hash, tensor_hash
from compress.tasks.user_code import is_users

_CHANGING = frozenset(
    {"append", "extend", "insert", "add", "update", "pop", "popitem", "clear", "remove", "discard", "setdefault"}
)
_DEEPEST = 6
"""Objects within objects beyond this stand for their type alone."""


def source_hash(function: Any) -> str | None:
    """16 hex digits that stand for a user's function or callable object; None stays None."""
    return None if function is None else _hash(_Text().of(function))


def dataset_hash(dataset: Any) -> str:
    """16 hex digits that stand for a dataset by what it is made of: its classes, attributes and functions."""
    return _hash(_Text().of(dataset))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Text:
    """Objects as text that is the same in every process. One instance for one question: it knows what it has met."""

    def __init__(self) -> None:
        self._met: dict[int, int] = {}
        self._kept: list[Any] = []
        """What was met, so that no id is used again meanwhile."""

    def of(self, thing: Any, depth: int = 0) -> str:
        """Any object as text: a value, a container of objects, a function, a class, or an object of a class."""
        if thing is None or isinstance(thing, (bool, int, float, complex, str, bytes)):
            return repr(thing)
        if isinstance(thing, torch.Tensor):
            return f"tensor {tensor_hash({'': thing})}"
        if isinstance(thing, (np.ndarray, np.generic)):
            return self._array(np.asarray(thing))
        if isinstance(thing, (types.ModuleType, torch.Generator, np.random.Generator)):
            return type(thing).__qualname__
        if id(thing) in self._met:
            return f"#{self._met[id(thing)]}"
        self._met[id(thing)] = len(self._met)
        self._kept.append(thing)
        if depth > _DEEPEST:
            return type(thing).__qualname__
        if isinstance(thing, Mapping):
            rows = sorted(((str(key), value) for key, value in thing.items()), key=lambda entry: entry[0])
            return f"{{{', '.join(f'{key}: {self.of(value, depth + 1)}' for key, value in rows)}}}"
        if isinstance(thing, (list, tuple)):
            return f"[{', '.join(self.of(value, depth + 1) for value in thing)}]"
        if isinstance(thing, (set, frozenset)):
            return f"{{{', '.join(sorted(self.of(value, depth + 1) for value in thing))}}}"
        return self._code(thing, depth)

    def _array(self, array: np.ndarray) -> str:
        if array.dtype.hasobject:
            return self.of(array.tolist())
        data = np.ascontiguousarray(array)
        return f"array {array.dtype} {array.shape} {hashlib.sha256(data.tobytes()).hexdigest()[:16]}"

    def _code(self, thing: Any, depth: int) -> str:
        """Functions, classes, and objects of them."""
        if isinstance(thing, functools.partial):
            return f"{self.of(thing.func, depth)} {self.of(thing.args, depth)} {self.of(thing.keywords, depth)}"
        if inspect.ismethod(thing):
            return f"{self.of(thing.__func__, depth)} of {self.of(thing.__self__, depth + 1)}"
        if inspect.isfunction(thing):
            return self._function(thing, depth)
        if isinstance(thing, type):
            return self._class(thing, depth)
        if isinstance(thing, nn.Module):
            return f"{self.of(type(thing), depth)} {self._attributes(thing, depth)} {thing} {state_hash(thing)}"
        if isinstance(getattr(thing, "__qualname__", None), str):  # a built-in function
            return f"{getattr(thing, '__module__', '')}.{thing.__qualname__}"
        return f"{self.of(type(thing), depth)} {self._attributes(thing, depth)}"

    def _attributes(self, thing: Any, depth: int) -> str:
        values = dict(getattr(thing, "__dict__", {}))
        if isinstance(thing, nn.Module):  # weights and layers are told by their state
            values = {name: value for name, value in values.items() if not name.startswith("_")}
        changed: set[str] = set().union(*(_changes(_tree(kind), "self") for kind in type(thing).__mro__ if _own(kind)))
        return self.of({name: value for name, value in values.items() if name not in changed}, depth + 1)

    def _function(self, function: types.FunctionType, depth: int) -> str:
        if not _own(function):
            return f"{function.__module__}.{function.__qualname__}"
        values = {**_globals(function), **_cells(function)}
        changed = _changes(_tree(function))
        used = {name: value for name, value in sorted(values.items()) if name not in changed}
        made_with = f"{self.of(function.__defaults__, depth)} {self.of(function.__kwdefaults__, depth)}"
        return f"{_source(function)} {made_with} {self.of(used, depth + 1)}"

    def _class(self, kind: type, depth: int) -> str:
        if not _own(kind):
            return f"{kind.__module__}.{kind.__qualname__}"
        functions = _methods(kind)
        used = {name: value for function in functions for name, value in _globals(function).items()}
        changed = _changes(_tree(kind))
        values = {name: value for name, value in sorted(used.items()) if name not in changed}
        constants = {
            name: value for name, value in sorted(vars(kind).items())
            if not (name.startswith("__") or name in changed or _method(value) or inspect.isdatadescriptor(value))
        }  # fmt: skip
        bases = " ".join(self.of(base, depth + 1) for base in kind.__bases__)
        code = " ".join(_source(function) for function in functions)
        return f"{kind.__qualname__} {code} {bases} {self.of(constants, depth + 1)} {self.of(values, depth + 1)}"


def _own(thing: Any) -> bool:
    """Whether a function or class is the user's: in no library, and not ours."""
    if isinstance(thing, type):
        # A task file is no module that a class could be looked up in: its functions know where they stand.
        for inside in _methods(thing):
            return is_users(inside.__code__.co_filename)
    try:
        return is_users(inspect.getfile(thing))
    except (TypeError, OSError):  # built in, or a class without functions in a task file or a session
        return getattr(thing, "__module__", "builtins") not in sys.modules or thing.__module__ == "__main__"


def _methods(kind: type) -> list[types.FunctionType]:
    """The functions of a class, those of its properties, class methods and static methods included, by their names."""
    return [found for _, value in sorted(vars(kind).items()) if (found := _method(value)) is not None]


def _method(value: Any) -> types.FunctionType | None:
    value = getattr(value, "__func__", getattr(value, "fget", value))
    return value if inspect.isfunction(value) else None


def _globals(function: types.FunctionType) -> dict[str, Any]:
    """What a function's code names of its module, in itself and in the functions within it."""
    return {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _cells(function: types.FunctionType) -> dict[str, Any]:
    """The values of a closure. A cell may not be filled yet: a function that names itself before it is made."""
    pairs = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in pairs if cell != types.CellType()}


def _source(thing: Any) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        code = getattr(thing, "__code__", None)
        return thing.__qualname__ if code is None else f"{thing.__qualname__} {code.co_code.hex()} {code.co_consts!r}"


def _tree(thing: Any) -> ast.AST:
    with contextlib.suppress(OSError, TypeError, SyntaxError):  # a lambda's line need not stand alone
        return ast.parse(textwrap.dedent(inspect.getsource(thing)))
    return ast.Module([], [])


def _changes(tree: ast.AST, of: str | None = None) -> set[str]:
    """Names that some code changes; with ``of``, attributes of that name outside of ``__init__``."""
    found: set[str] = set()
    initial = {
        id(inner)
        for node in ast.walk(tree)
        if of and isinstance(node, ast.FunctionDef) and node.name == "__init__"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in initial:
            continue
        for changed in _changed_by(node):
            if of is None and isinstance(changed, ast.Name):
                found.add(changed.id)
            elif isinstance(changed, ast.Attribute) and isinstance(changed.value, ast.Name) and changed.value.id == of:
                found.add(changed.attr)
        if isinstance(node, (ast.Global, ast.Nonlocal)) and of is None:
            found.update(node.names)
    return found


def _changed_by(node: ast.AST) -> Iterator[ast.expr]:
    """What one statement or call changes: assigned attributes and entries, and the objects of changing methods."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CHANGING:
        yield node.func.value
    targets: list[ast.expr] = []
    if isinstance(node, (ast.Assign, ast.Delete)):
        targets = list(node.targets)
    elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
        targets = [node.target]
    for target in itertools.chain(*(t.elts if isinstance(t, (ast.Tuple, ast.List)) else [t] for t in targets)):
        if isinstance(target, ast.Subscript):
            yield target.value
        elif isinstance(target, ast.Attribute):
            yield target

"""Whole numbers written in the source of a module's own methods: ``x.view(-1, 192)``, ``torch.split(x, 8, 1)``.

A network that is cut may need another number there. The method's source is parsed, the number replaced, and the
result compiled where the original stood: same globals, defaults and closure. It becomes a method of a subclass made
for that module, so control flow, training mode and everything else of the user's code stay what they are; the user's
class and other modules of it are untouched. Copies and pickles keep the number.

Only where the source is at hand and compiles to the very code that runs: not for decorated methods, code made by
``exec`` or a file that has changed since.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import types
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

Edits = tuple[tuple[str, int, int], ...]
"""(method, which of its numbers, new value), sorted."""
_EDITED = "_edited_from"
_FUTURE = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)


def numbers(kind: type) -> list[tuple[str, int, int]]:
    """(method, which of its numbers, value), for each number of more than 1 in the methods of the class ``kind``."""
    base, edits = vars(kind).get(_EDITED, (kind, ()))
    changed = {(method, which): value for method, which, value in edits}
    return [
        (method, which, changed.get((method, which), value))
        for method, function in _methods(base).items()
        for which, value in enumerate(_written(function))
        if value > 1
    ]


def put(module: Any, method: str, which: int, value: int) -> None:
    """Replace a number in the source of one of the methods of ``module`` by ``value``, for this module alone.

    ``method``, ``which``: as ``numbers`` gives them. Raises RuntimeError where the source is not there any more.
    """
    base, edits = vars(type(module)).get(_EDITED, (type(module), ()))
    new = {(m, w): v for m, w, v in edits} | {(method, which): value}
    module.__class__ = _edited(base, tuple(sorted((m, w, v) for (m, w), v in new.items())))


@lru_cache(maxsize=1024)
def _edited(base: type, edits: Edits) -> type:
    """A subclass of ``base`` with these numbers."""
    methods = _methods(base)
    space: dict[str, Any] = {_EDITED: (base, edits), "__reduce_ex__": _reduce, "__doc__": base.__doc__}
    space |= {"__module__": base.__module__, "__qualname__": base.__qualname__}
    for method in {method for method, _, _ in edits}:
        space[method] = _with(methods[method], {which: value for name, which, value in edits if name == method})
    return types.new_class(base.__name__, (base,), exec_body=lambda body: body.update(space))


def _reduce(self: Any, protocol: Any) -> Any:  # noqa: ARG001
    return _empty, getattr(type(self), _EDITED), self.__getstate__()


def _empty(base: type, edits: Edits) -> Any:
    kind: Any = _edited(base, edits)
    return kind.__new__(kind)


@lru_cache(maxsize=1024)
def _methods(kind: type) -> dict[str, types.FunctionType]:
    """The user's own methods by name, those with numbers that can be changed."""
    found: dict[str, types.FunctionType] = {}
    seen: set[str] = set()
    for one in kind.__mro__:
        for name, value in vars(one).items():
            if name in seen:
                continue
            seen.add(name)
            own = isinstance(value, types.FunctionType) and not one.__module__.startswith("torch.")
            if own and not name.startswith("__") and _written(value):
                found[name] = value
    return found


@lru_cache(maxsize=1024)
def _written(function: types.FunctionType) -> tuple[int, ...]:
    """The whole numbers in its body, in order; none where its source is not to be had."""
    source = _source(function)
    node = None if source is None else _definition(source[1], function)
    if source is None or node is None or not _same(_compiled(*source, function), function.__code__):
        return ()
    return tuple(int(place.value) for place in _places(node))


def _source(function: types.FunctionType) -> tuple[str, ast.Module] | None:
    """The source of the whole file, which a method must be compiled in to become the same, and its tree."""
    try:
        lines, _ = inspect.findsource(function)
        return "".join(lines), _parsed("".join(lines))
    except (OSError, TypeError, SyntaxError, ValueError, IndexError):
        return None


@lru_cache(maxsize=16)
def _parsed(source: str) -> ast.Module:
    return ast.parse(source)


def _definition(tree: ast.Module, function: types.FunctionType) -> ast.FunctionDef | None:
    """Where the function stands; None if it is decorated."""
    line, name = function.__code__.co_firstlineno, function.__code__.co_name
    found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and (n.lineno, n.name) == (line, name)]
    return found[0] if len(found) == 1 and not found[0].decorator_list else None


def _places(node: ast.FunctionDef) -> Iterator[Any]:
    for statement in node.body:
        for inner in ast.walk(statement):
            if isinstance(inner, ast.Constant) and type(inner.value) is int:
                yield inner


@lru_cache(maxsize=16)
def _unchanged(source: str, file: str, flags: int) -> types.CodeType:
    code: types.CodeType = compile(_parsed(source), file, "exec", flags, dont_inherit=True)
    return code


def _compiled(
    source: str, tree: ast.Module, function: types.FunctionType, values: dict[int, int] | None = None
) -> types.CodeType | None:
    """The code of ``function`` out of the source of its file, with other numbers."""
    code = function.__code__
    flags, node = code.co_flags & _FUTURE, _definition(tree, function)
    if values is None:
        whole = _unchanged(source, code.co_filename, flags)
    elif node is None:
        return None
    else:
        places = list(_places(node))
        before = [place.value for place in places]
        try:
            for which, value in values.items():
                places[which].value = value
            whole = compile(tree, code.co_filename, "exec", flags, dont_inherit=True)
        finally:
            for place, value in zip(places, before, strict=True):
                place.value = value
    found = [c for c in _inside(whole) if (c.co_qualname, c.co_firstlineno) == (code.co_qualname, code.co_firstlineno)]
    return found[0] if len(found) == 1 else None


def _inside(code: types.CodeType) -> Iterator[types.CodeType]:
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            yield one
            yield from _inside(one)


def _with(function: types.FunctionType, values: dict[int, int]) -> types.FunctionType:
    """The function with other numbers. Raises RuntimeError where its source is not there any more."""
    source = _source(function)
    code = None if source is None else _compiled(*source, function, values)
    if code is None:
        raise RuntimeError(f"the source of {function.__qualname__} is not to be had: its numbers cannot be changed")
    made = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    made.__kwdefaults__ = function.__kwdefaults__
    made.__annotations__, made.__doc__ = function.__annotations__, function.__doc__
    made.__module__, made.__qualname__ = function.__module__, function.__qualname__
    return made


def _same(code: types.CodeType | None, other: types.CodeType) -> bool:
    """Whether they do the same: instructions, names and constants, inner functions included."""
    if code is None or (code.co_code, code.co_names, code.co_varnames) != (
        other.co_code,
        other.co_names,
        other.co_varnames,
    ):
        return False
    if code.co_freevars != other.co_freevars or len(code.co_consts) != len(other.co_consts):
        return False
    return all(
        _same(a, b) if isinstance(b, types.CodeType) and isinstance(a, types.CodeType) else (type(a), a) == (type(b), b)
        for a, b in zip(code.co_consts, other.co_consts, strict=True)
    )

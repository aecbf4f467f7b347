"""From what the command line calls TASK to a Task with its defaults.

A recipe's name, a ``.py`` task file, ``package.module`` or an ``.onnx`` file. User code that raises becomes one
line with file and line; its stack trace goes to a file that the line names.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from compress.spaces import SearchSpace
from compress.tasks import Task
from targets.errors import CompressError, TaskError

T = TypeVar("T")


@dataclass(frozen=True)
class LoadedTask:
    """A task, and the defaults that its file brings."""

    task: Task
    space: SearchSpace | None = None
    objectives: tuple[str, ...] | None = None
    constraints: tuple[str, ...] | None = None


def recipes() -> list[dict[str, str]]:
    """Name and first docstring line of every recipe (entry-point group ``paretopress.recipes``)."""
    rows = []
    for name, value in sorted(_recipe_modules().items()):
        lines = (_recipe(name, value).__doc__ or "").strip().splitlines()
        rows.append({"name": name, "description": lines[0] if lines else ""})
    return rows


def load_task(spec: str, data: str | None = None) -> LoadedTask:
    """The task that ``spec`` names; raises TaskError in one line."""
    if spec.endswith(".onnx"):
        from compress.onnx_tasks import onnx_space, onnx_task, read_arrays

        task = onnx_task(Path(spec), Path(data) if data else None)
        return LoadedTask(task, onnx_space(task, labelled=bool(data) and "labels" in read_arrays(Path(str(data)))))
    return _from_module(_module(spec), spec, data)


def guarded(what: str, call: Callable[[], T]) -> T:
    """Run user code; what it raises becomes a TaskError with file and line, what it prints goes to stderr."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return call()
    except CompressError as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = _user_line(error)
        # What user code raises on purpose says all there is; what we raise about its settings lacks the line.
        if where and _is_ours(frames[-1].filename) and where not in str(error):
            raise type(error)(f"{error}{where}") from None
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(f"{what} raised {describe(error)}; stack trace: {_save_trace()}") from None


def describe(error: BaseException) -> str:
    """``TypeError: ... (file.py:12)``: the first line of the message and the innermost user line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + text[0] if text else ''}{_user_line(error)}"


def _user_line(error: BaseException) -> str:
    """`` (file.py:12)``: the innermost line that is neither ours nor of an installed package; may be empty."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}:{error.lineno})"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not (_is_ours(frame.filename) or _is_installed(frame.filename)):
            return f" ({frame.filename}:{frame.lineno})"
    return ""


def _is_ours(file: str) -> bool:
    root = Path(__file__).resolve().parent.parent
    path = Path(file).resolve()
    return any(path.is_relative_to(root / name) for name in ("compress", "targets"))


def _is_installed(file: str) -> bool:
    """Of the standard library or a package, or of no file (``<frozen importlib>``)."""
    return file.startswith(("<", sysconfig.get_path("stdlib"))) or not {"site-packages", "dist-packages"}.isdisjoint(
        Path(file).parts
    )


def _save_trace() -> str:
    with tempfile.NamedTemporaryFile("w", prefix="paretopress-", suffix=".trace", delete=False) as file:
        traceback.print_exc(file=file)
    return file.name


def _recipe_modules() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group="paretopress.recipes")}


def _recipe(name: str, module: str) -> ModuleType:
    return guarded(f"recipe {name!r}", lambda: importlib.import_module(module))


def _import(name: str) -> ModuleType | None:
    """The module, None where there is none of that name; one that lacks something itself raises."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return None
        raise


def _module(spec: str) -> ModuleType:
    recipes = _recipe_modules()
    if spec in recipes:
        return _recipe(spec, recipes[spec])
    if spec.endswith(".py"):
        return _module_from_file(Path(spec))
    if "." in spec and all(part.isidentifier() for part in spec.split(".")):
        # A module named on the command line is looked for where the user stands, after everything installed.
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        found = guarded(f"module {spec!r}", lambda: _import(spec))
        if found is not None:
            return found
    import difflib

    close = difflib.get_close_matches(spec, recipes, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise TaskError(
        f"no task {spec!r}: {hint}give a recipe ({', '.join(sorted(recipes)) or 'none installed'}), "
        "a .py task file, a package.module or an .onnx file"
    )


def _module_from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise TaskError(f"task file {str(path)!r} does not exist")
    # Its neighbours can be imported, but come last: a targets.py among them does not hide ours.
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    name = f"paretopress_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"task file {str(path)!r} is not Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader = spec.loader
    guarded(f"task file {str(path)!r}", lambda: loader.exec_module(module))
    return module


def _from_module(module: ModuleType, spec: str, data: str | None) -> LoadedTask:
    function = getattr(module, "task", None)
    if not callable(function):
        raise TaskError(f"{spec!r} has no function task(); a task file needs one that returns a compress.Task")
    arguments = inspect.signature(function).parameters
    if "data" in arguments and (data is not None or arguments["data"].default is inspect.Parameter.empty):
        task = guarded(f"task() of {spec!r}", lambda: function(data=data))
    elif data is not None and "data" not in arguments:
        raise TaskError(f"--data {data!r}: task() of {spec!r} has no parameter 'data'")
    else:
        task = guarded(f"task() of {spec!r}", function)
    if not isinstance(task, Task):
        raise TaskError(f"task() of {spec!r} returned {type(task).__name__}, not a compress.Task")
    space: Any = getattr(module, "SPACE", None)
    if space is not None and not isinstance(space, SearchSpace):
        raise TaskError(f"SPACE of {spec!r} is {type(space).__name__}, not a compress.SearchSpace")
    return LoadedTask(task, space, _strings(module, "OBJECTIVES", spec), _strings(module, "CONSTRAINTS", spec))


def _strings(module: ModuleType, name: str, spec: str) -> tuple[str, ...] | None:
    value = getattr(module, name, None)
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise TaskError(f"{name} of {spec!r} must be a list of strings, not {value!r}")
    return tuple(value)

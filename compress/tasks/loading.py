"""From what the command line calls TASK to a Task with its defaults.

A recipe's name, a ``.py`` task file, ``package.module`` or an ``.onnx`` file. User code that raises becomes one
line with file and line; its stack trace goes to a file that the line names.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from compress.tasks.recipes import _recipe, _recipe_modules
from compress.tasks.tasks import Task
from compress.tasks.user_code import guarded
from compress.values.search_spaces import SearchSpace
from targets.errors import TaskError


@dataclass(frozen=True)
class LoadedTask:
    """A task, and the defaults that its file brings."""

    task: Task
    space: SearchSpace | None = None
    objectives: tuple[str, ...] | None = None
    constraints: tuple[str, ...] | None = None


def load_task(spec: str, data: str | None = None, seconds: float | None = None) -> LoadedTask:
    """The task that ``spec`` names; raises TaskError in one line. ``seconds``: the time of the search, if any."""
    if spec.endswith(".onnx"):
        from compress.tasks.onnx_tasks import onnx_space, onnx_task
        from compress.values.arrays import read_arrays

        task = onnx_task(Path(spec), Path(data) if data else None, seconds)
        labelled = data is not None and "labels" in read_arrays(Path(data), TaskError)
        return LoadedTask(task, onnx_space(task, labelled=labelled, timed=seconds is not None))
    return _from_module(_module(spec), spec, data)


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
    place = str(path.absolute())
    loader = SourceFileLoader(name, place)
    spec = ModuleSpec(name, loader, origin=place)
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
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

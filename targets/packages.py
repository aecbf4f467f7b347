"""Whether `compress`, `targets` and `recipes` are ours.

The three names are plain words, and a script's own folder comes first on the import path: a ``targets.py`` lying
beside it hides ours, and what follows is an ImportError nobody understands. This says it in one line instead.

It only looks (``find_spec`` imports nothing) and is independent of every other module, because when `targets` is
the hidden one, `compress` has to load this very file by its path.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

NAMES = ("compress", "targets", "recipes")
_HERE = Path(__file__).resolve().parent.parent


def check_not_shadowed(names: tuple[str, ...] = NAMES) -> None:
    """Raise ShadowedError if one of our packages resolves to somebody else's file.

    A package of ours that is not installed beside this one is left out: `targets` works alone. A folder without
    ``__init__.py`` is no conflict, unless it has been imported already.
    """
    for name in names:
        expected = _HERE / name / "__init__.py"
        if not expected.is_file():
            continue
        if name not in sys.modules and _is_bare_folder(name):
            # A package anywhere on the path comes before such a folder, but an editable install may be found by a
            # hook that is asked after the path. Then its place has to be on the path, too.
            sys.path.append(str(_HERE))
        found = _location(name)
        if found is not None and found != expected.parent:
            message = (
                f"{found} hides this project's package {name!r} ({expected.parent}): "
                "rename it, or run `python -P` so that the script's folder is not searched first"
            )
            raise _shadowed_error(message)


def _is_bare_folder(name: str) -> bool:
    """Whether ``import name`` gives a folder without ``__init__.py`` (a namespace package)."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is None and spec.submodule_search_locations is not None


def _location(name: str) -> Path | None:
    """Folder of the package, or file of the module, that ``import name`` gives; None if it gives nothing."""
    try:
        spec = importlib.util.find_spec(name)
    except (ValueError, ImportError):  # a module in sys.modules that was not imported the usual way
        file = getattr(sys.modules.get(name), "__file__", None)
        return Path(file).resolve() if file else None
    return None if spec is None else _of_spec(spec)


def _of_spec(spec: ModuleSpec) -> Path | None:
    if spec.origin and spec.origin not in ("namespace", "built-in", "frozen"):
        origin = Path(spec.origin).resolve()
        return origin.parent if origin.stem == "__init__" else origin
    places = list(spec.submodule_search_locations or ())
    return Path(places[0]).resolve() if places else None


def _shadowed_error(message: str) -> Exception:
    if _location("targets") == _HERE / "targets":
        from targets.errors import ShadowedError

        return ShadowedError(message)
    path = _HERE / "targets" / "errors.py"
    spec = importlib.util.spec_from_file_location("targets.errors", path)
    if spec is None or spec.loader is None:
        return ImportError(message)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    error: Exception = module.ShadowedError(message)
    return error

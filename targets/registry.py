"""From a name to a target: ``get("ort-cpu:threads=2")``, and what there is.

Targets are found by the entry-point group ``paretopress.targets``; the built-in ones are also known without
installed metadata, so that a checkout works.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from targets.errors import TargetError, TargetUnavailable
from targets.settings import checked_settings
from targets.target import Target

GROUP = "paretopress.targets"
DEFAULT = "ort-cpu"
BUILT_IN = {
    "ort-cpu": "targets.runtimes.ort.ort_cpu:OrtCpu",
    "ort-web": "targets.runtimes.ort_web.ort_web:OrtWeb",
    "openvino-cpu": "targets.runtimes.openvino.openvino_cpu:OpenvinoCpu",
    "ncnn-cpu": "targets.runtimes.ncnn.ncnn_cpu:NcnnCpu",
    "litert-cpu": "targets.runtimes.litert.litert_cpu:LitertCpu",
    "tflm": "targets.runtimes.tflm.tflm:Tflm",
    "ssh": "targets.boards.ssh:Ssh",
    "arm-emulated": "targets.emulated_arm.arm_emulated:ArmEmulated",
    "cortex-m": "targets.cortex_m.cortex_m:CortexM",
    "ethos-u": "targets.ethos_u.ethos_u:EthosU",
    "fake": "targets.runtimes.fake.fake_target:FakeTarget",
}


def parse(spec: str) -> tuple[str, dict[str, str]]:
    """``NAME[:KEY=VALUE,...]`` as name and settings; raises TargetError where it is not of that form."""
    name, colon, rest = spec.strip().partition(":")
    if not name or (colon and not rest):
        raise TargetError(f"target {spec!r} is not NAME[:KEY=VALUE,...], for example 'ort-cpu:threads=2'")
    settings: dict[str, str] = {}
    for part in rest.split(",") if rest else []:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not key or not equals or not value:
            raise TargetError(f"target {spec!r}: {part!r} is not KEY=VALUE")
        if key in settings:
            raise TargetError(f"target {spec!r}: {key} is given twice")
        settings[key] = value
    return name, settings


def get(target: str | Target) -> Target:
    """The target a specification names; a target is given back as it is.

    Raises TargetError for an unknown name or setting, TargetUnavailable when its runtime is not installed.
    """
    if isinstance(target, Target):
        return target
    name, settings = parse(target)
    cls = class_of(name)
    missing = _missing(cls)
    if missing:
        raise TargetUnavailable(f"target {name!r} needs {missing}, which is not installed; run: {_install(name, cls)}")
    # A class may make several of its kind into one.
    make: Callable[..., Target] = getattr(cls, "from_settings", cls)
    return make(**checked_settings(name, getattr(cls, "settings", {}), settings))


def available() -> list[dict[str, Any]]:
    """Every known target: ``name``, ``available``, ``description``, ``install`` (None where it is there)."""
    rows = []
    for name in sorted(_known()):
        try:
            cls = class_of(name)
        except TargetError as error:
            rows.append({"name": name, "available": False, "description": str(error), "install": _install(name, None)})
            continue
        there = not _missing(cls)
        description = (cls.__doc__ or name).strip().splitlines()[0]
        install = None if there else _install(name, cls)
        rows.append({"name": name, "available": there, "description": description, "install": install})
    return rows


def install(name: str, say: Callable[[str], None], sources: Path | None = None) -> str:
    """Bring what pip alone cannot; returns where it is. ``say`` is told how far it is.

    ``sources``: an archive of what is built, for a target that is built of sources, which are fetched otherwise.
    Raises TargetUnavailable saying what is missing, TargetError for a target that comes with pip.
    """
    name, _ = parse(name)
    if name not in _known() and f"{name}-cpu" in _known():
        name = f"{name}-cpu"  # as extras are called: after the runtime
    cls = class_of(name)
    bring = getattr(cls, "bring", None)
    if sources is not None and not getattr(cls, "built_of_sources", False):
        raise TargetError(f"target {name!r} is not built of sources; leave --sources out")
    if bring is not None:
        return str(bring(say) if sources is None else bring(say, sources))
    if not _missing(cls):
        raise TargetError(f"target {name!r} is there, nothing to install")
    raise TargetError(f"target {name!r} comes with pip; run: {_install(name, cls)}")


def _known() -> dict[str, str]:
    """Name -> ``module:class``."""
    return {**BUILT_IN, **{point.name: point.value for point in metadata.entry_points(group=GROUP)}}


def class_of(name: str) -> Any:
    """The class of the target of this name; raises TargetError for an unknown one, or one that cannot be loaded."""
    known = _known()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise TargetError(f"unknown target {name!r}{hint}; there are {', '.join(sorted(known))}")
    module, _, attribute = known[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise TargetUnavailable(f"target {name!r} cannot be loaded ({error}); run: {_install(name, None)}") from error
    except AttributeError:
        raise TargetError(f"target {name!r} is registered as {known[name]!r}, which does not exist") from None


def _missing(cls: Any) -> str | None:
    """The first thing the target's runtime needs that is not installed: a module, or what the class itself finds."""
    for module in getattr(cls, "requires", ()):
        try:
            found = importlib.util.find_spec(module) is not None
        except (ImportError, ValueError):
            found = False
        if not found:
            return str(module)
    look = getattr(cls, "missing", None)
    return look() if look else None


def _install(name: str, cls: Any) -> str:
    command = getattr(cls, "install", None)
    return str(command) if command else f"pip install 'paretopress[{name.split('-')[0]}]'"

"""From a trained network to a measured, chosen ONNX file.

``search`` does the whole job; ``prune``, ``export`` and ``quantize`` are its stages, callable alone.
Names are imported when first used, so that ``import compress`` loads neither torch nor Optuna.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.metrics.metrics import Metric
    from compress.onnx_files.exporting import export
    from compress.precision.quantizing import quantize
    from compress.pruning.blocks import drop_blocks, find_blocks
    from compress.pruning.grouping import find_groups
    from compress.pruning.pruning import Pruned, prune
    from compress.results import open_run
    from compress.searching.searching import search
    from compress.tasks.tasks import Task
    from compress.values.candidates import Candidate
    from compress.values.configs import Config, FinetuneSettings, PrecisionSettings, PruneSettings
    from compress.values.domains import Choice, Float, Int
    from compress.values.search_spaces import SearchSpace
    from targets.errors import CompressError, NoFeasibleCandidate, ParityError, RequestError, StageError, TaskError


def _check_not_shadowed() -> None:
    """Load the guard by its path: ``import targets`` might already find somebody else's."""
    path = Path(__file__).resolve().parent.parent / "targets" / "packages.py"
    spec = importlib.util.spec_from_file_location("_paretopress_guard", path)
    if spec is not None and spec.loader is not None:
        guard = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(guard)
        guard.check_not_shadowed()


_check_not_shadowed()

_HOMES = {
    "Candidate": "compress.values.candidates",
    "Choice": "compress.values.domains",
    "CompressError": "targets.errors",
    "Config": "compress.values.configs",
    "FinetuneSettings": "compress.values.configs",
    "Float": "compress.values.domains",
    "Int": "compress.values.domains",
    "Metric": "compress.metrics.metrics",
    "NoFeasibleCandidate": "targets.errors",
    "ParityError": "targets.errors",
    "PrecisionSettings": "compress.values.configs",
    "Pruned": "compress.pruning.pruning",
    "PruneSettings": "compress.values.configs",
    "RequestError": "targets.errors",
    "SearchSpace": "compress.values.search_spaces",
    "StageError": "targets.errors",
    "TaskError": "targets.errors",
    "Task": "compress.tasks.tasks",
    "drop_blocks": "compress.pruning.blocks",
    "export": "compress.onnx_files.exporting",
    "find_blocks": "compress.pruning.blocks",
    "find_groups": "compress.pruning.grouping",
    "open_run": "compress.results",
    "prune": "compress.pruning.pruning",
    "quantize": "compress.precision.quantizing",
    "search": "compress.searching.searching",
}

__all__ = [
    "Candidate",
    "Choice",
    "CompressError",
    "Config",
    "FinetuneSettings",
    "Float",
    "Int",
    "Metric",
    "NoFeasibleCandidate",
    "ParityError",
    "PrecisionSettings",
    "PruneSettings",
    "Pruned",
    "RequestError",
    "SearchSpace",
    "StageError",
    "Task",
    "TaskError",
    "drop_blocks",
    "export",
    "find_blocks",
    "find_groups",
    "open_run",
    "prune",
    "quantize",
    "search",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    try:  # `compress.metrics` after a plain `import compress`
        return importlib.import_module(f"compress.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"compress.{name}":
            raise
    raise AttributeError(f"module 'compress' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""The stage that exports a pruned network: its graph once, before it is trained; afterwards its weights into that."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor, nn

from compress.baseline.contexts import Training
from compress.onnx_files import exporting, parity
from compress.onnx_files.limits import VersionLimits
from compress.pruning.pruning import Pruned
from compress.run_folder.caching import Cache
from compress.values.printable import printable
from compress.values.serialization import to_json
from targets.documents import file_hash
from targets.errors import ExportError, ParityError


@dataclass(frozen=True)
class Shape:
    """What determines a pruned network's graph."""

    graph: str
    """Hash of the baseline's."""
    widths: Mapping[str, int]
    """Group -> channels left, of the groups that are cut."""
    dropped: tuple[str, ...]
    """Blocks that it lacks."""
    limits: VersionLimits

    def key(self) -> dict[str, Any]:
        """What stands for it in a cache key."""
        dropped = {"dropped": list(self.dropped)} if self.dropped else {}
        return {"graph": self.graph, "widths": dict(self.widths), "limits": to_json(self.limits), **dropped}


def make_template(cache: Cache, training: Training, whole: nn.Module, pruned: Pruned, shape: Shape) -> onnx.ModelProto:
    """The pruned network's raw graph: traced once for its blocks, then fitted to any widths.

    ``whole``: the network before it was cut, without its blocks. Where the graph cannot be fitted, the cut network is
    traced itself.
    """
    if not shape.widths:
        return _whole_template(cache, training, whole, shape)
    stored = cache.get("export", exporting.VERSION, shape.key())
    if stored is None:
        try:
            template = _whole_template(cache, training, whole, replace(shape, widths={}))
        except ExportError:  # what is cut away may be what cannot be exported
            template = None

        def compute(folder: Path) -> dict[str, Any]:
            model = template and exporting.retargeted(template, pruned.module, training.example, shape.limits)
            if model is None:
                model = exporting.trace_graph(pruned.module, training.example, shape.limits)
            onnx.save(model, folder / "template.onnx")
            return {}

        stored = cache.stage("export", exporting.VERSION, shape.key(), compute)
    return onnx.load(stored.folder / "template.onnx")


def _whole_template(cache: Cache, training: Training, whole: nn.Module, shape: Shape) -> onnx.ModelProto:
    """The raw graph of a network that has lost nothing but blocks; raises ExportError where it cannot be exported."""
    if not shape.dropped:
        return training.template

    def compute(folder: Path) -> dict[str, Any]:
        onnx.save(exporting.trace_graph(whole, training.example, shape.limits), folder / "template.onnx")
        return {}

    return onnx.load(cache.stage("export", exporting.VERSION, shape.key(), compute).folder / "template.onnx")


def bind_weights(
    cache: Cache, training: Training, module: nn.Module, weights: Path | None, template: onnx.ModelProto,
    shape: Shape, example: tuple[Tensor, ...],
) -> Path:  # fmt: skip
    """The float ONNX file of the trained ``module``: its weights swapped into the template, or exported anew.

    ``weights``: the file that they are in; None for the baseline's own. Raises ParityError where the file does not
    compute what the network does.
    """

    def compute(folder: Path) -> dict[str, Any]:
        path = folder / "model.onnx"
        try:
            onnx.save(exporting.bind(template, module.state_dict(), shape.limits), path)
            parity.check_parity(path, module, example)
            return {"traced": False}
        except (ExportError, ParityError) as error:
            print(f"exporting anew: {printable(error)}", file=sys.stderr)
        traced = exporting.trace_graph(module, example, shape.limits)
        onnx.save(exporting.bind(traced, module.state_dict(), shape.limits), path)
        parity.check_parity(path, module, example)
        return {"traced": True}

    inputs = {**shape.key(), "weights": file_hash(weights)[:16] if weights else training.digest}
    return cache.stage("export", exporting.VERSION, inputs, compute).folder / "model.onnx"

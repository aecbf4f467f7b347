"""Baselines: carried here."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch

from compress.baseline import modules, onnx_baselines
from compress.baseline.onnx_baselines import EXAMPLES
from compress.measurement import latencies, scoring
from compress.metrics import metrics
from compress.networks import counting, fingerprints
from compress.onnx_files import exporting, graphs
from compress.onnx_files import limits as onnx_files_limits
from compress.onnx_files import parity as onnx_files_parity
from compress.onnx_import import importer
from compress.run_folder.caching import Cache
from compress.run_folder.runs import Run
from compress.tasks import datasets
from compress.tasks.identities import architecture
from compress.tasks.splits import Splits
from compress.tasks.tasks import Task
from compress.values.candidates import Candidate, Drop, Measured, Parity
from compress.values.serialization import to_json
from targets.documents import file_hash
from targets.errors import ExportError
from targets.target import Target


@dataclass(frozen=True)
class _Setting:
    """What preparing works with."""

    task: Task
    run: Run
    cache: Cache
    places: tuple[Target, ...]
    describe: dict[str, Any]
    splits: Splits
    metric: metrics.Metric
    path: Path
    """``baseline/model.onnx``."""
    limits: onnx_files_limits.VersionLimits

    @property
    def example(self) -> tuple[torch.Tensor, ...]:
        return self.splits.val.first(EXAMPLES)


def _baseline_model(setting: _Setting) -> tuple[torch.nn.Module | None, onnx.ModelProto | None]:
    """The module and its raw exported graph (None for a file that cannot be imported); ``baseline/model.onnx``."""
    task, path = setting.task, setting.path
    if task.onnx_path is not None:
        return _of_file(setting, task.onnx_path)
    module = _module(setting)
    template = _template(setting, module)
    if not path.exists():
        temporary = path.with_name(".model.onnx")
        onnx.save(exporting.bind(template, module.state_dict(), setting.limits), temporary)
        onnx_files_parity.check_parity(temporary, module, setting.example)
        temporary.replace(path)
    return module, template


def _template(setting: _Setting, module: torch.nn.Module, graph: str = "") -> onnx.ModelProto:
    """The raw graph; ``graph`` tells two apart whose weights are the same."""

    def compute(folder: Path) -> dict[str, Any]:
        onnx.save(exporting.trace_graph(module, setting.example, setting.limits), folder / "template.onnx")
        return {}

    inputs = {"baseline": fingerprints.state_hash(module), "limits": to_json(setting.limits)}
    artifact = setting.cache.stage(
        "export", exporting.VERSION, {**inputs, "graph": graph} if graph else inputs, compute
    )
    return onnx.load(artifact.folder / "template.onnx")


def _of_file(setting: _Setting, file: Path) -> tuple[torch.nn.Module | None, onnx.ModelProto | None]:
    """An ``.onnx`` file is the baseline as it is; what is pruned is what it says in torch, if that can be had."""
    path = setting.path
    source = onnx_baselines.file_source(file, setting.splits)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(onnx_files_limits.fit_to_limits(source.model, setting.limits), path)  # external data is taken in
    _remember_architecture(setting)
    for note in source.notes:
        _warn(setting.run, f"{file.name}: {note}")
    try:
        with setting.cache.timed("import"):
            module = onnx_baselines.imported(setting.task, setting.splits, path)
        template = _template(setting, module, graphs.structure_hash(path))
        with tempfile.TemporaryDirectory() as folder:
            again = Path(folder) / "model.onnx"
            onnx.save(exporting.bind(template, module.state_dict(), setting.limits), again)
            onnx_files_parity.check_parity(again, module, setting.example)
    except (importer.NotImportable, ExportError) as error:
        _warn(setting.run, onnx_baselines.not_pruned(file, error))
        return None, None
    return module, template


def _warn(run: Run, text: str) -> None:
    """Beside the warnings about the data."""
    known = list(run.state.facts.get("warnings", []))
    if text not in known:
        run.record.append("fact", name="warnings", value=[*known, text])


def _module(setting: _Setting) -> torch.nn.Module:
    """The baseline kept in the run, else the task's own, kept from now on."""
    folder = setting.path.parent
    if (folder / "weights.pt").exists():
        return modules.load(setting.task, folder)
    with setting.cache.timed("baseline"):
        module = modules.make_module(setting.task)
        modules.save(module, folder, whole=not isinstance(setting.task.model, torch.nn.Module))
    _remember_architecture(setting)
    return module


def _remember_architecture(setting: _Setting) -> None:
    if "architecture" not in setting.run.state.facts:
        setting.run.record.append("fact", name="architecture", value=architecture(setting.task))


def _save(model: onnx.ModelProto, path: Path) -> None:
    temporary = path.with_name(f".{path.name}")
    onnx.save(model, temporary)
    temporary.replace(path)


def _baseline_candidate(
    setting: _Setting, names: list[str], module: torch.nn.Module | None, scorer: scoring.Scorer
) -> Candidate:
    """The baseline measured and scored on every target; what the record has already is not done again."""
    run, path = setting.run, setting.path
    known = run.state.candidates.get("baseline")
    if known is not None and all(t.name in known.measured for t in setting.places):
        return known
    if module is not None:
        macs, parameters = counting.macs_and_parameters(module, setting.splits.val.first(2))
        parity = onnx_files_parity.check_parity(path, module, setting.example)
    else:
        macs, parameters, parity = graphs.count_macs(path), graphs.count_parameters(path), Parity(0.0, 1.0)
    measured = dict(known.measured) if known else {}
    for target in setting.places:
        if target.name not in measured:
            measured[target.name] = _baseline_on(setting, names, target, scorer)
    candidate = Candidate(
        id="baseline",
        path="baseline/model.onnx",
        config={"precision": {"scheme": "fp32"}, "prune": {"ratio": 0.0}, "widths": {}},
        size=path.stat().st_size,
        parameters=parameters,
        macs=macs,
        parity=parity,
        measured=measured,
        sha256=file_hash(path),
    )
    run.record.append("candidate", candidate=candidate)
    return candidate


def _baseline_on(setting: _Setting, names: list[str], target: Target, scorer: scoring.Scorer) -> Measured:
    """The baseline on one target; of a network against itself nothing is uncertain."""
    cache, splits, metric = setting.cache, setting.splits, setting.metric
    described = setting.describe[target.name]
    scorer.decide(target, setting.path, {"val": splits.val, **({"test": splits.test} if splits.test else {})})
    scored = scorer.outputs(target, setting.path, splits.val, "val")
    found = scored.outputs
    shape = found[0].shape if isinstance(found, tuple) else found.shape
    # Of agreement, the labels are what the original says.
    if metric.loss == "cross_entropy" and len(shape) == 2 and metric.name != "agreement":
        datasets.check_classes(splits.in_memory, shape[1])
    quality = metrics.quality_of(metric, found, splits.val.labels.numpy(), setting.run.request.seed)
    sample = {name: array[:1] for name, array in splits.val.arrays(names).items()}
    info = latencies.measure(cache, target, described, setting.path, [setting.path], sample)[0]
    measured = latencies.measured(info, quality, Drop(0.0, 0.0, 0.0), scored.check)
    latency = measured.latency
    return replace(measured, latency=None if latency is None else replace(latency, ratio=1.0, low=1.0, high=1.0))

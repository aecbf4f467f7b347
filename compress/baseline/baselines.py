"""The baseline in the run: its module and exported graph, its file, and what is measured of it on every target."""

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
from compress.metrics import metrics, output_kinds
from compress.networks import counting, fingerprints
from compress.networks.running import MAIN
from compress.onnx_files import exporters, exporting, graphs
from compress.onnx_files import limits as onnx_files_limits
from compress.onnx_files import parity as onnx_files_parity
from compress.onnx_files.contents import last_operator
from compress.onnx_import import importer
from compress.run_folder.caching import Cache
from compress.run_folder.runs import Run
from compress.tasks import datasets
from compress.tasks.decoding import check_decoded
from compress.tasks.identities import architecture
from compress.tasks.splits import Splits
from compress.tasks.tasks import Task
from compress.values.candidates import Candidate, Drop, Measured, Parity
from compress.values.serialization import to_json
from targets.documents import file_hash
from targets.errors import ExportError, RunError
from targets.target import Target

_NEW_OUT = "choose another --out"
CONVERTED = "model.tflite"
"""The baseline's file for targets that convert; measured is what they make of ``model.onnx``, which is the same."""


@dataclass(frozen=True)
class Preparation:
    """What a task is made ready with: the run it goes into, the targets, and the data."""

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
    moved: frozenset[str] = frozenset()
    """Targets that are other devices than those the run has measured on."""

    @property
    def example(self) -> tuple[torch.Tensor, ...]:
        """A few inputs of val, on which networks are tried."""
        return self.splits.val.first(EXAMPLES)


@dataclass(frozen=True)
class BaselineNetwork:
    """The baseline in torch: what is pruned and trained."""

    module: torch.nn.Module
    template: onnx.ModelProto
    """Its raw exported graph."""


def make_baseline(preparation: Preparation) -> BaselineNetwork | None:
    """Put ``baseline/model.onnx`` in place; the network, or None where the task brings a file (``import_network``)."""
    task, path = preparation.task, preparation.path
    if task.onnx_path is not None:
        _put_file(preparation, task.onnx_path)
        return None
    module = _module(preparation)
    template = _template(preparation, module)
    if not _is_kept(preparation):
        temporary = path.with_name(".model.onnx")
        onnx.save(exporting.bind(template, module.state_dict(), preparation.limits), temporary)
        onnx_files_parity.check_parity(temporary, module, preparation.example)
        _put(preparation, temporary)
    only = exporters.fixed_batch(template)
    if only is not None:
        samples = "one sample" if only == 1 else f"{only} samples"
        warn(preparation.run, f"the exported file takes {samples} at a time, so it is scored and timed on as many")
    return BaselineNetwork(module, template)


def _is_kept(preparation: Preparation) -> bool:
    """Whether the baseline's file is there, as it was measured if it was."""
    known = preparation.run.state.candidates.get("baseline")
    return preparation.path.exists() if known is None else preparation.run.is_whole(known)


def _put(preparation: Preparation, made: Path) -> None:
    """Put the baseline's file in place; raises RunError where the run has measured another one, which is lost."""
    known = preparation.run.state.candidates.get("baseline")
    if known is not None and known.sha256 not in ("", file_hash(made)):
        made.unlink()
        raise RunError(
            f"{str(preparation.path)!r} is damaged or gone, and what is made in its place is another file than the one "
            "that was measured; restore it, or choose another --out"
        )
    made.replace(preparation.path)


def _template(preparation: Preparation, module: torch.nn.Module, graph: str = "") -> onnx.ModelProto:
    """The raw graph; ``graph`` tells two apart whose weights are the same."""

    def compute(folder: Path) -> dict[str, Any]:
        onnx.save(exporting.trace_graph(module, preparation.example, preparation.limits), folder / "template.onnx")
        return {}

    inputs = {"baseline": fingerprints.state_hash(module), "limits": to_json(preparation.limits)}
    artifact = preparation.cache.stage(
        "export", exporting.VERSION, {**inputs, "graph": graph} if graph else inputs, compute
    )
    return onnx.load(artifact.folder / "template.onnx")


def _put_file(preparation: Preparation, file: Path) -> None:
    """An ``.onnx`` file is the baseline as it is."""
    path = preparation.path
    source = onnx_baselines.file_source(file, preparation.splits)
    if not _is_kept(preparation):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        onnx.save(onnx_files_limits.fit_to_limits(source.model, preparation.limits), temporary)  # with external data
        _put(preparation, temporary)
    _remember_architecture(preparation)
    for note in source.notes:
        warn(preparation.run, f"{file.name}: {note}")


def import_network(preparation: Preparation, file: Path) -> BaselineNetwork | None:
    """What an ``.onnx`` file says in torch, to be pruned and trained; None, and the reason said, where that fails."""
    path = preparation.path
    try:
        with preparation.cache.timed("import"):
            module = onnx_baselines.imported(preparation.task, preparation.splits, path)
        template = _template(preparation, module, graphs.structure_hash(path))
        with tempfile.TemporaryDirectory() as folder:
            again = Path(folder) / "model.onnx"
            onnx.save(exporting.bind(template, module.state_dict(), preparation.limits), again)
            onnx_files_parity.check_parity(again, module, preparation.example)
    except (importer.NotImportable, ExportError) as error:
        warn(preparation.run, onnx_baselines.not_pruned(file, error))
        return None
    return BaselineNetwork(module, template)


def warn(run: Run, text: str) -> None:
    """Beside the warnings about the data."""
    if text not in run.state.facts.warnings:
        run.record.note("warnings", (*run.state.facts.warnings, text))


def _module(preparation: Preparation) -> torch.nn.Module:
    """The baseline kept in the run, else the task's own, kept from now on.

    Raises RunError where the weights are others than those that the run began with.
    """
    folder, task, val = preparation.path.parent, preparation.task, preparation.splits.val
    begun = preparation.run.request.task
    known = begun.weights if begun is not None else ""
    given = isinstance(task.model, torch.nn.Module)
    if (folder / "weights.pt").exists() and not (given and known):
        kept = modules.load(task, folder)
        # A run of before, which does not say whose weights it began with: those are in the file.
        found = fingerprints.state_hash(kept)
        if given and found != fingerprints.state_hash(modules.make_module(task)):
            raise RunError(f"{str(preparation.run.folder)!r} is the run of other weights of the model; {_NEW_OUT}")
        if known not in ("", found):
            raise RunError(f"{str(folder / 'weights.pt')!r} does not hold the weights the run began with; {_NEW_OUT}")
        return modules.callable_by_place(kept, preparation.example, val.names)
    with preparation.cache.timed("baseline"):
        module = modules.make_module(task)
    if given and modules.holds(folder / "weights.pt", module):
        return modules.callable_by_place(module, preparation.example, val.names)
    if known not in ("", fingerprints.state_hash(module)):
        raise RunError(
            f"{str(folder / 'weights.pt')!r} is gone, and the model function gave other weights now than when the run "
            f"began; {_NEW_OUT}"
        )
    modules.save(module, folder, whole=not given)
    _remember_architecture(preparation)
    return modules.callable_by_place(module, preparation.example, val.names)


def _remember_architecture(preparation: Preparation) -> None:
    if not preparation.run.state.facts.architecture:
        preparation.run.record.note("architecture", architecture(preparation.task))


def baseline_candidate(
    preparation: Preparation, names: list[str], module: torch.nn.Module | None, scorer: scoring.Scorer
) -> Candidate:
    """The baseline measured and scored on every target; what the record has already is not done again.

    On targets that moved it is; the record then gets it together with all other candidates.
    """
    run, path, moved = preparation.run, preparation.path, preparation.moved
    known = run.state.candidates.get("baseline")
    there = {} if known is None else {k: v for k, v in known.measured.items() if k not in moved}
    if known is not None and all(t.name in there for t in preparation.places):
        return known
    if module is not None:
        macs, parameters = counting.macs_and_parameters(module, preparation.splits.val.first(2))
        parity = onnx_files_parity.check_parity(path, module, preparation.example)
    else:
        macs, parameters, parity = graphs.count_macs(path), graphs.count_parameters(path), Parity(0.0, 1.0)
    measured = there
    for target in preparation.places:
        if target.name not in measured:
            measured[target.name] = _baseline_on(preparation, names, target, scorer)
    _convert(preparation)
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
        files={made.name: file_hash(made) for made in [path.with_name(CONVERTED)] if made.exists()},
    )
    if not moved:
        run.record.append("candidate", candidate=candidate)
    return candidate


def _convert(preparation: Preparation) -> None:
    """Put the file of targets that convert beside the baseline's own."""
    made = preparation.path.with_name(CONVERTED)
    for target in preparation.places:
        if not made.exists() and target.convert(preparation.path, "fp32", {}, made) is not None:
            return


def counted_in_torch(preparation: Preparation, module: torch.nn.Module) -> Candidate:
    """The baseline that is a file, with its costs counted as those of the networks cut from it are."""
    run, known = preparation.run, preparation.run.state.candidates["baseline"]
    macs, parameters = counting.macs_and_parameters(module, preparation.splits.val.first(2))
    parity = onnx_files_parity.check_parity(preparation.path, module, preparation.example)
    found = replace(known, macs=macs, parameters=parameters, parity=parity)
    if found != known:
        run.record.append("candidate", candidate=found)
    return found


def fitted_metric(preparation: Preparation, scorer: scoring.Scorer) -> metrics.Metric:
    """The task's metric, as it is scored where the baseline has several outputs or puts out probabilities.

    What it puts out is found once, before it is scored first, and said.
    """
    run, splits, metric = preparation.run, preparation.splits, preparation.metric
    model = graphs.read_unchecked(preparation.path)
    names = [value.name for value in model.graph.output]
    index = names.index(MAIN) if len(names) > 1 and MAIN in names else None
    if "baseline" not in run.state.candidates and run.state.facts.outputs == "logits":
        _decide_where(preparation, preparation.places[0], scorer)
        found = scorer.outputs(preparation.places[0], preparation.path, splits.val, "val").outputs
        chosen = found[index] if index is not None and isinstance(found, tuple) else found
        check_decoded(preparation.task, found, splits.val)
        last = last_operator(model, index or 0)
        run.record.note("outputs", output_kinds.output_kind(metric, chosen, splits.val.labels.numpy(), last))
    kind = run.state.facts.outputs
    usual = preparation.task.loss is None and splits.train is not None
    if kind != "logits" and (usual or metric.loss == "bce"):
        warn(run, output_kinds.explained(kind, metric, trained=usual))
    return output_kinds.scored_as(metric, kind, index)


def _decide_where(preparation: Preparation, target: Target, scorer: scoring.Scorer) -> None:
    """Whether ``target`` scores the splits itself."""
    splits = preparation.splits
    scorer.decide(target, preparation.path, {"val": splits.val, **({"test": splits.test} if splits.test else {})})


def _baseline_on(preparation: Preparation, names: list[str], target: Target, scorer: scoring.Scorer) -> Measured:
    """The baseline on one target; of a network against itself nothing is uncertain."""
    cache, splits, metric = preparation.cache, preparation.splits, preparation.metric
    described = preparation.describe[target.name]
    _decide_where(preparation, target, scorer)
    scored = scorer.outputs(target, preparation.path, splits.val, "val")
    found = scored.outputs
    shape = found[0].shape if isinstance(found, tuple) else found.shape
    # Of agreement, the labels are what the original says.
    if metric.loss == "cross_entropy" and len(shape) == 2 and metric.name != "agreement":
        datasets.check_classes(splits.in_memory, shape[1])
    quality = metrics.quality_of(metric, found, splits.val.labels.numpy(), preparation.run.request.seed)
    sample = {name: array[:1] for name, array in splits.val.arrays(names).items()}
    info = latencies.measure(cache, target, described, preparation.path, [preparation.path], sample)[0]
    measured = latencies.measured(info, quality, Drop(0.0, 0.0, 0.0), scored.check)
    latency = measured.latency
    return replace(measured, latency=None if latency is None else replace(latency, ratio=1.0, low=1.0, high=1.0))

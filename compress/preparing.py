"""Making a task ready to search: data, baseline, identity, training mode. Every slow part is kept in the run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from compress import (
    baselines,
    data,
    exporting,
    file_baselines,
    graphs,
    latencies,
    metrics,
    precisions,
    profiling,
    pruning,
    scoring,
)
from compress.caching import Cache
from compress.configs import QAT
from compress.contexts import Context, Say
from compress.file_baselines import EXAMPLES
from compress.onnx_import import importing
from compress.quantizing import has_matmul, layers
from compress.questions import space_of
from compress.results import Candidate, Drop, Measured, Parity
from compress.runs import Run, same_task
from compress.serialization import file_hash, from_json, stable_hash, to_json
from compress.tasks import Task, TaskIdentity
from compress.training import training_setups
from targets.errors import ExportError, RunError, TaskError
from targets.probing import probed
from targets.target import Capabilities, Target

_CALIBRATION = 256


@dataclass(frozen=True)
class Splits:
    """The task's data, read and checked."""

    train: data.Split | data.Stream | None
    val: data.Split
    test: data.Split | None
    warnings: tuple[str, ...]

    @property
    def in_memory(self) -> dict[str, data.Split]:
        """The splits that are held whole, by name."""
        found = {"val": self.val}
        if isinstance(self.train, data.Split):
            found["train"] = self.train
        if self.test is not None:
            found["test"] = self.test
        return found


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
    limits: exporting.Limits

    @property
    def example(self) -> tuple[torch.Tensor, ...]:
        return self.splits.val.first(EXAMPLES)


def read_splits(task: Task) -> Splits:
    """Read all splits; overlap between them is no error, but said. Raises TaskError for unusable data."""
    val = data.read(task.val, "val")
    test = None if task.test is None else data.read(task.test, "test")
    train = None
    if task.train is not None:
        train = data.read_train(task.train)
    elif task.onnx_path is None:
        raise TaskError(f"task {task.name!r}: train is None; fine-tuning needs training data")
    for name, labels in task.slices.items():
        if test is not None and len(labels) != len(test):
            raise TaskError(
                f"slices[{name!r}] has {len(labels)} labels, test has {len(test)} examples; one for each is needed"
            )
    splits = Splits(train, val, test, ())
    metric, one_each = metrics.get(task.metric), val.labels.dim() == 1
    if metric.loss == "cross_entropy" and metric.name != "agreement" and task.loss is None and one_each:
        data.check_classes(splits.in_memory)
    warnings = [_overlap(a, b, n) for (a, b), n in data.overlaps(splits.in_memory).items()]
    if metric.name == "agreement" and one_each and len(val.labels.unique()) == 1:
        warnings.append("the original decides on one class for all of val: that others agree says little")
    if test is None:
        warnings.append("there is no test split: nothing was held out, and no pick can be confirmed")
    return replace(splits, warnings=tuple(warnings))


def identity(task: Task, splits: Splits, metric: metrics.Metric, graph: str = "") -> TaskIdentity:
    """What makes this task itself; ``graph`` is empty as long as the baseline is not exported."""
    sizes = {"val": len(splits.val), "test": len(splits.test) if splits.test else 0}
    test = splits.test.digest if splits.test else None
    return TaskIdentity(task.name, metric.name, graph, splits.val.digest, test, sizes)


def check_identity(old: TaskIdentity | None, new: TaskIdentity, folder: Path) -> None:
    """Raise RunError where a run belongs to another task."""
    if old is None:
        return
    why = same_task(old, replace(new, graph=new.graph or old.graph))
    if why:
        raise RunError(f"{str(folder)!r} is the run of another task ({why}); choose another --out")


def architecture(task: Task) -> str:
    """What stands for a model before anything is exported: layers and shapes of weights, or the file's graph."""
    if task.onnx_path is not None:
        graphs.load_model(task.onnx_path)
        return graphs.structure_hash(task.onnx_path)
    if not isinstance(task.model, torch.nn.Module):
        return ""
    return stable_hash([str(task.model), {k: list(v.shape) for k, v in task.model.state_dict().items()}])


def prepare(
    task: Task, run: Run, cache: Cache, places: Sequence[Target], splits: Splits, device: str, say: Say
) -> Context:
    """Everything a search needs before its first trial."""
    metric = metrics.get(task.metric)
    describe = {target.name: target.describe() for target in places}
    path = run.folder / "baseline" / "model.onnx"
    say("probe")
    abilities = _abilities(run, cache, places)
    limits = exporting.limits_of(abilities.values())
    setting = _Setting(task, run, cache, tuple(places), describe, splits, metric, path, limits)
    say("baseline")
    module, template = _baseline_model(setting)
    graph = graphs.structure_hash(path)
    new = identity(task, splits, metric, graph)
    check_identity(run.request.task, new, run.folder)
    run.with_request(task=new)
    names = [node.name for node in exporting.open_session(path).get_inputs()]
    file_baselines.check_inputs(names, splits)
    scorer = scoring.Scorer(cache, run, describe, names)
    baseline = _baseline_candidate(setting, names, module, scorer)
    training = None
    if module is not None and template is not None:
        training = training_setups.make_training(_setup(setting), module, template, device, say)
    say("profile")
    calibration = _calibration(setting, names)
    first, able = places[0], abilities[places[0].name]
    mixed = "mixed" in run.request.space.schemes() and "mixed" in able.precisions
    timed_on = (first, describe[first.name]) if mixed else None
    profile = profiling.make_profile(cache, training, path, calibration, able, timed_on)
    return Context(
        task=task,
        run=run,
        cache=cache,
        targets=setting.places,
        space=space_of(run),
        seed=run.request.seed,
        metric=metric,
        val=splits.val,
        test=splits.test,
        names=names,
        baseline=baseline,
        baseline_path=path,
        baseline_structure=graph,
        profile=profile,
        calibration=calibration,
        calibration_digest=profiling.digest(calibration),
        step=precisions.channel_step(_schemes(setting, abilities), abilities),
        abilities=abilities,
        variants=_variants(setting, abilities, trained=training is not None),
        limits=setting.limits,
        scorer=scorer,
        training=training,
        describe=describe,
    )


def _overlap(a: str, b: str, n: int) -> str:
    used = "trained on" if "train" in (a, b) else "used to steer the search"
    return f"{a} and {b} share {n} examples: those were {used} as well, so what is measured on them flatters"


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
        exporting.check_parity(temporary, module, setting.example)
        temporary.replace(path)
    return module, template


def _template(setting: _Setting, module: torch.nn.Module, graph: str = "") -> onnx.ModelProto:
    """The raw graph; ``graph`` tells two apart whose weights are the same."""

    def compute(folder: Path) -> dict[str, Any]:
        onnx.save(exporting.trace(module, setting.example, setting.limits), folder / "template.onnx")
        return {}

    inputs = {"baseline": baselines.state_hash(module), "limits": to_json(setting.limits)}
    artifact = setting.cache.stage(
        "export", exporting.VERSION, {**inputs, "graph": graph} if graph else inputs, compute
    )
    return onnx.load(artifact.folder / "template.onnx")


def _of_file(setting: _Setting, file: Path) -> tuple[torch.nn.Module | None, onnx.ModelProto | None]:
    """An ``.onnx`` file is the baseline as it is; what is pruned is what it says in torch, if that can be had."""
    path = setting.path
    source = file_baselines.file_source(file, setting.splits)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(exporting.suit(source.model, setting.limits), path)  # external data is taken in
    _remember_architecture(setting)
    for note in source.notes:
        _warn(setting.run, f"{file.name}: {note}")
    try:
        with setting.cache.timed("import"):
            module = file_baselines.imported(setting.task, setting.splits, path)
        template = _template(setting, module, graphs.structure_hash(path))
        with tempfile.TemporaryDirectory() as folder:
            again = Path(folder) / "model.onnx"
            onnx.save(exporting.bind(template, module.state_dict(), setting.limits), again)
            exporting.check_parity(again, module, setting.example)
    except (importing.NotImportable, ExportError) as error:
        _warn(setting.run, file_baselines.not_pruned(file, error))
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
        return baselines.load(setting.task, folder)
    with setting.cache.timed("baseline"):
        module = baselines.make_module(setting.task)
        baselines.save(module, folder, whole=not isinstance(setting.task.model, torch.nn.Module))
    _remember_architecture(setting)
    return module


def _remember_architecture(setting: _Setting) -> None:
    if "architecture" not in setting.run.state.facts:
        setting.run.record.append("fact", name="architecture", value=architecture(setting.task))


def _save(model: onnx.ModelProto, path: Path) -> None:
    temporary = path.with_name(f".{path.name}")
    onnx.save(model, temporary)
    temporary.replace(path)


def _calibration(setting: _Setting, names: list[str]) -> dict[str, np.ndarray]:
    """Samples to calibrate with: from train where there is one, never from test."""
    if setting.splits.train is not None:
        inputs, _ = data.sample(setting.splits.train, _CALIBRATION, setting.run.request.seed)
    else:
        inputs = setting.splits.val.first(_CALIBRATION)
    return {name: x.numpy() for name, x in zip(names, inputs, strict=True)}


def _abilities(run: Run, cache: Cache, places: Sequence[Target]) -> dict[str, Capabilities]:
    """Target -> what it can do: measured once, and the same for the whole run."""
    known: dict[str, Any] = dict(run.state.facts.get("abilities", {}))
    for target in places:
        if target.name not in known:
            with cache.timed("probe"):
                known[target.name] = to_json(probed(target))
            run.record.append("fact", name="abilities", value=known)
    return {target.name: from_json(Capabilities, known[target.name]) for target in places}


def _schemes(setting: _Setting, abilities: precisions.Abilities) -> tuple[str, ...]:
    return precisions.wanted(setting.run.request.space, [one.precisions for one in abilities.values()])


def _variants(setting: _Setting, abilities: precisions.Abilities, *, trained: bool) -> tuple[precisions.Variant, ...]:
    """The files of every network, without those that it has no layers for; without training, none that need it."""
    found = precisions.variants(_schemes(setting, abilities), abilities)
    count = len(layers(setting.path))
    if count < 2:  # of one layer, nothing is mixed
        found = tuple(variant for variant in found if variant.scheme != "mixed")
    if not count:
        found = tuple(variant for variant in found if variant.scheme in ("fp32", "fp16"))
    if not has_matmul(setting.path):
        found = tuple(variant for variant in found if variant.scheme not in ("int8-dynamic", "int4-weights"))
    return tuple(variant for variant in found if trained or variant.scheme != QAT)


def _baseline_candidate(
    setting: _Setting, names: list[str], module: torch.nn.Module | None, scorer: scoring.Scorer
) -> Candidate:
    """The baseline measured and scored on every target; what the record has already is not done again."""
    run, path = setting.run, setting.path
    known = run.state.candidates.get("baseline")
    if known is not None and all(t.name in known.measured for t in setting.places):
        return known
    if module is not None:
        macs, parameters = pruning.count(module, setting.splits.val.first(2))
        parity = exporting.check_parity(path, module, setting.example)
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
        data.check_classes(splits.in_memory, shape[1])
    quality = metrics.score(metric, found, splits.val.labels.numpy(), setting.run.request.seed)
    sample = {name: array[:1] for name, array in splits.val.arrays(names).items()}
    info = latencies.measure(cache, target, described, setting.path, [setting.path], sample)[0]
    measured = latencies.measured(info, quality, Drop(0.0, 0.0, 0.0), scored.check)
    latency = measured.latency
    return replace(measured, latency=None if latency is None else replace(latency, ratio=1.0, low=1.0, high=1.0))


def _setup(setting: _Setting) -> training_setups.Setup:
    deterministic = all(target.deterministic for target in setting.places)
    return training_setups.Setup(
        setting.task, setting.run, setting.cache, setting.metric, setting.splits.train, setting.example,
        deterministic, lambda text: _warn(setting.run, text),
    )  # fmt: skip

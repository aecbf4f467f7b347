"""Making a task ready to search: data, baseline, identity, profile. Every slow part is kept in the run."""

from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from compress import baselines, data, exporting, finetuning, graphs, latencies, metrics, pruning, quantizing, scoring
from compress.caching import Cache
from compress.configs import FinetuneSettings
from compress.contexts import Context, Profile, Say, Training
from compress.pruning import Groups
from compress.results import Candidate, Drop, DropSplits, Measured, Parity, QualitySplits
from compress.runs import Run, same_task
from compress.serialization import file_hash, stable_hash
from compress.spaces import SearchSpace
from compress.tasks import Task, TaskIdentity
from compress.training_modes import TrainingMode, default_mode, find_mode, resolve_device
from targets.errors import RunError, TargetError, TaskError
from targets.target import Target

VERSION = 1
_CALIBRATION = 256
_SCAN = 512
_SCAN_RATIO = 0.5


@dataclass(frozen=True)
class Splits:
    """The task's data, read and checked."""

    train: data.Split | data.Stream | None
    val: data.Split
    test: data.Split | None
    warnings: tuple[str, ...]


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
    splits = {
        "val": val,
        **({"test": test} if test else {}),
        **({"train": train} if isinstance(train, data.Split) else {}),
    }
    warnings = [
        f"{a} and {b} share {n} examples: what is measured on one was {'trained' if 'train' in (a, b) else 'steered'} on in the other"
        for (a, b), n in data.overlaps(splits).items()
    ]
    if test is None:
        warnings.append("there is no test split: nothing was held out, and no pick can be confirmed")
    return Splits(train, val, test, tuple(warnings))


def check_identity(old: TaskIdentity | None, new: TaskIdentity, folder: Path) -> None:
    """Raise RunError where a run belongs to another task."""
    if old is None:
        return
    why = same_task(old, replace(new, graph=new.graph or old.graph))
    if why:
        raise RunError(f"{str(folder)!r} is the run of {why} than {new.name!r}; choose another --out")


def identity(task: Task, splits: Splits, metric: metrics.Metric, graph: str = "") -> TaskIdentity:
    """What makes this task itself; ``graph`` is empty as long as the baseline is not exported."""
    sizes = {"val": len(splits.val), "test": len(splits.test) if splits.test else 0}
    return TaskIdentity(
        task.name, metric.name, graph, splits.val.digest, splits.test.digest if splits.test else None, sizes
    )


def architecture(task: Task) -> str:
    """What stands for a module's graph before anything is exported: its layers and the shapes of its weights."""
    if not isinstance(task.model, torch.nn.Module):
        return ""
    return stable_hash([str(task.model), {k: list(v.shape) for k, v in task.model.state_dict().items()}])


def prepare(
    task: Task,
    run: Run,
    cache: Cache,
    places: Sequence[Target],
    splits: Splits,
    space: SearchSpace,
    device: str,
    say: Say,
) -> Context:
    """Everything a search needs before its first trial."""
    metric = metrics.get(task.metric)
    say("baseline")
    folder = run.folder / "baseline"
    path = folder / "model.onnx"
    module = None
    if task.onnx_path is None:
        module = _kept_module(task, run, cache, folder)
        template = _kept_template(module, splits, cache, path)
    else:
        graphs.load_model(task.onnx_path)
        _copy_onnx(task.onnx_path, path)
    graph = graphs.structure_hash(path)
    new = identity(task, splits, metric, graph)
    check_identity(run.request.task, new, run.folder)
    run.with_request(task=new, higher_is_better=metric.higher_is_better)
    names = [node.name for node in exporting.open_session(path).get_inputs()]
    if len(names) != len(splits.val.inputs):
        raise TaskError(f"val gives {len(splits.val.inputs)} inputs, the model takes {len(names)} ({', '.join(names)})")
    calibration = _calibration(splits, names, run.request.seed)
    describe = {target.name: target.describe() for target in places}
    baseline = _baseline_candidate(task, run, cache, places, describe, splits, metric, path, names, module)
    capabilities = [target.capabilities() for target in places]
    schemes = tuple(s for s in space.schemes() if all(s in c.precisions for c in capabilities))
    if not schemes:
        raise TargetError(f"{', '.join(t.name for t in places)} run none of the precisions {space.schemes()}")
    step = int(np.lcm.reduce([c.channel_step for c in capabilities]))
    training = None
    if module is not None and splits.train is not None:
        training = _training(task, cache, module, template, splits, metric, device, places, run, say)
    say("profile")
    profile = _profile(cache, training, path, calibration, capabilities[0])
    return Context(
        task=task, run=run, cache=cache, targets=tuple(places), space=space, seed=run.request.seed, metric=metric,
        val=splits.val, test=splits.test, names=names, baseline=baseline, baseline_path=path,
        baseline_structure=graph, profile=profile, calibration=calibration, step=step, schemes=schemes,
        training=training, describe=describe,
    )  # fmt: skip


def _kept_module(task: Task, run: Run, cache: Cache, folder: Path) -> torch.nn.Module:
    if (folder / "weights.pt").exists():
        return baselines.load(task, folder)
    with cache.timed("baseline"):
        module = baselines.make_module(task)
        baselines.save(module, folder, whole=not isinstance(task.model, torch.nn.Module))
    run.record.append("fact", name="architecture", value=architecture(task))
    return module


def _kept_template(module: torch.nn.Module, splits: Splits, cache: Cache, path: Path) -> onnx.ModelProto:
    """The raw graph (cached) and ``baseline/model.onnx`` from it."""
    example = splits.val.first(4)
    artifact = cache.stage(
        "export", exporting.VERSION, {"baseline": baselines.state_hash(module)}, _tracer(module, example)
    )
    template = onnx.load(artifact.folder / "template.onnx")
    if not path.exists():
        temporary = path.with_name(".model.onnx")
        onnx.save(exporting.bind(template, module.state_dict()), temporary)
        exporting.check_parity(temporary, module, example)
        temporary.replace(path)
    return template


def _tracer(module: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> Any:
    def compute(folder: Path) -> dict[str, Any]:
        onnx.save(exporting.trace(module, example), folder / "template.onnx")
        return {}

    return compute


def _copy_onnx(source: Path, path: Path) -> None:
    """The user's file, with external data taken in, as the run's baseline."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(".model.onnx")
        onnx.save(graphs.load_model(source), temporary)
        temporary.replace(path)


def _calibration(splits: Splits, names: list[str], seed: int) -> dict[str, np.ndarray]:
    """Samples to calibrate with: from train where there is one, never from test."""
    if splits.train is not None:
        inputs, _ = data.sample(splits.train, _CALIBRATION, seed)
    else:
        inputs = splits.val.first(_CALIBRATION)
    return {name: x.numpy() for name, x in zip(names, inputs, strict=True)}


def _baseline_candidate(
    task: Task, run: Run, cache: Cache, places: Sequence[Target], describe: dict[str, Any], splits: Splits,
    metric: metrics.Metric, path: Path, names: list[str], module: torch.nn.Module | None,
) -> Candidate:  # fmt: skip
    """The baseline measured and scored on every target; what the record has already is not done again."""
    known = run.state.candidates.get("baseline")
    if known is not None and all(t.name in known.measured for t in places):
        return known
    if module is not None:
        macs, parameters = pruning.count(module, splits.val.first(2))
        parity = exporting.check_parity(path, module, splits.val.first(4))
    else:
        macs, parameters, parity = graphs.count_macs(path), graphs.count_parameters(path), Parity(0.0, 1.0)
    measured = dict(known.measured) if known else {}
    labels = splits.val.labels.numpy()
    for target in places:
        if target.name in measured:
            continue
        found = scoring.outputs(cache, target, describe[target.name], path, splits.val, names)
        classes = found[0].shape if isinstance(found, tuple) else found.shape
        if metric.loss == "cross_entropy" and len(classes) == 2:
            data.check_classes({"val": splits.val, **({"test": splits.test} if splits.test else {}),
                                **({"train": splits.train} if isinstance(splits.train, data.Split) else {})}, classes[1])  # fmt: skip
        quality = metrics.score(metric, found, labels, run.request.seed)
        # Of a network against itself nothing is uncertain.
        drop = Drop(0.0, 0.0, 0.0)
        sample = {name: array[:1] for name, array in splits.val.arrays(names).items()}
        info = latencies.measure(cache, target, describe[target.name], path, [path], sample)[0]
        latency = latencies.latency_result(info)
        latency = None if latency is None else replace(latency, ratio=1.0, low=1.0, high=1.0)
        measured[target.name] = Measured(
            QualitySplits(quality), DropSplits(drop), latency, info.get("memory"), info.get("instructions")
        )
    config = {"precision": {"scheme": "fp32"}, "prune": {"ratio": 0.0}, "widths": {}}
    candidate = Candidate(
        "baseline", "baseline/model.onnx", config, path.stat().st_size, parameters, macs, parity, measured
    )
    run.record.append("candidate", candidate=candidate)
    return candidate


def _training(
    task: Task, cache: Cache, module: torch.nn.Module, template: onnx.ModelProto, splits: Splits, metric: metrics.Metric,
    device: str, places: Sequence[Target], run: Run, say: Say,
) -> Training:  # fmt: skip
    train = splits.train
    if train is None:
        raise TaskError(f"task {task.name!r}: train is None; fine-tuning needs training data")
    if task.finetune is None:
        objective = finetuning.make_objective(task.loss, metric.loss, metric.name)
    else:
        objective = finetuning.Objective(task.loss, metric.loss or "own")
    example = splits.val.first(4)
    place = resolve_device(device)
    say("training mode")
    mode = default_mode(place)
    if not all(target.deterministic for target in places) and task.finetune is None:
        mode = _found_mode(module, train, objective, example, place, run)
    with cache.timed("teacher"):
        teacher = finetuning.make_teacher(copy.deepcopy(module), train, mode)
    return Training(module, baselines.state_hash(module), train, example, objective, teacher, mode, template)


def _found_mode(
    module: torch.nn.Module, train: data.Split | data.Stream, objective: finetuning.Objective,
    example: tuple[torch.Tensor, ...], device: str, run: Run,
) -> TrainingMode:  # fmt: skip
    """How to train fastest here: tried on the network at half its width, which is what will be trained."""
    known = run.state.facts.get("mode")
    if known is not None and known["mode"]["device"] == device:
        return TrainingMode(**known["mode"])
    network = module
    groups = pruning.find_groups(module, example)
    if groups.prunable:
        network = pruning.prune(module, example, 0.5, groups=groups).module
    inputs, labels = data.sample(train, FinetuneSettings().batch_size, 0)
    mode, seconds = find_mode(network, inputs, lambda outputs: objective.value(outputs, labels, 0.0), device)
    run.record.append("fact", name="mode", value={"mode": mode, "seconds": seconds})
    return mode


def _profile(
    cache: Cache, training: Training | None, path: Path, calibration: dict[str, np.ndarray], capabilities: Any
) -> Profile:
    groups, robustness = Groups((), ()), {}
    if training is not None:
        groups, robustness = _scan(cache, training)
    order = _int8_order(cache, path, calibration, capabilities)
    return Profile(groups, robustness, order)


def _scan(cache: Cache, training: Training) -> tuple[Groups, dict[str, float]]:
    """Groups, and how well the network stands cutting half of each alone (loss on train examples)."""

    groups = pruning.find_groups(training.module, training.example)

    def compute(_: Path) -> dict[str, Any]:
        inputs, labels = data.sample(training.train, _SCAN, 0)
        losses: dict[str, float] = {}
        for group in groups.prunable:
            cut = pruning.prune(training.module, training.example, {group.name: _SCAN_RATIO}, groups=groups).module
            found = finetuning.predict(cut, inputs, training.mode)
            losses[group.name] = float(training.objective.value(found[0] if len(found) == 1 else found, labels, 0.0))
        return {"losses": losses}

    info = cache.stage("profile", VERSION, {"baseline": training.digest, "train": training.train.digest}, compute).info
    # NaN or null losses sort as the worst.
    losses = {n: (v if v is not None and v == v else float("inf")) for n, v in info["losses"].items()}
    ranked = sorted(losses, key=lambda name: -losses[name])
    last = max(1, len(ranked) - 1)
    return groups, {name: i / last - 0.5 for i, name in enumerate(ranked)}


def _int8_order(cache: Cache, path: Path, calibration: dict[str, np.ndarray], capabilities: Any) -> tuple[int, ...]:
    """Positions of the layers by what int8 costs each alone, worst first; empty where nothing can be quantized."""
    if not quantizing.layers(path):
        return ()
    samples = {name: x[: quantizing.BATCH * 2] for name, x in calibration.items()}

    def compute(_: Path) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            quantizing.collect_ranges(path, samples, "minmax", folder / "ranges.json")
            return {
                "errors": quantizing.layer_errors(path, folder / "ranges.json", "minmax", samples, capabilities, folder)
            }

    inputs = {"baseline": graphs.structure_hash(path), "calibration": _digest(samples), "weights": file_hash(path)}
    errors = cache.stage("sensitivity", VERSION, inputs, compute).info["errors"]
    return tuple(sorted(range(len(errors)), key=lambda i: -errors[i]))


def _digest(samples: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in samples.values())).hexdigest()[:16]

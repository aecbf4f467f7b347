"""Making a task ready to search: data, baseline, identity, training mode. Every slow part is kept in the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from compress.baseline import onnx_baselines, profiling, training_setup
from compress.baseline.baselines import _baseline_candidate, _baseline_model, _Setting, _warn
from compress.baseline.contexts import Context, Say
from compress.measurement import scoring
from compress.metrics import metrics
from compress.onnx_files import graphs
from compress.onnx_files import limits as onnx_files_limits
from compress.onnx_files import parity as onnx_files_parity
from compress.precision import schemes
from compress.precision.quantizer import has_matmul, quantizable_layers
from compress.run_folder.caching import Cache
from compress.run_folder.runs import Run, space_of
from compress.tasks import datasets
from compress.tasks.identities import check_identity, identity
from compress.tasks.splits import Splits
from compress.tasks.tasks import Task
from compress.values.configs import QAT
from compress.values.serialization import from_json, to_json
from targets.probing.probing import probed
from targets.target import Capabilities, Target

_CALIBRATION = 256


def prepare(
    task: Task, run: Run, cache: Cache, places: Sequence[Target], splits: Splits, device: str, say: Say
) -> Context:
    """Everything a search needs before its first trial."""
    metric = metrics.get(task.metric)
    describe = {target.name: target.describe() for target in places}
    path = run.folder / "baseline" / "model.onnx"
    say("probe")
    abilities = _abilities(run, cache, places)
    limits = onnx_files_limits.limits_of(abilities.values())
    setting = _Setting(task, run, cache, tuple(places), describe, splits, metric, path, limits)
    say("baseline")
    module, template = _baseline_model(setting)
    graph = graphs.structure_hash(path)
    new = identity(task, splits, metric, graph)
    check_identity(run.request.task, new, run.folder)
    run.with_request(task=new)
    names = [node.name for node in onnx_files_parity.open_session(path).get_inputs()]
    onnx_baselines.check_inputs(names, splits)
    scorer = scoring.Scorer(cache, run, describe, names)
    baseline = _baseline_candidate(setting, names, module, scorer)
    training = None
    if module is not None and template is not None:
        training = training_setup.make_training(_setup(setting), module, template, device, say)
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
        step=schemes.channel_step(_schemes(setting, abilities), abilities),
        abilities=abilities,
        variants=_variants(setting, abilities, trained=training is not None),
        limits=setting.limits,
        scorer=scorer,
        training=training,
        describe=describe,
    )


def _calibration(setting: _Setting, names: list[str]) -> dict[str, np.ndarray]:
    """Samples to calibrate with: from train where there is one, never from test."""
    if setting.splits.train is not None:
        inputs, _ = datasets.sample(setting.splits.train, _CALIBRATION, setting.run.request.seed)
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


def _schemes(setting: _Setting, abilities: schemes.Abilities) -> tuple[str, ...]:
    return schemes.wanted(setting.run.request.space, [one.precisions for one in abilities.values()])


def _variants(setting: _Setting, abilities: schemes.Abilities, *, trained: bool) -> tuple[schemes.Variant, ...]:
    """The files of every network, without those that it has no layers for; without training, none that need it."""
    found = schemes.variants(_schemes(setting, abilities), abilities)
    count = len(quantizable_layers(setting.path))
    if count < 2:  # of one layer, nothing is mixed
        found = tuple(variant for variant in found if variant.scheme != "mixed")
    if not count:
        found = tuple(variant for variant in found if variant.scheme in ("fp32", "fp16"))
    if not has_matmul(setting.path):
        found = tuple(variant for variant in found if variant.scheme not in ("int8-dynamic", "int4-weights"))
    return tuple(variant for variant in found if trained or variant.scheme != QAT)


def _setup(setting: _Setting) -> training_setup.Setup:
    deterministic = all(target.deterministic for target in setting.places)
    return training_setup.Setup(
        setting.task, setting.run, setting.cache, setting.metric, setting.splits.train, setting.example,
        deterministic, lambda text: _warn(setting.run, text),
    )  # fmt: skip

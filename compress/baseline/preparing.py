"""Making a task ready to search: data, baseline, identity, training mode. Every slow part is kept in the run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from compress.baseline import int8_profiling, onnx_baselines, profiling, training_setup
from compress.baseline.baselines import (
    BaselineNetwork,
    Preparation,
    baseline_candidate,
    counted_in_torch,
    fitted_metric,
    import_network,
    make_baseline,
    warn,
)
from compress.baseline.contexts import Baseline, Calibration, Context, Instruments, Profile, Say, TargetSet, Training
from compress.baseline.steps import IMPORTING, LEARNING, Steps
from compress.measurement import scoring
from compress.measurement.latencies import SEARCHING
from compress.networks.fingerprints import state_hash
from compress.onnx_files import graphs, sessions
from compress.onnx_files import limits as onnx_files_limits
from compress.precision import schemes
from compress.precision.fidelity import close_checker
from compress.precision.quantizer import has_matmul, quantizable_layers
from compress.pruning import grouping
from compress.pruning.groups import Groups
from compress.run_folder.caching import Cache
from compress.run_folder.runs import Run, space_of
from compress.tasks import datasets
from compress.tasks.decoding import task_metric
from compress.tasks.identities import check_identity, identity
from compress.tasks.splits import Splits
from compress.tasks.tasks import Task, known_of_both
from compress.values.configs import QAT
from compress.values.time_limits import UNLIMITED, TimeLimit
from targets.errors import TaskError
from targets.probing.probing import probed
from targets.target import Capabilities, Protocol, Target

if TYPE_CHECKING:
    from torch import Tensor

_CALIBRATION = 256


@dataclass(frozen=True)
class Prepared:
    """A baseline that was measured, of which files can be made, and what it takes to know its network as well."""

    context: Context
    """Without training and profile."""
    preparation: Preparation
    network: BaselineNetwork | None
    """None where the task brings a file."""


def prepare_baseline(
    task: Task, run: Run, cache: Cache, places: Sequence[Target], splits: Splits, say: Say,
    moved: Collection[str] = (), protocol: Protocol = SEARCHING,
) -> Prepared:  # fmt: skip
    """The baseline's file, measured and scored: all that its first candidates take.

    ``protocol``: how candidates are timed.
    ``moved``: targets that are other devices than those the run has measured on; the baseline is measured again there.
    """
    metric = task_metric(task)
    describe = {target.name: target.describe() for target in places}
    path = run.folder / "baseline" / "model.onnx"
    say("probe")
    abilities = _abilities(run, cache, places)
    limits = onnx_files_limits.limits_of(abilities.values())
    preparation = Preparation(task, run, cache, tuple(places), describe, splits, metric, path, limits, frozenset(moved))
    say("baseline")
    network = make_baseline(preparation)
    module = None if network is None else network.module
    graph = graphs.structure_hash(path)
    # Of a file they are the file's; what torch makes of it is our own affair.
    weights = None if module is None else state_hash(module)
    new, old = identity(task, splits, metric, graph, weights), run.request.task
    check_identity(old, new, run.folder)
    run.with_request(task=new if old is None else known_of_both(old, new))
    names = [node.name for node in sessions.open_session(path).get_inputs()]
    onnx_baselines.check_inputs(names, splits)
    scorer = scoring.Scorer(cache, run, describe, names)
    metric = fitted_metric(preparation, scorer)
    preparation = replace(preparation, metric=metric)
    candidate = baseline_candidate(preparation, names, module, scorer)
    sample = {name: array[:1] for name, array in splits.val.arrays(names).items()}
    context = Context(
        task=task,
        run=run,
        cache=cache,
        space=space_of(run),
        val=splits.val,
        test=splits.test,
        targets=TargetSet(
            preparation.places, describe, abilities, limits,
            schemes.channel_step(_schemes(preparation, abilities), abilities),
            _variants(preparation, abilities, trained=False),
        ),
        baseline=Baseline(candidate, path, graph, tuple(names), module),
        profile=Profile(Groups((), ()), ()),
        calibration=_calibration(preparation, names),
        instruments=Instruments(cache, scorer, describe, path, sample, metric, run.request.seed, protocol),
        training=None,
    )  # fmt: skip
    return Prepared(context, preparation, network)


def prepare(
    task: Task, run: Run, cache: Cache, places: Sequence[Target], splits: Splits, device: str, say: Say,
    moved: Collection[str] = (), protocol: Protocol = SEARCHING, threads: int | None = None,
) -> Context:  # fmt: skip
    """Everything a search needs before its first training; see ``prepare_baseline`` and ``prepare_network``."""
    prepared = prepare_baseline(task, run, cache, places, splits, say, moved, protocol)
    return prepare_network(prepared, device, say, threads=threads)


def prepare_network(
    prepared: Prepared, device: str, say: Say, time: TimeLimit = UNLIMITED, *, threads: int | None = None
) -> Context:
    """What pruning, training and choosing layers for int8 take: the network in torch, how it is trained, its profile.

    ``threads``: of a training, at most; None: as many as there are cores.
    A step that does not fit into its part of ``time`` is left out, and the run warned. Raises OutOfTime where the time
    is over altogether.
    """
    context, preparation = prepared.context, prepared.preparation
    steps = Steps(time, lambda text: warn(preparation.run, text))
    network = prepared.network
    if network is None and preparation.task.onnx_path is not None:
        file = preparation.task.onnx_path
        say("import")
        close_checker()  # what it holds is not asked for soon, and importing takes memory
        network = steps.do(
            "bringing the file into torch", "it is quantized, not pruned", IMPORTING,
            lambda: import_network(preparation, file),
        )  # fmt: skip
        if network is not None:
            counted = counted_in_torch(preparation, network.module)
            context = replace(context, baseline=replace(context.baseline, candidate=counted))
    training, groups = None, Groups((), ())
    train = preparation.splits.train
    if network is not None and train is not None:
        made, given, say_training = network, train, say
        found = steps.do(
            "finding out where the network can be cut and how it is trained", "it is quantized, not pruned", LEARNING,
            lambda: _trainable(preparation, made, given, device, say_training, threads),
        )  # fmt: skip
        training, groups = found if found is not None else (None, groups)
    say("sensitivity")
    first, able = context.targets.first, context.targets.abilities[context.targets.first.name]
    mixed = "mixed" in preparation.run.request.space.schemes() and "mixed" in able.precisions
    timed_on = (first, context.instruments.describe[first.name]) if mixed else None
    profile = profiling.make_profile(
        context.cache, training, groups, context.baseline.path, context.calibration.samples, able, timed_on, steps
    )
    variants = _variants(preparation, context.targets.abilities, trained=training is not None)
    return replace(
        context, space=space_of(context.run), training=training, profile=profile,
        targets=replace(context.targets, variants=variants),
    )  # fmt: skip


def _trainable(
    preparation: Preparation,
    network: BaselineNetwork,
    train: datasets.Split | datasets.Stream,
    device: str,
    say: Say,
    threads: int | None,
) -> tuple[Training, Groups]:
    """How a network is trained, and its groups."""
    say("profile")
    groups = grouping.find_groups(network.module, preparation.example)
    training = training_setup.make_training(
        _setup(preparation, train, threads), network.module, network.template, groups, device, say
    )
    return training, groups


def _calibration(preparation: Preparation, names: list[str]) -> Calibration:
    """Samples to calibrate with: from train where there is one, never from test."""
    if preparation.splits.train is not None:
        inputs, _ = datasets.sample(preparation.splits.train, _CALIBRATION, preparation.run.request.seed)
        _check_lengths(preparation, inputs)
    else:
        inputs = preparation.splits.val.first(_CALIBRATION)
    samples = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return Calibration(samples, int8_profiling.digest(samples))


def _check_lengths(preparation: Preparation, inputs: tuple[Tensor, ...]) -> None:
    """Raise TaskError where train examples have other shapes than those of val, which a network is exported with."""
    if preparation.task.onnx_path is not None:
        return
    for place, (x, like) in enumerate(zip(inputs, preparation.splits.val.inputs, strict=False)):
        if x.shape[1:] != like.shape[1:]:
            names = preparation.splits.val.names
            raise TaskError(
                f"input {repr(names[place]) if names else place} is of shape {tuple(x.shape[1:])} in train and "
                f"{tuple(like.shape[1:])} in val, but an exported network takes one shape: let collate (or the "
                "dataset) pad all examples to one length"
            )


def _abilities(run: Run, cache: Cache, places: Sequence[Target]) -> dict[str, Capabilities]:
    """Target -> what it can do: measured once, and the same for the whole run."""
    for target in places:
        known = run.state.facts.abilities
        if target.name not in known:
            with cache.timed("probe"):
                found = probed(target)
            run.record.note("abilities", {**known, target.name: found})
    return {target.name: run.state.facts.abilities[target.name] for target in places}


def _schemes(preparation: Preparation, abilities: schemes.Abilities) -> tuple[str, ...]:
    return schemes.wanted(preparation.run.request.space, [one.precisions for one in abilities.values()])


def _variants(preparation: Preparation, abilities: schemes.Abilities, *, trained: bool) -> tuple[schemes.Variant, ...]:
    """The files of every network, without those that it has no layers for; without training, none that need it."""
    found = schemes.variants(_schemes(preparation, abilities), abilities)
    count = len(quantizable_layers(preparation.path))
    if count < 2:  # of one layer, nothing is mixed
        found = tuple(variant for variant in found if variant.scheme != "mixed")
    if not count:
        found = tuple(variant for variant in found if variant.scheme in ("fp32", "fp16"))
    if not has_matmul(preparation.path):  # LiteRT's convolutions take activations that are quantized meanwhile, too
        found = tuple(v for v in found if v.converted or v.scheme not in ("int8-dynamic", "int4-weights"))
    return tuple(variant for variant in found if trained or variant.scheme != QAT)


def _setup(
    preparation: Preparation, train: datasets.Split | datasets.Stream, threads: int | None
) -> training_setup.Setup:
    deterministic = all(target.deterministic for target in preparation.places)
    return training_setup.Setup(
        preparation.task, preparation.run, preparation.cache, preparation.metric, train, preparation.example,
        deterministic,
        lambda text: warn(preparation.run, text), threads,
    )  # fmt: skip

"""From a config's pruning settings to the smaller network that is trained: cut from what, how wide, which channels.

It is cut from the baseline, without the blocks that ``depth`` drops, or from that after sparsity learning. In several
``steps`` it is cut to widths in between, trained for its share of the epochs, and its channels ranked anew. Channels
are named by their indices in the baseline throughout, so that a candidate can be rebuilt in one cut.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from compress.baseline import profiling
from compress.baseline.contexts import Profile, Say, Training
from compress.pruning import blocks, pruning, widths
from compress.pruning import importance as pruning_importance
from compress.pruning.cutting import positions
from compress.pruning.groups import Group, Groups
from compress.pruning.pruning import Pruned
from compress.run_folder.caching import Cache
from compress.stages.finetuning import Trained, loaded
from compress.stages.sparsifying import sparse_weights
from compress.tasks import datasets
from compress.values.configs import PruneSettings
from targets.documents import file_hash
from targets.errors import SpaceError, TrainingError

VERSION = 3
_TAYLOR_VERSION, _TAYLOR_BATCHES, _TAYLOR_BATCH = 2, 16, 64


@dataclass(frozen=True)
class Origin:
    """A network to cut, with its weights."""

    module: nn.Module
    digest: str
    """Hash of its weights."""
    weights: Path | None
    """The file with them; None for the baseline's own."""
    groups: Groups
    dropped: tuple[str, ...] = ()
    """Blocks that it lacks, in the network's order."""

    def key(self) -> dict[str, Any]:
        """What stands for it in a cache key."""
        return {"baseline": self.digest, **({"dropped": list(self.dropped)} if self.dropped else {})}


Train = Callable[[Origin, Pruned, int], Trained]
"""Trains a network that was cut from an origin for some epochs."""


def make_origin(cache: Cache, training: Training, profile: Profile, settings: PruneSettings) -> Origin:
    """The baseline without the blocks that ``settings`` names, and those that its ``depth`` drops.

    Raises SpaceError for a name that is no removable block.
    """
    names = set(settings.dropped)
    if settings.depth > 0 and training.blocks.removable:
        losses = profiling.block_losses(cache, training)
        names.update(blocks.least_harmful(training.blocks, losses, settings.depth))
    dropped = tuple(block.name for block in training.blocks.named(names)) if names else ()
    return _without(training, profile, Origin(training.module, training.digest, None, Groups((), ()), dropped))


def sparsified(
    cache: Cache, training: Training, profile: Profile, origin: Origin, settings: PruneSettings, say: Say
) -> Origin:
    """The same network after sparsity learning, where the settings ask for it."""
    if not settings.sparsity or not profile.groups.prunable:
        return origin
    say("sparsify")
    weights = sparse_weights(cache, training, profile.groups, settings, say)
    module = loaded(training.module, weights)
    return _without(training, profile, Origin(module, file_hash(weights)[:16], weights, origin.groups, origin.dropped))


def realised_widths(
    cache: Cache, training: Training, profile: Profile, step: int, origin: Origin, settings: PruneSettings
) -> dict[str, int]:
    """Group -> channels left, for the groups that lose some; widths are multiples of ``step``.

    Skew and deltas come on top of any allocation. Where the settings have exact widths, those are meant, whatever the
    step. Raises SpaceError for one that its group cannot have, and for a name that is no prunable group's.
    """
    if settings.widths:
        return _asked_widths(origin, settings.widths)
    shares = _shares(cache, training, profile, origin, settings)
    left: dict[str, int] = {}
    for group in origin.groups.prunable:
        leaning = settings.skew * profile.robustness.get(group.name, 0.0) if settings.skew else 0.0
        shift = leaning + settings.deltas.get(group.name, 0.0)
        ratio = min(widths.MOST_RATIO, max(0.0, shares[group.name] + shift))
        width = widths.realise(group.channels, ratio, group.step(step), group.multiple)
        if width < group.channels:
            left[group.name] = width
    return left


def _asked_widths(origin: Origin, asked: Mapping[str, int]) -> dict[str, int]:
    """``asked``, by the groups' names, as far as they cut anything."""
    left: dict[str, int] = {}
    for name, width in asked.items():
        group = pruning.group_named(origin.groups, name)
        if width > group.channels or width % group.multiple:
            raise SpaceError(
                f"width of {name!r} is {width}: it must be a multiple of {group.multiple} up to {group.channels}"
            )
        if left.setdefault(group.name, width) != width:
            raise SpaceError(
                f"widths of {name!r} and of another layer of the group {group.name!r} differ ({width} and "
                f"{left[group.name]}): they can only be cut together, give one"
            )
    known = {group.name: group.channels for group in origin.groups.prunable}
    return {name: left[name] for name, channels in known.items() if left.get(name, channels) < channels}


def prune_to(cache: Cache, training: Training, origin: Origin, left: Mapping[str, int], importance: str) -> Pruned:
    """``origin`` cut to the given widths; which channels go is decided once and kept."""
    example, groups = training.example, origin.groups

    def compute(_: Path) -> dict[str, Any]:
        by = _importance(cache, training, origin, importance) if left else "l2"
        pruned = pruning.prune(origin.module, example, widths=dict(left), importance=by, groups=groups)
        return {"removed": {name: list(indices) for name, indices in pruned.removed.items()}}

    inputs = {**origin.key(), "widths": dict(left), **({} if importance == "l2" else {"importance": importance})}
    if importance == "taylor":
        inputs |= _taylor_inputs(training)
    removed = cache.stage("prune", VERSION, inputs, compute).info["removed"]
    return pruning.prune(origin.module, example, removed={n: tuple(i) for n, i in removed.items()}, groups=groups)


def cut_in_steps(
    cache: Cache, training: Training, origin: Origin, left: Mapping[str, int], settings: PruneSettings,
    epochs: int, train: Train,
) -> tuple[Origin, Pruned, int]:  # fmt: skip
    """``origin`` cut to ``left``: (what the last cut was made in, the network, epochs left for it).

    Of n cuts each gets an n-th of the epochs, the last also what remains, so that all together are as many as in one
    shot. With less than one epoch for each, only BatchNorm's statistics are taken anew in between.
    """
    plan = _stops(origin.groups, left, settings.steps)
    whole, each = origin.groups, epochs // len(plan)
    gone: dict[str, tuple[int, ...]] = {}
    for stop in plan:
        pruned = prune_to(cache, training, origin, stop, settings.importance)
        gone = composed(whole, gone, pruned.removed)
        if stop is not plan[-1]:
            trained = train(origin, pruned, each)
            groups = narrowed(origin.groups, pruned.removed)
            origin = replace(
                origin, module=trained.module, digest=file_hash(trained.weights)[:16], weights=trained.weights,
                groups=groups,
            )  # fmt: skip
    return origin, replace(pruned, removed=gone), epochs - each * (len(plan) - 1)


def narrowed(groups: Groups, removed: Mapping[str, Sequence[int]]) -> Groups:
    """``groups`` of a network as they sit in it once channels are removed; what stays keeps its order."""
    plan = [(group, tuple(removed.get(group.name, ()))) for group in groups.prunable]
    gone = {place: sorted(found) for place, found in positions(plan).items()}
    left: list[Group] = []
    for group, channels in plan:
        kept = [c for c in range(group.channels) if c not in set(channels)]
        number = {channel: i for i, channel in enumerate(kept)}
        slots = []
        for slot in group.slots:
            out = gone[slot.tensor, slot.dim, slot.grouped]
            absent = set(out)
            at = [(i - bisect.bisect(out, i), number[root]) for i, root in zip(slot.index, slot.root, strict=True)
                  if i not in absent and root in number]  # fmt: skip
            index, root = zip(*at, strict=True)
            slots.append(replace(slot, index=index, root=root))
        left.append(replace(group, channels=len(kept), slots=tuple(slots)))
    return Groups(tuple(left), groups.kept)


def composed(
    whole: Groups, before: Mapping[str, Sequence[int]], now: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    """Channels removed in two cuts, in the numbers of the first network; ``now`` counts those that ``before`` left."""
    found: dict[str, tuple[int, ...]] = {}
    for group in whole.prunable:
        first = tuple(before.get(group.name, ()))
        kept = [c for c in range(group.channels) if c not in set(first)]
        both = (*first, *(kept[i] for i in now.get(group.name, ())))
        if both:
            found[group.name] = tuple(sorted(both))
    return found


def _without(training: Training, profile: Profile, origin: Origin) -> Origin:
    """``origin``, whose module is whole still, without its dropped blocks."""
    if not origin.dropped:
        return replace(origin, groups=profile.groups)
    module = blocks.without_blocks(origin.module, training.blocks.named(origin.dropped))
    return replace(origin, module=module, groups=training.groups_without(profile.groups, origin.dropped))


def _shares(
    cache: Cache, training: Training, profile: Profile, origin: Origin, settings: PruneSettings
) -> dict[str, float]:
    """Group -> share of its channels to remove, before skew and deltas."""
    groups = origin.groups
    if settings.allocation == "global":
        by = _importance(cache, training, origin, settings.importance)
        return pruning_importance.global_ratios(origin.module, groups, settings.ratio, by)
    if settings.allocation == "sensitivity":
        curves = profiling.damages(cache, training, profile.groups)
        # Without a repeat, two groups of the baseline are one: it goes by one of their names.
        channels = {group.name: group.channels for group in groups.prunable if group.name in curves}
        shares = widths.evened({name: curves[name] for name in channels}, channels, settings.ratio)
        return {group.name: shares.get(group.name, settings.ratio) for group in groups.prunable}
    return {group.name: settings.ratio for group in groups.prunable}


def _importance(cache: Cache, training: Training, origin: Origin, name: str) -> pruning_importance.Importance:
    """As ``pruning.prune`` takes it; for ``taylor`` the scores, computed once for an origin."""
    if name != "taylor":
        return cast(Literal["l2", "l1", "bn", "fpgm", "random"], name)

    def compute(_: Path) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)
        size = min(_TAYLOR_BATCH, training.mode.at_once or _TAYLOR_BATCH)
        drawn = itertools.islice(datasets.batches(training.train, size, generator), _TAYLOR_BATCHES)
        pairs = ((inputs, labels) for _, inputs, labels in drawn)
        found = pruning_importance.taylor(
            origin.module, origin.groups, pairs, lambda outputs, labels: training.objective.value(outputs, labels, 0.0)
        )
        if not all(math.isfinite(x) for values in found.values() for x in values):
            raise TrainingError(
                "importance 'taylor': the loss of the baseline on train has no finite gradient; use another importance"
            )
        return {"scores": found}

    inputs = {**_taylor_inputs(training), **origin.key()}
    scores: dict[str, list[float]] = cache.stage("importance", _TAYLOR_VERSION, inputs, compute).info["scores"]
    return scores


def _taylor_inputs(training: Training) -> dict[str, Any]:
    """What the gradients depend on; the weights are the origin's."""
    return {name: value for name, value in training.key.of_losses().items() if name != "baseline"}


def _stops(groups: Groups, left: Mapping[str, int], steps: int) -> list[dict[str, int]]:
    """Widths after each cut: evenly spaced as far as they are possible, the last as asked; each less than before."""
    plan: list[dict[str, int]] = []
    for i in range(1, steps):
        stop = {}
        for group in groups.prunable:
            final = left.get(group.name, group.channels)
            share = (group.channels - final) / group.channels * i / steps
            width = max(final, widths.realise(group.channels, share, 1, group.multiple))
            if width < group.channels:
                stop[group.name] = width
        if stop and stop not in (*plan[-1:], dict(left)):
            plan.append(stop)
    return [*plan, dict(left)]

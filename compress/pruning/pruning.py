"""Structured pruning in one shot: remove the least important channels, get a smaller network that computes the rest.

``prune`` plans a width for every group (``widths.py``), ranks its channels (``importance.py``), cuts all groups at once
in a copy (``cutting.py``), and checks what came out: narrower as planned, fewer parameters, finite outputs of the same
shape.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from compress.networks.calling import input_names, uncalled
from compress.networks.counting import macs_and_parameters
from compress.networks.prepared_modules import ExampleInputs, ready
from compress.networks.running import forward
from compress.pruning.cutting import channels_at, cut, positions
from compress.pruning.grouping import find_groups
from compress.pruning.groups import KEPT_AS_ASKED, Group, Groups, Unsupported
from compress.pruning.importance import ALLOCATIONS, IMPORTANCES, Allocation, Importance, global_ratios, scores
from compress.pruning.widths import check_ratio, check_step, realise
from compress.values.error_lines import one_line
from targets.errors import PruneError, SpaceError

Plan = list[tuple[Group, tuple[int, ...]]]
"""What to remove of each group, in the order of the groups; an empty tuple leaves it whole."""


@dataclass(frozen=True)
class Pruned:
    """A pruned network and what was done to it."""

    module: nn.Module
    """New; shares nothing with the network it was pruned from."""
    macs: int
    """Multiply-accumulates of the new module for one sample."""
    parameters: int
    pruned: list[tuple[str, int, int]]
    """Groups cut: (name of the root layer, channels before, channels after)."""
    kept: list[tuple[str, str]]
    """Groups and layers left alone: (name, why)."""
    removed: dict[str, tuple[int, ...]]
    """Group's name -> the root layer's output channels that were removed, as indices into the original."""


def prune(
    module: nn.Module,
    example_inputs: ExampleInputs,
    ratio: float | Mapping[str, float] = 0.5,
    *,
    step: int = 1,
    keep: Iterable[str] = (),
    widths: Mapping[str, int] | None = None,
    removed: Mapping[str, Sequence[int]] | None = None,
    importance: Importance = "l2",
    allocation: Allocation = "uniform",
    groups: Groups | None = None,
) -> Pruned:
    """Remove channels from a copy of ``module``, which is itself untouched.

    Modes, device, dtype and ``requires_grad`` are kept. Weights that it computes (weight norm, spectral norm, masks)
    become ordinary ones, as they are now.

    ``example_inputs``: a tensor, a tuple of tensors, or a dict of tensors by the names of forward's arguments, batch
    first, on the module's device.
    ``ratio``: share of channels to remove, in [0, 1): of every prunable group, or {layer: ratio}, the others then
    staying whole; a group goes by the name of any layer whose width it is. ``step``: round widths to multiples of it.
    ``keep``: layers, or modules with all their layers, whose widths stay.
    ``widths``: instead of ``ratio``, {layer: channels to leave}. ``removed``: instead of both, {layer: channels to
    remove}, as in ``Pruned.removed``. ``importance``: how channels are ranked, see ``importance.py``; or {group: score
    of each channel}. ``allocation``: "global" takes ``ratio`` of all channels, the least important wherever they are.
    ``groups``: what ``find_groups`` found for this module, to save finding it again.

    Raises SpaceError for a ratio, width, step or name that does not fit, PruneError if the result is not as planned,
    TaskError if the module cannot be run on ``example_inputs`` or copied, or is of a kind that has no layers to cut.
    """
    names = input_names(example_inputs)
    module, inputs = ready(module, example_inputs)
    check_step(step)
    if not isinstance(ratio, Mapping):
        check_ratio(ratio)
    _check_choices(importance, allocation)
    if widths is not None and removed is not None:
        raise SpaceError("widths and removed are both given: give one of them")
    groups = find_groups(module, inputs, keep=keep) if groups is None else _without(groups, keep)
    _check_groups(module, groups)
    if allocation == "global" and not isinstance(ratio, Mapping) and widths is None and removed is None:
        ratio = global_ratios(module, groups, ratio, importance)
    if removed is not None:
        plan = _plan_removed(groups, removed)
    elif widths is not None:
        plan = _plan_widths(module, groups, widths, importance)
    else:
        plan = _plan_ratios(module, groups, ratio, step, importance)
    kept = list(groups.kept) + [(g.name, _unchanged(g, ratio, step, widths, removed)) for g, gone in plan if not gone]
    plan = [(group, gone) for group, gone in plan if gone]
    smaller = _cut_and_checked(module, inputs, plan)
    macs, parameters = macs_and_parameters(smaller, inputs)
    return Pruned(
        module=uncalled(smaller) if names else smaller,
        macs=macs,
        parameters=parameters,
        pruned=[(group.name, group.channels, group.channels - len(gone)) for group, gone in plan],
        kept=kept,
        removed={group.name: gone for group, gone in plan},
    )


def group_named(groups: Groups, name: str) -> Group:
    """The prunable group of that name, or the first whose width is layer ``name``'s.

    Raises SpaceError with why that layer cannot be pruned, or with close names.
    """
    for group in groups.prunable:
        if name == group.name:
            return group
    for group in groups.prunable:
        if name in group.owners():
            return group
    for kept, why in groups.kept:
        if name == kept:
            raise SpaceError(f"{name!r} cannot be pruned: {why}")
    known = [owner for group in groups.prunable for owner in group.owners()]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = ", ".join(map(repr, close or [group.name for group in groups.prunable[:5]])) or "none: nothing can be pruned"
    raise SpaceError(f"{name!r} is no layer that can be pruned; {'close ones' if close else 'those are'}: {hint}")


def _check_choices(importance: Importance, allocation: Allocation) -> None:
    """Raise SpaceError for a way of ranking or of allocating that is not known."""
    if isinstance(importance, str) and importance not in IMPORTANCES:
        raise SpaceError(f"importance {importance!r} is not known: use {', '.join(map(repr, IMPORTANCES))}")
    if allocation not in ALLOCATIONS:
        raise SpaceError(f"allocation {allocation!r} is not known: use {' or '.join(map(repr, ALLOCATIONS))}")


def _plan_ratios(
    module: nn.Module, groups: Groups, ratio: float | Mapping[str, float], step: int, importance: Importance
) -> Plan:
    if isinstance(ratio, Mapping):
        ratios = _by_group(groups, {name: check_ratio(r, name) for name, r in ratio.items()}, "ratio")
    else:
        ratios = {group.name: check_ratio(ratio) for group in groups.prunable}
    leave = {
        group.name: realise(group.channels, ratios.get(group.name, 0.0), group.step(step), group.multiple)
        for group in groups.prunable
    }
    return [(group, _least(module, group, leave[group.name], importance)) for group in groups.prunable]


def _plan_widths(module: nn.Module, groups: Groups, widths: Mapping[str, int], importance: Importance) -> Plan:
    leave = _by_group(groups, widths, "width")
    for group in groups.prunable:
        n = leave.setdefault(group.name, group.channels)
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= group.channels or n % group.multiple:
            raise SpaceError(
                f"width of {group.name!r} is {n!r}: it must be a multiple of {group.multiple} "
                f"from {group.multiple} to {group.channels}"
            )
    return [(group, _least(module, group, leave[group.name], importance)) for group in groups.prunable]


def _plan_removed(groups: Groups, removed: Mapping[str, Sequence[int]]) -> Plan:
    gone = _by_group(groups, {name: tuple(sorted(set(channels))) for name, channels in removed.items()}, "removal")
    plan: Plan = []
    for group in groups.prunable:
        channels = gone.get(group.name, ())
        lost = {sum(channel in block for channel in channels) for block in group.blocks()}
        if any(not 0 <= c < group.channels for c in channels) or len(lost) != 1 or len(channels) == group.channels:
            raise SpaceError(
                f"removed of {group.name!r} does not fit its {group.channels} channels: give indices below that, "
                f"not all of them, and equally many from each of {group.multiple} blocks"
            )
        plan.append((group, channels))
    return plan


def _by_group(groups: Groups, asked: Mapping[str, Any], what: str) -> dict[str, Any]:
    """What is ``asked``, by the group's name; raises SpaceError for unknown names and for two values for one group."""
    found: dict[str, Any] = {}
    for name, value in asked.items():
        group = group_named(groups, name)
        if found.setdefault(group.name, value) != value:
            raise SpaceError(
                f"{name!r} and another layer of the group {group.name!r} are given different values as {what} "
                f"({value} and {found[group.name]}): they can only be cut together, give one"
            )
    return found


def _least(module: nn.Module, group: Group, leave: int, importance: Importance) -> tuple[int, ...]:
    """The least important channels, equally many of each block, so that ``leave`` are left; ascending."""
    if leave == group.channels:
        return ()
    ranks = scores(module, group, importance)
    each = (group.channels - leave) // group.multiple
    return tuple(sorted(c for block in group.blocks() for c in sorted(block, key=lambda c: (ranks[c], c))[:each]))


def _cut_and_checked(module: nn.Module, inputs: tuple[Tensor, ...], plan: Plan) -> nn.Module:
    """A pruned copy. Raises PruneError if it is not as planned."""
    try:
        smaller = copy.deepcopy(module)
        cut(smaller, plan)
    except Exception as error:
        raise PruneError(
            f"the network could not be cut ({one_line(error, kind=True)}): "
            "its groups must be found for this very module"
        ) from error
    if not plan:
        return smaller
    for place, gone in positions(plan).items():
        if channels_at(smaller, place) != channels_at(module, place) - len(gone):
            raise PruneError(f"{place[0]!r} has not lost the planned {len(gone)} channels after pruning")
    before, after = (sum(p.numel() for p in m.parameters()) for m in (module, smaller))
    if after >= before:
        raise PruneError(f"the pruned network has {after} parameters, not fewer than the {before} it had")
    reference = forward(module, inputs)
    names = ", ".join(group.name for group, _ in plan[:3]) + (", ..." if len(plan) > 3 else "")
    try:
        outputs = forward(smaller, inputs)
    except Exception as error:
        raise PruneError(
            f"the network does not run with {names} cut ({one_line(error, kind=True)}); keep some of them"
        ) from error
    if [o.shape for o in outputs] != [r.shape for r in reference]:
        raise PruneError(f"the outputs' shapes changed with {names} cut; keep some of them")
    if any(bool(r.isfinite().all()) and not bool(o.isfinite().all()) for o, r in zip(outputs, reference, strict=True)):
        raise PruneError(f"the outputs are not finite with {names} cut; keep some of them")
    return smaller


def _without(groups: Groups, keep: Iterable[str]) -> Groups:
    """``groups`` without those that ``keep`` names, which are kept with that reason."""
    names = (keep,) if isinstance(keep, str) else tuple(keep)
    if not names:
        return groups

    def asked(group: Group) -> bool:
        return any(owner == n or owner.startswith(n + ".") for owner in group.owners() for n in names)

    kept = tuple((group.name, KEPT_AS_ASKED) for group in groups.prunable if asked(group))
    return Groups(tuple(group for group in groups.prunable if not asked(group)), groups.kept + kept)


def _check_groups(module: nn.Module, groups: Groups) -> None:
    """Raises SpaceError where ``groups`` were found for a network that is not this one."""
    for group in groups.prunable:
        for slot in group.slots:
            try:
                fits = max(slot.index) < channels_at(module, (slot.tensor, slot.dim, slot.grouped))
            except (Unsupported, AttributeError, IndexError):
                fits = False
            if not fits:
                raise SpaceError(
                    f"the group {group.name!r} does not fit {slot.layer!r}: find groups for this very module"
                )


def _unchanged(
    group: Group,
    ratio: float | Mapping[str, float],
    step: int,
    widths: Mapping[str, int] | None,
    removed: Mapping[str, Sequence[int]] | None,
) -> str:
    """Why a prunable group was not cut after all."""
    if removed is not None or widths is not None:
        return f"all {group.channels} channels were asked for"
    asked = ratio if not isinstance(ratio, Mapping) else next((ratio[n] for n in group.owners() if n in ratio), 0.0)
    if asked == 0:
        return "pruning ratio 0"
    unit = math.lcm(group.step(step), group.multiple)
    return f"a ratio of {asked:g} in steps of {unit} leaves all {group.channels} channels"

"""Which of the groups that a run shows may be cut: the permutation check tests each alone, then all of them together.

A group that fails the check as it is gets further chances: with numbers in the user's modules that change with it
(``dependent_numbers.py``), side by side with others of one size that must stay equally wide, and divided where the
network divides its channels in unequal parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from compress.pruning.dependent_numbers import possible_knobs
from compress.pruning.groups import Group, Slot, owner_of
from compress.pruning.joint_heads import joint_groups, joint_knobs
from compress.pruning.permutation_check import UNEQUAL, CheckedGroup, PermutationCheck
from compress.pruning.repeated_groups import likeness, transferred
from compress.tracing.channels import OUTPUT

_MOST_PARTS, _MOST_MIRRORED = 4, 16
"""Groups that are tried as one, of those that lie side by side and of those that are made of one another."""


def select_prunable(
    module: nn.Module,
    check: PermutationCheck,
    groups: Sequence[Group],
    parts: Mapping[str, Sequence[Sequence[int]]],
) -> tuple[list[Group], dict[str, str]]:
    """Those of ``groups`` that may be cut, all of them together, and {name: why not} of the others.

    ``parts``: {group's name: its channels, part by part} where the network divides them in unequal parts; such a group
    is tried part by part first. If groups pass alone but not together, as many are taken, in order, as go together.
    """
    passed: list[Group] = []
    kept: dict[str, str] = {}
    failed: list[Group] = []
    judged: dict[str, tuple[Group, CheckedGroup]] = {}
    for group in groups:
        divided = parts.get(group.name, ())
        tried = [_checked(module, check, part) for part in _divided(group, divided)]
        if tried and all(found.reason is None for found in tried):
            passed += [found.group for found in tried]
            continue
        found = _judged(module, check, group, likeness(module, group, divided), judged)
        if found.reason is None:
            passed.append(found.group)
        else:
            failed.append(group)
            kept[group.name] = found.reason
    for joint, whole in joint_groups(failed):
        found = _joint_checked(module, check, joint, whole)
        if found.reason is None:
            passed.append(found.group)
            failed = [group for group in failed if group not in whole]
            for group in whole:
                kept.pop(group.name)
        elif found.reason.startswith(UNEQUAL):
            kept[whole[0].name] = found.reason
    for several in (*_side_by_side(failed), *_mirrored(failed)):
        if any(part.name not in kept for part in several):
            continue  # it has gone with others
        found = _checked(module, check, joined(several))
        if found.reason is None:
            passed.append(found.group)
        for part in several:
            if found.reason is None:
                kept.pop(part.name)
            elif found.reason.startswith(UNEQUAL):
                kept[part.name] = found.reason
    return _together(check, passed, kept), kept


def _together(check: PermutationCheck, passed: list[Group], kept: dict[str, str]) -> list[Group]:
    """As many of the groups that ``passed``, in order, as go together; why others do not is noted in ``kept``."""
    if not passed or check.why_not(passed, fully=True) is None:
        return passed
    together: list[Group] = []
    for group in passed:
        reason = check.why_not([*together, group], fully=True)
        if reason is None:
            together.append(group)
            continue
        alone = check.why_not([group], fully=True) if together else reason
        kept[group.name] = alone or f"not together with the groups before it: {reason}"
    return together


def _judged(
    module: nn.Module, check: PermutationCheck, group: Group, alike: str, judged: dict[str, tuple[Group, CheckedGroup]]
) -> CheckedGroup:
    """The result of the check for ``group``, or that of one that is ``alike``, carried over; noted in ``judged``."""
    if alike in judged:
        first, found = judged[alike]
        if found.reason is not None:
            return CheckedGroup(group, found.reason)
        other = transferred(found.group, first, group)
        if other is not None:
            return CheckedGroup(other, None)
    found = _checked(module, check, group)
    judged.setdefault(alike, (group, found))
    return found


def _joint_checked(module: nn.Module, check: PermutationCheck, joint: Group, whole: Sequence[Group]) -> CheckedGroup:
    """The result of the check for a joint group, with the numbers that it passes with; ``whole``: what it is of."""
    best: str | None = None
    for knobs in joint_knobs(module, joint, whole):
        reason = check.why_not_joined(replace(joint, knobs=knobs), whole)
        if reason is None:
            return CheckedGroup(replace(joint, knobs=knobs), None)
        if best is None or reason.startswith(UNEQUAL):  # it ran: nearer to the truth than what did not
            best = reason
    return CheckedGroup(joint, best)


def _checked(module: nn.Module, check: PermutationCheck, group: Group) -> CheckedGroup:
    """The result of the check for ``group``: as it is, else with numbers in the user's modules that change with it."""
    first = best = check.checked(group)
    if first.reason is None or first.reason == OUTPUT:
        return first
    for knobs in possible_knobs(module, group):
        found = check.checked(replace(group, knobs=knobs))
        if found.reason is None:
            return found
        if found.reason.startswith(UNEQUAL):  # it ran: nearer to the truth than what did not
            best = found
    return CheckedGroup(group, best.reason)


def _side_by_side(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups of one size around one module, to be tried as blocks of one: parts that must stay equally wide."""
    by_place: dict[tuple[str, int], list[Group]] = {}
    for group in groups:
        if group.multiple == 1:
            root = group.slots[0]
            around = root.layer if ".in_proj_" in root.tensor else group.members[0].rpartition(".")[0]
            by_place.setdefault((around, group.channels), []).append(group)
    return [parts for parts in by_place.values() if 1 < len(parts) <= _MOST_PARTS]


def _mirrored(groups: Sequence[Group]) -> list[list[Group]]:
    """A group with those of its size that are made of it, layer for layer, to be tried as blocks of one.

    Code that reads a width off what goes into a layer and uses it for what comes out, as ``conv(x).reshape(B, C, -1)``
    with the C of x does, needs both to stay equally wide.
    """
    found = []
    for group in groups:
        along = {slot.tensor: slot.dim for slot in group.slots}
        made = [
            one
            for one in groups
            if one is not group
            and (one.channels, one.multiple, group.multiple) == (group.channels, 1, 1)
            and along.get(one.slots[0].tensor, one.slots[0].dim) != one.slots[0].dim
        ]
        if 0 < len(made) < _MOST_MIRRORED:
            found.append([group, *made])
    return found


def _divided(group: Group, parts: Sequence[Sequence[int]]) -> list[Group]:
    """One group for each part of its channels."""
    found = []
    for number, channels in enumerate(parts, start=1):
        place = {channel: k for k, channel in enumerate(channels)}
        slots = []
        for slot in group.slots:
            at = [(i, place[root]) for i, root in zip(slot.index, slot.root, strict=True) if root in place]
            if at:
                index, root = zip(*at, strict=True)
                slots.append(replace(slot, index=index, root=root))
        members = tuple(dict.fromkeys(owner_of(slot) for slot in slots))
        name = f"{group.name}:part{number if number > 1 else ''}"
        found.append(replace(group, name=name, channels=len(channels), members=members, slots=tuple(slots)))
    return found


def joined(groups: Sequence[Group]) -> Group:
    """One group that has ``groups``, which must have equally many channels each, as its blocks."""
    slots: dict[tuple[str, int, bool], list[tuple[int, int]]] = {}
    first: dict[tuple[str, int, bool], Slot] = {}
    size = groups[0].channels
    for k, group in enumerate(groups):
        for slot in group.slots:
            key = (slot.tensor, slot.dim, slot.grouped)
            first.setdefault(key, slot)
            moved = ((i, root + k * size) for i, root in zip(slot.index, slot.root, strict=True))
            slots.setdefault(key, []).extend(moved)
    merged = tuple(
        replace(first[key], index=tuple(i for i, _ in sorted(at)), root=tuple(r for _, r in sorted(at)))
        for key, at in slots.items()
    )
    members = tuple(dict.fromkeys(m for group in groups for m in group.members))
    return replace(
        groups[0],
        channels=size * len(groups),
        multiple=len(groups),
        members=members,
        slots=merged,
        unit=min(group.unit for group in groups),
        mixed=any(group.mixed for group in groups),
    )

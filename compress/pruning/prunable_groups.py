"""Which of the groups that a run shows may be cut: each is put to the gate, then all of them together.

A group that the gate refuses as it is gets further chances: with numbers of the user's that change with it
(``knobs.py``), side by side with others of one size that must stay equally wide, and divided where the network divides
its channels in unequal parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from compress.pruning.dependent_numbers import candidates as knob_candidates
from compress.pruning.groups import Group, Slot, owner_of
from compress.pruning.permutation_check import UNEQUAL, Gate, Verdict
from compress.tracing.channels import OUTPUT

_MOST_PARTS = 4


def judge(
    module: nn.Module, gate: Gate, candidates: Sequence[Group], parts: Mapping[str, Sequence[Sequence[int]]]
) -> tuple[list[Group], dict[str, str]]:
    """One by one, then all at once; if only that fails, as many as go together, in order."""
    passed: list[Group] = []
    kept: dict[str, str] = {}
    failed: list[Group] = []
    for group in candidates:
        verdicts = [_verdict(module, gate, part) for part in _divided(group, parts.get(group.name, ()))]
        if verdicts and all(verdict.reason is None for verdict in verdicts):
            passed += [verdict.group for verdict in verdicts]
            continue
        verdict = _verdict(module, gate, group)
        if verdict.reason is None:
            passed.append(verdict.group)
        else:
            failed.append(group)
            kept[group.name] = verdict.reason
    for several in _side_by_side(failed):
        verdict = _verdict(module, gate, joined(several))
        if verdict.reason is None:
            passed.append(verdict.group)
        for part in several:
            if verdict.reason is None:
                kept.pop(part.name)
            elif verdict.reason.startswith(UNEQUAL):
                kept[part.name] = verdict.reason
    if len(passed) < 2 or gate.refusal(passed) is None:
        return passed, kept
    together: list[Group] = []
    for group in passed:
        reason = gate.refusal([*together, group])
        if reason is None:
            together.append(group)
        else:
            kept[group.name] = f"not together with the groups before it: {reason}"
    return together, kept


def _verdict(module: nn.Module, gate: Gate, group: Group) -> Verdict:
    """The gate's word on ``group``: as it is, else with numbers of the user's modules that change with it."""
    first = best = gate.judge(group)
    if first.reason is None or first.reason == OUTPUT:
        return first
    for knobs in knob_candidates(module, group):
        verdict = gate.judge(replace(group, knobs=knobs))
        if verdict.reason is None:
            return verdict
        if verdict.reason.startswith(UNEQUAL):  # it ran: nearer to the truth than what did not
            best = verdict
    return Verdict(group, best.reason)


def _side_by_side(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups of one size around one module, to be tried as blocks of one: parts that must stay equally wide."""
    by_place: dict[tuple[str, int], list[Group]] = {}
    for group in groups:
        if group.multiple == 1:
            root = group.slots[0]
            around = root.layer if ".in_proj_" in root.tensor else group.members[0].rpartition(".")[0]
            by_place.setdefault((around, group.channels), []).append(group)
    return [parts for parts in by_place.values() if 1 < len(parts) <= _MOST_PARTS]


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
    """One group whose blocks are ``groups``, which are of one size."""
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

"""A candidate as a torch module again: the baseline cut as the candidate was, with its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from compress.baseline.contexts import Context, Training
from compress.pruning import blocks, pruning
from compress.pruning.groups import Groups
from compress.run_folder.runs import Run
from compress.stages import int8_training
from compress.values.candidates import Candidate
from compress.values.serialization import from_json
from targets.documents import parse_json, read_text
from targets.errors import RunError, SpaceError


def rebuilt(
    training: Training, groups: Groups, dropped: Sequence[str], removed: Mapping[str, Sequence[int]]
) -> nn.Module:
    """The module of a candidate, with the baseline's weights: blocks dropped, channels removed."""
    module = (
        blocks.without_blocks(training.module, training.blocks.named(dropped))
        if dropped
        else copy.deepcopy(training.module)
    )
    if not removed:
        return module
    left = blocks.remaining(groups, module) if dropped else groups
    return pruning.prune(module, training.example, removed=removed, groups=left).module


def removed_channels(run: Run, candidate: Candidate) -> dict[str, tuple[int, ...]]:
    """Which channels of which group a candidate lost."""
    path = run.candidate_folder(candidate.id) / "candidate.json"
    if not path.exists():
        return {}
    try:
        return from_json(dict[str, tuple[int, ...]], parse_json(read_text(path))["removed"])
    except (OSError, ValueError, KeyError, TypeError, SpaceError):
        raise RunError(f"{str(path)!r} is damaged: what was cut of {candidate.id} cannot be read") from None


def dropped_blocks(candidate: Candidate) -> tuple[str, ...]:
    """Which residual blocks a candidate lacks."""
    return tuple(candidate.config.get("dropped", ()))


def module_maker(context: Context) -> Callable[[Candidate], nn.Module] | None:
    """What makes a candidate's torch module, for ``RunCandidate.module``; None where torch has no model."""
    training = context.training
    if training is None:
        return None

    def make(candidate: Candidate) -> nn.Module:
        floats = context.run.candidate_folder(candidate.id) / int8_training.FLOATS
        if floats.exists():
            return int8_training.float_network(floats, training.example)
        removed, dropped = removed_channels(context.run, candidate), dropped_blocks(candidate)
        module = rebuilt(training, context.profile.groups, dropped, removed)
        weights = context.run.candidate_folder(candidate.id) / "weights.pt"
        if weights.exists():
            module.load_state_dict(torch.load(weights, weights_only=True))
        return module.eval()

    return make

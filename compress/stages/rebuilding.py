"""A candidate as a torch module again: the baseline cut as the candidate was, with its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from compress.baseline.contexts import Context, Training
from compress.networks.calling import uncalled
from compress.networks.weights_files import read_weights
from compress.pruning import blocks, pruning
from compress.pruning.groups import Groups
from compress.run_folder.file_hashes import known_hash
from compress.run_folder.restoring import find_in_cache
from compress.run_folder.runs import Run
from compress.stages import int8_training
from compress.values.candidates import Candidate
from compress.values.configs import QAT
from compress.values.error_lines import one_line
from targets.documents import parse_json, read_text
from targets.errors import QuantizeError, RequestError, RunError


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
    left = training.groups_without(groups, dropped) if dropped else groups
    return pruning.prune(module, training.example, removed=removed, groups=left).module


def module_maker(context: Context) -> Callable[[Candidate], nn.Module] | None:
    """What makes a candidate's torch module, for ``RunCandidate.module``; None where torch has no model.

    It raises RequestError for a candidate whose weights ``--keep front`` has removed, RunError where its files are
    damaged: never is a network given that has other weights than the candidate.
    """
    training = context.training
    if training is None:
        return None if context.baseline.module is None else partial(_untouched, context, context.baseline.module)

    def make(candidate: Candidate) -> nn.Module:
        if candidate.id == context.baseline.candidate.id:
            return copy.deepcopy(uncalled(training.module)).eval()
        document = _document(context.run, candidate)
        if candidate.config["precision"]["scheme"] == QAT:
            floats = _weights(context.run, candidate, document, int8_training.FLOATS)
            try:
                return int8_training.float_network(floats, training.example)
            except (QuantizeError, RequestError) as error:
                raise RunError(_damaged(floats, error)) from None
        removed = {name: tuple(indices) for name, indices in document["removed"].items()}
        module = rebuilt(training, context.profile.groups, candidate.config.get("dropped", ()), removed)
        if _has_own_weights(candidate, document):
            path = _weights(context.run, candidate, document, "weights.pt")
            try:
                module.load_state_dict(read_weights(path))
            except (OSError, ValueError, RuntimeError) as error:
                raise RunError(_damaged(path, error)) from None
        return uncalled(module).eval()

    return make


def _untouched(context: Context, module: nn.Module, candidate: Candidate) -> nn.Module:
    """The module of a candidate that is the baseline's; others take what this call had no time to find out."""
    if candidate.id != context.baseline.candidate.id:
        document = _document(context.run, candidate)
        if document["removed"] or _has_own_weights(candidate, document):
            raise RequestError(
                f"{candidate.id}: the time was over before it was known where the network can be cut; search with more"
            )
    return copy.deepcopy(uncalled(module)).eval()


def _document(run: Run, candidate: Candidate) -> dict[str, Any]:
    """``candidate.json``, which says what was removed; raises RunError where it cannot be read."""
    path = run.candidate_folder(candidate.id) / "candidate.json"
    try:
        found = parse_json(read_text(path))
        if isinstance(found["removed"], dict):
            return dict(found)
        error: Exception = ValueError("'removed' is no table")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as caught:
        error = caught
    raise RunError(_damaged(path, error))


def _has_own_weights(candidate: Candidate, document: Mapping[str, Any]) -> bool:
    """Whether a candidate was trained, cut or thinned: all others have the baseline's weights and no file of them."""
    if "weights" in document:
        return document["weights"] is not None
    config = candidate.config
    trained = config.get("finetune", {}).get("epochs", 0) or config["prune"].get("sparsity", 0)
    return bool(trained or config.get("widths") or config.get("dropped"))


def _weights(run: Run, candidate: Candidate, document: Mapping[str, Any], name: str) -> Path:
    """The file with a candidate's weights, its copy in the cache where it is damaged."""
    path, wanted = run.candidate_folder(candidate.id) / name, document.get("weights")
    if wanted in (None, known_hash(path)) and path.is_file():
        return path
    kept = find_in_cache(run.folder / "cache", wanted or "", path.suffix)
    if kept is not None:
        return kept
    if path.is_file():
        raise RunError(_damaged(path, ValueError("its SHA-256 is not that of the weights that were trained")))
    raise RequestError(
        f"{candidate.id}: its weights are gone ({path.name} was removed, as --keep front does); choose a candidate of "
        "the front, or search with --keep all"
    )


def _damaged(path: Path, error: Exception) -> str:
    return f"{str(path)!r} is damaged ({one_line(error)}); choose another candidate"

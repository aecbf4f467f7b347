"""One trial: a config becomes candidates, or is turned away before it is trained.

prune -> export -> latency gate -> short training -> full training -> quantize -> measure -> score. One training yields
a candidate in every precision; every stage's result is cached under what determines it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from compress.baseline.contexts import Context, Say, Training
from compress.onnx_files import exporting, parity
from compress.pruning.pruning import Pruned
from compress.stages import pruning
from compress.stages.candidates import Source, make_candidates
from compress.stages.finetuning import _as_earned, _shortened, _trained
from compress.stages.latency_gate import Gated, gate
from compress.stages.quantizing import make_files
from compress.values.candidates import Candidate
from compress.values.configs import Config
from compress.values.constraints import Constraint
from compress.values.serialization import to_json
from targets.documents import file_hash
from targets.errors import ParityError


@dataclass(frozen=True)
class Finished:
    """A config's candidates, one for every precision, and precisions that failed: (scheme, cause)."""

    candidates: tuple[Candidate, ...]
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Network:
    """A trained network, and the config as it came about: fewer epochs where it was hopeless after a few."""

    source: Source
    config: Config


def evaluate(
    context: Context, number: int, config: Config, constraints: tuple[Constraint, ...], say: Say
) -> Gated | Finished:
    """Run trial ``number``; raises StageError where a stage fails. What is already cached is not computed again."""
    if context.training is None:
        source = Source(context.baseline_path, None, context.baseline.macs, context.baseline.parameters, {}, {}, None)
    else:
        made = _network(context, context.training, config, constraints, say)
        if isinstance(made, Gated):
            return made
        source, config = made.source, made.config
    say("quantize")
    files, skipped = make_files(context, source.path, config, say)
    if source.weights is None and config.finetune.epochs == 0:
        # In float that is the baseline itself.
        files = {variant: path for variant, path in files.items() if variant.scheme != "fp32"}
    say("measure")
    return Finished(tuple(make_candidates(context, number, config, source, files)), tuple(skipped))


def _network(
    context: Context, training: Training, config: Config, constraints: tuple[Constraint, ...], say: Say
) -> _Network | Gated:
    """Prune, export, pass the gate, fine-tune, and put the trained weights into the exported graph."""
    say("prune")
    settings = config.prune
    origin = pruning.make_origin(context, training, settings)
    if settings.allocation == "global":  # the widths depend on the weights
        origin = pruning.sparsified(context, training, origin, settings, say)
    left = pruning.realised_widths(context, training, origin, settings)
    # What a network costs does not depend on which channels it keeps.
    cut = pruning.prune_to(context, training, origin, left, settings.importance)
    say("export")
    shape = _shape(context, origin, left)
    template = _template(context, training, cut, shape)
    say("gate")
    gated = gate(context, training, cut, template, left, constraints, origin.dropped)
    if gated is not None:
        return gated
    if settings.allocation != "global":
        origin = pruning.sparsified(context, training, origin, settings, say)
    if config.finetune.epochs and config.finetune.distill_weight:
        say("teacher")
        training.teacher.prepare()
    say("finetune")

    def train(start: pruning.Origin, pruned: Pruned, epochs: int, after: Path | None = None) -> Path:
        part = replace(config.finetune, epochs=epochs, short_share=0.0)
        return _trained(context, training, start, pruned, replace(config, finetune=part), say, after)

    start, pruned, epochs = pruning.cut_in_steps(
        context, training, origin, left, settings, config.finetune.epochs, train
    )
    weights = origin.weights
    if left or origin.dropped or config.finetune.epochs:
        last = replace(config.finetune, epochs=epochs)
        weights, saved = _as_earned(
            context, training, pruned.module, last, constraints, say, partial(train, start, pruned)
        )
        if saved:
            config = _shortened(config, saved)
    say("export")
    path = _bound(context, training, pruned, template, shape, weights)
    removed = {name: list(indices) for name, indices in pruned.removed.items()}
    source = Source(
        path, weights, pruned.macs, pruned.parameters, removed, left, pruned.module, dropped=list(origin.dropped)
    )
    return _Network(source, config)


def _shape(context: Context, origin: pruning.Origin, left: Mapping[str, int]) -> dict[str, Any]:
    """What determines a pruned network's graph: part of the keys of what is exported."""
    dropped = {"dropped": list(origin.dropped)} if origin.dropped else {}
    return {"graph": context.baseline_structure, "widths": dict(left), "limits": to_json(context.limits), **dropped}


def _template(context: Context, training: Training, pruned: Pruned, shape: Mapping[str, Any]) -> onnx.ModelProto:
    """The pruned network's raw graph: exported once for its widths and blocks."""
    if not shape["widths"] and "dropped" not in shape:
        return training.template

    def compute(folder: Path) -> dict[str, Any]:
        onnx.save(exporting.trace_graph(pruned.module, training.example, context.limits), folder / "template.onnx")
        return {}

    return onnx.load(context.cache.stage("export", exporting.VERSION, shape, compute).folder / "template.onnx")


def _bound(
    context: Context, training: Training, pruned: Pruned, template: onnx.ModelProto, shape: Mapping[str, Any],
    weights: Path | None,
) -> Path:  # fmt: skip
    """The float ONNX file of the trained network: its weights swapped into the template, or exported anew."""

    def compute(folder: Path) -> dict[str, Any]:
        path = folder / "model.onnx"
        example = context.val.first(8)
        onnx.save(exporting.bind(template, pruned.module.state_dict(), context.limits), path)
        try:
            parity.check_parity(path, pruned.module, example)
            return {"traced": False}
        except ParityError as error:
            print(f"exporting anew: {error}", file=sys.stderr)
        traced = exporting.trace_graph(pruned.module, example, context.limits)
        onnx.save(exporting.bind(traced, pruned.module.state_dict(), context.limits), path)
        parity.check_parity(path, pruned.module, example)
        return {"traced": True}

    digest = file_hash(weights)[:16] if weights else training.digest
    inputs = {**shape, "weights": digest}
    return context.cache.stage("export", exporting.VERSION, inputs, compute).folder / "model.onnx"

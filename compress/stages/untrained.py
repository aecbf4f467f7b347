"""The stage that cuts and exports a network before it is trained, and writes files of it to be measured.

What a network costs does not depend on what it learns, so these files say it: in float, and in int8 with provisional
ranges, since a network that only int8 can save must not be thrown away.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from compress.baseline.contexts import Context, Say, Training
from compress.onnx_files import exporting, limits
from compress.precision import calibration_samples, converting, quantizer, ranges, stored_weights
from compress.precision.schemes import converts
from compress.pruning.pruning import Pruned
from compress.stages import pruning
from compress.stages.exporting import Shape, make_template
from compress.values.configs import OPERATORS, QAT, STORED, PruneSettings
from compress.values.serialization import to_json
from targets.errors import QuantizeError

VERSION = 3


@dataclass(frozen=True)
class Untrained:
    """A network that was cut out of the baseline, with its graph."""

    origin: pruning.Origin
    """What it was cut from."""
    shape: Shape
    """With the widths of the groups that are cut, and the blocks that it lacks."""
    pruned: Pruned
    template: onnx.ModelProto


def make_untrained(context: Context, training: Training, settings: PruneSettings, say: Say) -> Untrained:
    """The network that ``settings`` mean, cut and exported; its channels are ranked in the baseline."""
    cache, profile = context.cache, context.profile
    say("prune")
    origin = pruning.make_origin(cache, training, profile, settings)
    if settings.allocation == "global":  # the widths depend on the weights
        origin = pruning.sparsified(cache, training, profile, origin, settings, say)
    left = pruning.realised_widths(cache, training, profile, context.targets.step, origin, settings)
    cut = pruning.prune_to(cache, training, origin, left, settings.importance)
    say("export")
    shape = Shape(context.baseline.structure, left, origin.dropped, context.targets.limits)
    return Untrained(origin, shape, cut, make_template(cache, training, origin.module, cut, shape))


def provisional_files(
    context: Context, training: Training, network: Untrained, operators: str = OPERATORS[0]
) -> dict[Path, tuple[str, ...]]:
    """Files of the untrained network, in the precisions that decide about its cost, and who runs them.

    They are called after their precision: ``fp32.onnx``, ``int8.onnx``.
    """
    made_here = [variant for variant in context.targets.variants if not variant.converted]
    converted = [v for v in context.targets.variants if v.converted and v.scheme in ("fp32", "int8", *STORED)]
    plain = [variant for variant in made_here if variant.scheme == "int8"]
    # Trained in int8, a network costs what it costs quantized.
    int8 = plain or [variant for variant in made_here if variant.scheme == QAT]
    stored = [variant for variant in made_here if variant.scheme in STORED]

    def compute(folder: Path) -> dict[str, Any]:
        path, found = folder / "fp32.onnx", folder / "ranges.json"
        onnx.save(exporting.bind(network.template, network.pruned.module.state_dict(), context.targets.limits), path)
        few = {name: x[: calibration_samples.BATCH] for name, x in context.calibration.samples.items()}
        if int8 and quantizer.quantizable_layers(path):
            ranges.collect_ranges(path, few, "minmax", found)
            for variant in int8:
                made = folder / f"{variant.name}.onnx"
                quantizer.quantize_static(path, made, found, "minmax", variant.capabilities, operators=operators)
                onnx.save(limits.fit_to_limits(onnx.load(made), context.targets.limits), made)
        for variant in stored:
            with contextlib.suppress(QuantizeError):  # a cut network may have nothing left that is worth it
                stored_weights.write_stored(path, variant.scheme, folder / f"{variant.name}.onnx")
        for variant in converted:
            with contextlib.suppress(QuantizeError):  # what is not converted saves nothing
                target = converting.converter_of(context.targets.all, variant)
                converting.write_converted(target, path, variant.scheme, few, folder / f"{variant.name}.tflite")
        return {}

    formats: dict[str, Any] = {variant.name: [variant.format, variant.capabilities.reduce_range] for variant in int8}
    formats |= {variant.name: [str(stored_weights.VERSION)] for variant in stored}
    formats |= {variant.name: [variant.format, converting.VERSION] for variant in converted}
    inputs = {
        "baseline": training.digest,
        "widths": dict(network.shape.widths),
        **({"dropped": list(network.shape.dropped)} if network.shape.dropped else {}),
        "int8": formats,
        "operators": operators,
        "limits": to_json(context.targets.limits),
    }
    folder = context.cache.stage("gate", VERSION, inputs, compute).folder
    files = {folder / f"{one.name}{one.suffix}": one.targets for one in (*int8, *stored, *converted)}
    # Where no float file is asked for, nothing but an int8 one may save the config.
    if not files or any(variant.scheme in ("fp32", "int8-dynamic") for variant in made_here):
        abilities = context.targets.abilities
        files[folder / "fp32.onnx"] = tuple(name for name, one in abilities.items() if not converts(one))
    return {path: able for path, able in files.items() if path.exists()}

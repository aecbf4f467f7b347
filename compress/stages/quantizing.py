"""The stage that writes a trained network in every precision: the float file, int8, mixed, and stored in fewer bits."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import onnx

from compress.baseline.contexts import Context, Say
from compress.float_models.float_nodes import other_operators
from compress.float_models.plain_models import read_plain
from compress.onnx_files import exporting, limits
from compress.precision import converting, fidelity, quantizer, ranges, refining, stored_weights
from compress.precision.converting import compare_converted, converter_of
from compress.precision.fidelity import Fidelity, compare_quantized
from compress.precision.schemes import Variant
from compress.run_folder.storage_failures import is_storage_failure
from compress.stages import int8_training
from compress.values.configs import OPERATORS, QAT, REFINEMENTS, STORED, Config, PrecisionSettings, is_refined
from compress.values.serialization import from_json, to_json
from targets.documents import file_hash
from targets.errors import QuantizeError, TrainingError
from targets.target import Capabilities


def make_files(
    context: Context, path: Path, config: Config, say: Say, precisions: Collection[str] | None = None
) -> tuple[dict[Variant, Path], list[tuple[str, str]]]:
    """Variant -> file for every one that works, and (variant's name, cause) for those that do not.

    ``precisions``: names of the variants to make; None: all.
    """
    files: dict[Variant, Path] = {}
    skipped: list[tuple[str, str]] = []
    for variant in context.targets.variants:
        if variant.scheme == QAT and not config.precision.qat_epochs:
            continue
        if precisions is not None and variant.name not in precisions:
            continue
        try:
            made = _file(context, path, variant, config, say)
            check_fidelity(context, path, variant, made)
            files[variant] = made
        except (QuantizeError, TrainingError) as error:
            if is_storage_failure(error):
                raise  # not the precision's fault: the whole trial is tried again
            # Training in int8 that diverges costs this candidate, not the others of the network.
            skipped.append((variant.name, str(error)))
    return files, skipped


def check_fidelity(context: Context, path: Path, variant: Variant, made: Path) -> Fidelity:
    """How near a variant's file is to its float source; raises QuantizeError where it is broken.

    ``path``: the network's float file. What is trained in int8 is held against its own float weights.
    """
    if variant.scheme == "fp32":
        return Fidelity()  # where it was converted, the converter has checked it
    source = made.with_name(int8_training.FLOATS) if variant.scheme == QAT else path
    samples = context.calibration.samples

    def compute(_: Path) -> dict[str, Any]:
        if variant.converted:
            return dict(to_json(compare_converted(converter_of(context.targets.all, variant), source, made, samples)))
        return dict(to_json(compare_quantized(source, made, samples)))

    inputs = {"source": file_hash(source), "made": file_hash(made), "samples": context.calibration.digest}
    return from_json(Fidelity, context.cache.stage("check", fidelity.VERSION, inputs, compute).info)


def _file(context: Context, path: Path, variant: Variant, config: Config, say: Say) -> Path:
    if variant.converted:
        return _converted(context, path, variant)
    if variant.scheme == "fp32":
        return path
    if variant.scheme in STORED:
        return _stored(context, path, variant)
    if variant.scheme == QAT:
        return int8_training.trained_file(context, path, variant, config, _ranges, say)
    return _quantized(context, path, variant, config)


def _converted(context: Context, path: Path, variant: Variant) -> Path:
    """The ``.tflite`` file, in whatever precision."""
    target = converter_of(context.targets.all, variant)
    samples = context.calibration.samples

    def compute(folder: Path) -> dict[str, Any]:
        converting.write_converted(target, path, variant.scheme, samples, folder / converting.MADE)
        return {}

    description = context.targets.describe[target.name]
    inputs = {
        "source": file_hash(path), "scheme": variant.scheme, "format": variant.format,
        "samples": context.calibration.digest, "converter": description.get("installation"),
        "version": description.get("conversion"),
    }  # fmt: skip
    return context.cache.stage("convert", converting.VERSION, inputs, compute).folder / converting.MADE


def _stored(context: Context, path: Path, variant: Variant) -> Path:
    """The file with its weights in fewer bits."""

    def compute(folder: Path) -> dict[str, Any]:
        made = folder / "model.onnx"
        stored_weights.write_stored(path, variant.scheme, made)
        onnx.save(limits.fit_to_limits(onnx.load(made), context.targets.limits), made)
        return {}

    inputs = {
        "source": file_hash(path),
        "scheme": variant.scheme,
        "stored": stored_weights.VERSION,
        "limits": to_json(context.targets.limits),
    }
    return context.cache.stage("quantize", quantizer.VERSION, inputs, compute).folder / "model.onnx"


def _quantized(context: Context, path: Path, variant: Variant, config: Config) -> Path:
    """The file in one precision and format."""
    scheme, capabilities = variant.scheme, variant.capabilities
    method, operators = config.precision.calibration, config.precision.int8_operators
    keep: tuple[str, ...] = ()
    found_ranges = Path()
    if scheme == "mixed":
        names = quantizer.quantizable_layers(path)
        if len(names) < 2:
            raise QuantizeError("mixed: the network has one layer that int8 can speed up; there is nothing to mix")
        keep = kept_in_float(_int8_order(context, path), names, config.precision)
    if scheme != "int8-dynamic":
        if is_refined(config.precision):
            path = _refined(context, path, variant, config.precision, keep)
        found_ranges = _ranges(context, path, method, capabilities)

    def compute(folder: Path) -> dict[str, Any]:
        if scheme == "int8-dynamic":
            found = quantizer.quantize_dynamic(path, folder / "model.onnx", capabilities)
        else:
            found = quantizer.quantize_static(
                path, folder / "model.onnx", found_ranges, method, capabilities, keep_float=keep, operators=operators
            )
        onnx.save(limits.fit_to_limits(exporting.clean(onnx.load(found.path)), context.targets.limits), found.path)
        return {"int8": list(found.int8), "kept": list(found.kept)}

    static = {} if scheme == "int8-dynamic" else {"method": method, "keep": list(keep), "operators": operators}
    inputs = {
        "source": file_hash(path), "scheme": scheme, "format": variant.format,
        "reduce_range": capabilities.reduce_range, "limits": to_json(context.targets.limits), **static,
    }  # fmt: skip
    return context.cache.stage("quantize", quantizer.VERSION, inputs, compute).folder / "model.onnx"


def kept_in_float(order: tuple[int | str, ...], names: list[str], settings: PrecisionSettings) -> tuple[str, ...]:
    """Names of the layers, and of operators, that ``mixed`` keeps in float: a share of both, the first in ``order``.

    At least one of them, and never all layers.
    """
    # Where the products alone are quantized, other operators are in float already.
    units = [unit for unit in order if isinstance(unit, int) or settings.int8_operators == OPERATORS[0]]
    kept = units[: max(1, round(settings.float_share * len(units)))]
    layers = [unit for unit in kept if isinstance(unit, int)][: len(names) - 1]
    return tuple(sorted([*(names[i] for i in layers), *(unit for unit in kept if isinstance(unit, str))]))


def _int8_order(context: Context, path: Path) -> tuple[int | str, ...]:
    """Positions of the file's layers by what int8 costs them, lossy operators among them.

    Without some blocks the layers are not the baseline's.
    """
    order = context.profile.int8_order
    whole, here = _weights(context.baseline.path), _weights(path)
    if len(whole) == len(here):
        return tuple(unit for unit in order if not isinstance(unit, int) or unit < len(here))
    matches = difflib.SequenceMatcher(None, whole, here, autojunk=False).get_matching_blocks()
    found = {match.a + k: match.b + k for match in matches for k in range(match.size)}
    there = other_operators(read_plain(path))
    return tuple(
        found[unit] if isinstance(unit, int) else unit
        for unit in order
        if unit in (found if isinstance(unit, int) else there)
    )


def _weights(path: Path) -> list[tuple[str, str]]:
    """Operator and weight of each layer; a weight that the exporter has renamed is told by its order alone."""
    names = set(quantizer.quantizable_layers(path))
    nodes = (node for node in read_plain(path).graph.node if node.name in names)
    return [(node.op_type, node.input[1] if "." in node.input[1] else "") for node in nodes]


def _refined(
    context: Context, path: Path, variant: Variant, settings: PrecisionSettings, keep: tuple[str, ...]
) -> Path:
    """The float file, rewritten so that it loses less when it is quantized."""

    def compute(folder: Path) -> dict[str, Any]:
        model = refining.refine(path, context.calibration.samples, variant.capabilities, settings, keep)
        onnx.save(model, folder / "model.onnx")
        return {}

    inputs = {
        "source": file_hash(path), "samples": context.calibration.digest, "keep": list(keep),
        "settings": {name: getattr(settings, name) for name in (*REFINEMENTS, "calibration", "int8_operators")},
        "format": variant.format, "reduce_range": variant.capabilities.reduce_range,
    }  # fmt: skip
    return context.cache.stage("refine", refining.VERSION, inputs, compute).folder / "model.onnx"


def _ranges(context: Context, path: Path, method: str, capabilities: Capabilities | None = None) -> Path:
    """Calibrated once per trained network and method; a search for the best ranges depends on the format as well."""

    def compute(folder: Path) -> dict[str, Any]:
        ranges.collect_ranges(path, context.calibration.samples, method, folder / "ranges.json", capabilities)
        return {}

    inputs = {"calibrate": file_hash(path), "method": method, "samples": context.calibration.digest}
    if method == "search" and capabilities is not None:
        inputs["format"] = f"{capabilities.int8_format}{'-7bit' * capabilities.reduce_range}"
    return context.cache.stage("quantize", quantizer.VERSION, inputs, compute).folder / "ranges.json"

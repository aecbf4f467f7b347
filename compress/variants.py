"""One trained network, many candidates: every precision of it, measured, scored and put into its folder."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from compress import exporting, graphs, latencies, metrics, quantizing, scoring
from compress.configs import QAT, REFINEMENTS, STORED, Config, PrecisionSettings, is_refined
from compress.contexts import Context, Say
from compress.precision import int8_training, refining, stored_weights
from compress.precisions import Variant
from compress.results import Candidate, Measured, Parity
from compress.runs import link
from compress.serialization import file_hash, to_json, write_json
from targets.errors import QuantizeError, TrainingError
from targets.target import Capabilities


@dataclass(frozen=True)
class Source:
    """A trained network to make candidates from: its float file and what is known of it."""

    path: Path
    weights: Path | None
    """The file with its weights; None for the baseline's own."""
    macs: int
    parameters: int
    removed: dict[str, list[int]]
    widths: dict[str, int]
    module: nn.Module | None
    """None where the model is an ONNX file."""
    dropped: list[str] = field(default_factory=list)
    """Residual blocks that it lacks."""


def make_files(
    context: Context, path: Path, config: Config, say: Say
) -> tuple[dict[Variant, Path], list[tuple[str, str]]]:
    """Variant -> file for every one that works, and (variant's name, cause) for those that do not."""
    files: dict[Variant, Path] = {}
    skipped: list[tuple[str, str]] = []
    for variant in context.variants:
        if variant.scheme == QAT and not config.precision.qat_epochs:
            continue
        try:
            files[variant] = _file(context, path, variant, config, say)
        except (QuantizeError, TrainingError) as error:
            # Training in int8 that diverges costs this candidate, not the others of the network.
            skipped.append((variant.name, str(error)))
    return files, skipped


def _file(context: Context, path: Path, variant: Variant, config: Config, say: Say) -> Path:
    if variant.scheme == "fp32":
        return path
    if variant.scheme in STORED:
        return _stored(context, path, variant)
    if variant.scheme == QAT:
        return int8_training.trained(context, path, variant, config, _ranges, say)
    return _quantized(context, path, variant, config)


def make_candidates(
    context: Context, number: int, config: Config, source: Source, files: Mapping[Variant, Path]
) -> list[Candidate]:
    """Measure and score every file on every target that runs it, and put it into its folder."""
    measured = _measured(context, files)
    candidates = []
    for variant, path in files.items():
        mine = _trained_in_int8(context, source, path) if variant.scheme == QAT else source
        identifier = f"{number:04d}-{variant.name}"
        precision = replace(config.precision, scheme=variant.scheme, format=variant.format)
        settings = replace(config, precision=precision)
        candidate = Candidate(
            id=identifier,
            path=f"candidates/{identifier}/model.onnx",
            config={
                **to_json(settings),
                "widths": source.widths,
                **({"dropped": source.dropped} if source.dropped else {}),
            },
            size=path.stat().st_size,
            parameters=source.parameters,
            macs=source.macs,
            parity=_parity(context, variant, path, mine),
            measured=measured[variant],
            trial=number,
            sha256=file_hash(path),
        )
        _store(context, candidate, path, mine)
        candidates.append(candidate)
    return candidates


def _trained_in_int8(context: Context, source: Source, path: Path) -> Source:
    """The network that was trained on in int8: its float weights lie beside the file."""
    floats = path.with_name(int8_training.FLOATS)
    return replace(source, weights=floats, module=int8_training.network(floats, context.val.first(4)))


def _stored(context: Context, path: Path, variant: Variant) -> Path:
    """The file with its weights in fewer bits."""

    def compute(folder: Path) -> dict[str, Any]:
        stored_weights.save(onnx.load(path), variant.scheme, folder / "model.onnx", path.name)
        return {}

    inputs = {"source": file_hash(path), "scheme": variant.scheme, "stored": stored_weights.VERSION}
    return context.cache.stage("quantize", quantizing.VERSION, inputs, compute).folder / "model.onnx"


def _quantized(context: Context, path: Path, variant: Variant, config: Config) -> Path:
    """The file in one precision and format."""
    scheme, capabilities = variant.scheme, variant.capabilities
    method = config.precision.calibration
    keep: tuple[str, ...] = ()
    ranges = Path()
    if scheme == "mixed":
        names = quantizing.layers(path)
        count = min(max(1, round(config.precision.float_share * len(names))), len(names) - 1)
        if count < 1:
            raise QuantizeError("mixed: the network has one layer that int8 can speed up; there is nothing to mix")
        keep = tuple(sorted([names[i] for i in _int8_order(context, path) if i < len(names)][:count]))
    if scheme != "int8-dynamic":
        if is_refined(config.precision):
            path = _refined(context, path, variant, config.precision, keep)
        ranges = _ranges(context, path, method, capabilities)

    def compute(folder: Path) -> dict[str, Any]:
        if scheme == "int8-dynamic":
            found = quantizing.quantize_dynamic(path, folder / "model.onnx", capabilities)
        else:
            found = quantizing.quantize_static(
                path, folder / "model.onnx", ranges, method, capabilities, keep_float=keep
            )
        onnx.save(exporting.suit(exporting.clean(onnx.load(found.path)), context.limits), found.path)
        return {"int8": list(found.int8), "kept": list(found.kept)}

    static = {} if scheme == "int8-dynamic" else {"method": method, "keep": list(keep)}
    inputs = {
        "source": file_hash(path), "scheme": scheme, "format": variant.format,
        "reduce_range": capabilities.reduce_range, "limits": to_json(context.limits), **static,
    }  # fmt: skip
    return context.cache.stage("quantize", quantizing.VERSION, inputs, compute).folder / "model.onnx"


def _int8_order(context: Context, path: Path) -> tuple[int, ...]:
    """Positions of the file's layers by what int8 costs them; without some blocks they are not the baseline's."""
    order = context.profile.int8_order
    whole, here = _weights(context.baseline_path), _weights(path)
    if len(whole) == len(here):
        return order
    matches = difflib.SequenceMatcher(None, whole, here, autojunk=False).get_matching_blocks()
    found = {match.a + k: match.b + k for match in matches for k in range(match.size)}
    return tuple(found[i] for i in order if i in found)


def _weights(path: Path) -> list[tuple[str, str]]:
    """Operator and weight of each layer; a weight that the exporter has renamed is told by its order alone."""
    names = set(quantizing.layers(path))
    nodes = (node for node in graphs.parse(path).graph.node if node.name in names)
    return [(node.op_type, node.input[1] if "." in node.input[1] else "") for node in nodes]


def _refined(
    context: Context, path: Path, variant: Variant, settings: PrecisionSettings, keep: tuple[str, ...]
) -> Path:
    """The float file, rewritten so that it loses less when it is quantized."""

    def compute(folder: Path) -> dict[str, Any]:
        model = refining.refine(path, context.calibration, variant.capabilities, settings, keep)
        onnx.save(model, folder / "model.onnx")
        return {}

    inputs = {
        "source": file_hash(path), "samples": context.calibration_digest, "keep": list(keep),
        "settings": {name: getattr(settings, name) for name in (*REFINEMENTS, "calibration")},
        "format": variant.format, "reduce_range": variant.capabilities.reduce_range,
    }  # fmt: skip
    return context.cache.stage("refine", refining.VERSION, inputs, compute).folder / "model.onnx"


def _ranges(context: Context, path: Path, method: str, capabilities: Capabilities | None = None) -> Path:
    """Calibrated once per trained network and method; a search for the best ranges depends on the format as well."""

    def compute(folder: Path) -> dict[str, Any]:
        quantizing.collect_ranges(path, context.calibration, method, folder / "ranges.json", capabilities)
        return {}

    inputs = {"calibrate": file_hash(path), "method": method, "samples": context.calibration_digest}
    if method == "search" and capabilities is not None:
        inputs["format"] = f"{capabilities.int8_format}{'-7bit' * capabilities.reduce_range}"
    return context.cache.stage("quantize", quantizing.VERSION, inputs, compute).folder / "ranges.json"


def _measured(context: Context, files: Mapping[Variant, Path]) -> dict[Variant, dict[str, Measured]]:
    """Variant -> target -> what was measured."""
    measured: dict[Variant, dict[str, Measured]] = {variant: {} for variant in files}
    for target in context.targets:
        mine = {variant: path for variant, path in files.items() if target.name in variant.targets}
        infos = latencies.measure_on(context, target, list(mine.values())) if mine else []
        for (variant, path), info in zip(mine.items(), infos, strict=True):
            dynamic = variant.scheme == "int8-dynamic"
            quality, drop, found = scoring.score(context, target, path, context.val, "val", dynamic=dynamic)
            measured[variant][target.name] = latencies.measured(info, quality, drop, found.check)
    return measured


def _parity(context: Context, variant: Variant, path: Path, source: Source) -> Parity:
    """The file against the network it came from; where that is an ONNX file, against that on val."""
    if source.module is not None:
        return exporting.check_parity(path, source.module, context.val.first(8), enforce=False)
    target = next(t for t in context.targets if t.name in variant.targets)
    found, zero = (context.scorer.outputs(target, p, context.val, "val").outputs for p in (path, context.baseline_path))
    a, b = (x[0] if isinstance(x, tuple) else x for x in (zero, found))
    classes = a.ndim >= 2 and a.shape[1] > 1
    agreement = float(metrics.get("agreement").function(b, a)) if classes else 1.0
    return Parity(float(abs(a - b).max()), agreement)


def _store(context: Context, candidate: Candidate, path: Path, source: Source) -> None:
    folder = context.run.candidate_folder(candidate.id)
    folder.mkdir(parents=True, exist_ok=True)
    link(path, folder / "model.onnx")
    if source.weights is not None:
        link(source.weights, folder / f"weights{source.weights.suffix}")
    write_json(folder / "candidate.json", {**to_json(candidate), "removed": source.removed, "dropped": source.dropped})

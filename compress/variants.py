"""One trained network, many candidates: every precision of it, measured, scored and put into its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from compress import exporting, latencies, metrics, quantizing, scoring
from compress.configs import Config
from compress.contexts import Context
from compress.precisions import Variant
from compress.results import Candidate, Measured, Parity
from compress.runs import link
from compress.serialization import file_hash, to_json, write_json
from targets.errors import QuantizeError


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


def make_files(context: Context, path: Path, config: Config) -> tuple[dict[Variant, Path], list[tuple[str, str]]]:
    """Variant -> file for every one that works, and (variant's name, cause) for those that do not."""
    files: dict[Variant, Path] = {}
    skipped: list[tuple[str, str]] = []
    for variant in context.variants:
        try:
            files[variant] = path if variant.scheme == "fp32" else _quantized(context, path, variant, config)
        except QuantizeError as error:
            skipped.append((variant.name, str(error)))
    return files, skipped


def make_candidates(
    context: Context, number: int, config: Config, source: Source, files: Mapping[Variant, Path]
) -> list[Candidate]:
    """Measure and score every file on every target that runs it, and put it into its folder."""
    measured = _measured(context, files)
    candidates = []
    for variant, path in files.items():
        identifier = f"{number:04d}-{variant.name}"
        precision = replace(config.precision, scheme=variant.scheme, format=variant.format)
        settings = replace(config, precision=precision)
        candidate = Candidate(
            id=identifier,
            path=f"candidates/{identifier}/model.onnx",
            config={**to_json(settings), "widths": source.widths},
            size=path.stat().st_size,
            parameters=source.parameters,
            macs=source.macs,
            parity=_parity(context, variant, path, source),
            measured=measured[variant],
            trial=number,
            sha256=file_hash(path),
        )
        _store(context, candidate, path, source)
        candidates.append(candidate)
    return candidates


def _quantized(context: Context, path: Path, variant: Variant, config: Config) -> Path:
    """The file in one precision and format."""
    scheme, capabilities = variant.scheme, variant.capabilities
    method = config.precision.calibration
    keep: tuple[str, ...] = ()
    ranges = Path()
    if scheme != "int8-dynamic":
        ranges = _ranges(context, path, method)
    if scheme == "mixed":
        names = quantizing.layers(path)
        count = max(1, round(config.precision.float_share * len(names)))
        keep = tuple(sorted(names[i] for i in context.profile.int8_order[:count]))

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


def _ranges(context: Context, path: Path, method: str) -> Path:
    """Calibrated once per trained network and method."""

    def compute(folder: Path) -> dict[str, Any]:
        quantizing.collect_ranges(path, context.calibration, method, folder / "ranges.json")
        return {}

    inputs = {"calibrate": file_hash(path), "method": method, "samples": context.calibration_digest}
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
        link(source.weights, folder / "weights.pt")
    write_json(folder / "candidate.json", {**to_json(candidate), "removed": source.removed})

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
from compress.results import Candidate, DropSplits, Measured, Parity, QualitySplits
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


def make_files(context: Context, path: Path, config: Config) -> tuple[dict[str, Path], list[tuple[str, str]]]:
    """Scheme -> file for every precision of the space that works, and (scheme, cause) for those that do not."""
    files: dict[str, Path] = {}
    skipped: list[tuple[str, str]] = []
    for scheme in context.schemes:
        try:
            files[scheme] = path if scheme == "fp32" else _quantized(context, path, scheme, config)
        except QuantizeError as error:
            skipped.append((scheme, str(error)))
    return files, skipped


def make_candidates(
    context: Context, number: int, config: Config, source: Source, files: Mapping[str, Path]
) -> list[Candidate]:
    """Measure and score every file on every target, and put it into its folder."""
    measured = _measured(context, files)
    candidates = []
    for scheme, path in files.items():
        identifier = f"{number:04d}-{scheme}"
        settings = replace(config, precision=replace(config.precision, scheme=scheme))
        candidate = Candidate(
            id=identifier,
            path=f"candidates/{identifier}/model.onnx",
            config={**to_json(settings), "widths": source.widths},
            size=path.stat().st_size,
            parameters=source.parameters,
            macs=source.macs,
            parity=_parity(context, path, source),
            measured=measured[scheme],
            trial=number,
            sha256=file_hash(path),
        )
        _store(context, candidate, path, source)
        candidates.append(candidate)
    return candidates


def _quantized(context: Context, path: Path, scheme: str, config: Config) -> Path:
    """The file in one precision. With several targets the format is the first one's."""
    capabilities = context.targets[0].capabilities()
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
        onnx.save(exporting.clean(onnx.load(found.path)), found.path)
        return {"int8": list(found.int8), "kept": list(found.kept)}

    static = {} if scheme == "int8-dynamic" else {"method": method, "keep": list(keep)}
    inputs = {"source": file_hash(path), "scheme": scheme, "format": to_json(capabilities), **static}
    return context.cache.stage("quantize", quantizing.VERSION, inputs, compute).folder / "model.onnx"


def _ranges(context: Context, path: Path, method: str) -> Path:
    """Calibrated once per trained network and method."""

    def compute(folder: Path) -> dict[str, Any]:
        quantizing.collect_ranges(path, context.calibration, method, folder / "ranges.json")
        return {}

    inputs = {"calibrate": file_hash(path), "method": method, "samples": context.calibration_digest}
    return context.cache.stage("quantize", quantizing.VERSION, inputs, compute).folder / "ranges.json"


def _measured(context: Context, files: Mapping[str, Path]) -> dict[str, dict[str, Measured]]:
    """Scheme -> target -> what was measured."""
    measured: dict[str, dict[str, Measured]] = {scheme: {} for scheme in files}
    for target in context.targets if files else ():
        found = latencies.measure_on(context, target, list(files.values()))
        for (scheme, path), info in zip(files.items(), found, strict=True):
            quality, drop, _ = scoring.score(context, target, path, context.val, dynamic=scheme == "int8-dynamic")
            measured[scheme][target.name] = Measured(
                QualitySplits(quality),
                DropSplits(drop),
                latencies.latency_result(info),
                info.get("memory"),
                info.get("instructions"),
            )
    return measured


def _parity(context: Context, path: Path, source: Source) -> Parity:
    """The file against the network it came from; where that is an ONNX file, against that on val."""
    if source.module is not None:
        return exporting.check_parity(path, source.module, context.val.first(8), enforce=False)
    target = context.targets[0]
    found, zero = (
        scoring.outputs(context.cache, target, context.describe[target.name], p, context.val, context.names)
        for p in (path, context.baseline_path)
    )
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

"""The candidates of a trial: each file of a trained network with its measurements, put into its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from compress.baseline.contexts import Context
from compress.metrics import metrics
from compress.onnx_files import parity
from compress.precision.converting import converter_of
from compress.precision.schemes import Variant
from compress.run_folder.runs import link
from compress.stages import int8_training
from compress.stages.measuring import measure_files
from compress.stages.quantizing import check_fidelity
from compress.values.candidates import Candidate, Parity
from compress.values.configs import QAT, Config
from compress.values.serialization import to_json, write_json
from targets.documents import file_hash

SOURCE = "model.onnx"
"""Name of the float file that a converted one was made of, beside it."""


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
    """Blocks that it lacks."""
    rungs: tuple[float, ...] = ()
    """Epochs of each training, where there were several."""


def make_candidates(
    context: Context, number: int, config: Config, source: Source, files: Mapping[Variant, Path]
) -> tuple[list[Candidate], list[tuple[str, str]]]:
    """Measure and score every file on every target that runs it, and put it into its folder.

    Second come the precisions that do not run, each as (variant's name, cause).
    """
    measured, failed = measure_files(context, files)
    candidates = []
    for variant in measured:
        path = files[variant]
        mine = _trained_in_int8(context, source, path) if variant.scheme == QAT else source
        identifier = f"{number:04d}-{variant.name}"
        precision = replace(config.precision, scheme=variant.scheme, format=variant.format)
        settings = replace(config, precision=precision)
        near = check_fidelity(context, source.path, variant, path)
        candidate = Candidate(
            id=identifier,
            path=f"candidates/{identifier}/model{variant.suffix}",
            config={
                **to_json(settings),
                "widths": source.widths,
                **({"dropped": source.dropped} if source.dropped else {}),
                **({"rungs": list(source.rungs)} if source.rungs else {}),
            },
            size=path.stat().st_size,
            parameters=source.parameters,
            macs=source.macs,
            parity=_parity(context, variant, path, mine),
            measured=measured[variant],
            trial=number,
            sha256=file_hash(path),
            files={SOURCE: file_hash(source.path)} if variant.converted else {},
            sqnr=dict(near.sqnr),
            lost_in=near.said(),
        )
        _store(context, candidate, path, mine)
        if variant.converted:
            link(source.path, context.run.candidate_folder(identifier) / SOURCE)
        candidates.append(candidate)
    return candidates, failed


def _trained_in_int8(context: Context, source: Source, path: Path) -> Source:
    """The network that was trained on in int8: its float weights lie beside the file."""
    floats = path.with_name(int8_training.FLOATS)
    return replace(source, weights=floats, module=int8_training.float_network(floats, context.val.first(4)))


def _parity(context: Context, variant: Variant, path: Path, source: Source) -> Parity:
    """The file against the network it came from; where that is an ONNX file, against that on val."""
    if source.module is not None and variant.converted:
        target = converter_of(context.targets.all, variant)
        return parity.compare_with_target(path, target, context.baseline.names, source.module, context.val.first(8))
    if source.module is not None:
        return parity.check_parity(path, source.module, context.val.first(8), enforce=False)
    target = next(t for t in context.targets.all if t.name in variant.targets)
    dynamic = variant.scheme == "int8-dynamic"
    found, zero = (
        context.instruments.scorer.outputs(target, p, context.val, "val", dynamic=one).outputs
        for p, one in ((path, dynamic), (context.baseline.path, False))
    )
    a, b = (x[0] if isinstance(x, tuple) else x for x in (zero, found))
    classes = a.ndim >= 2 and a.shape[1] > 1
    agreement = float(metrics.get("agreement").function(b, a)) if classes else 1.0
    return Parity(float(abs(a - b).max()), agreement)


def _store(context: Context, candidate: Candidate, path: Path, source: Source) -> None:
    folder = context.run.candidate_folder(candidate.id)
    folder.mkdir(parents=True, exist_ok=True)
    link(path, folder / Path(candidate.path or "").name)
    if source.weights is not None:
        link(source.weights, folder / f"weights{source.weights.suffix}")
    own = {"removed": source.removed, "dropped": source.dropped}
    # None: the baseline's own weights.
    own_weights = None if source.weights is None else file_hash(source.weights)
    write_json(folder / "candidate.json", {**to_json(candidate), **own, "weights": own_weights})

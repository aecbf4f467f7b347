"""What a target does, measured once and kept: at which widths cost changes, and which int8 format is fastest.

Small convolutions are generated and measured: pairs of 3x3 with equally many input and output channels. The channel
step decides which widths are worth trying when pruning: on ONNX Runtime 31 channels cost twice what 32 do.

Needs the onnx package to measure; without it, or where measuring fails, what the target declares holds.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from targets.documents import parse_json, read_text, write_text
from targets.errors import CompressError
from targets.machine.folders import cache_folder
from targets.probing.probe_models import SIDE, write_probe_model
from targets.target import Capabilities, Measurement, Protocol, Target, Watch
from targets.workers import measuring

VERSION = 2
"""Of the method: raise it when the same target would now be told something else."""
WIDTHS = (8, 12, 15, 16, 17, 20, 24, 28, 31, 32, 33, 34, 36, 40, 44, 47, 48, 49, 52, 56, 60, 62, 64)
"""Channels that are timed."""
FEW_WIDTHS = (16, 20, 24, 28, 32, 33, 34, 36, 40, 48, 64)
"""Where every file takes seconds."""
FORMATS = ("u8s8", "s8s8")
CONVERTED = ("tflite", "tflite-float-io")
"""Formats of files that a target converts itself; no other one would run there."""
FORMAT_WIDTHS = (24, 32, 40, 48, 64)
"""Channels at which the formats are compared."""
FEW_FORMAT_WIDTHS = (32, 64)
STEPS = (4, 8, 16, 32)
PROTOCOL = Protocol(width=0.02, seconds=0.8, rounds=5, block=0.003, warmup=0.004, processes=3, most=3)
"""In every process models lie elsewhere in memory, which may cost a tenth; the best of three is told."""

_TIE = 0.1
"""Formats whose times are closer than this are as fast. The declared one is known to be fused in whole networks:
with ONNX Runtime on x86, s8s8 is as fast here, and left in floats around every shortcut."""
_COUNT_TIE = 0.05
"""The same where cost is counted: exact, but of one pair of convolutions, not of a network."""
_KEPT = 0.25
"""Widths are worth having when they bring this share of what their channels promise."""
_KEPT_ALONE = 0.7
"""The same where the next coarser widths bring nothing, so that it is more likely chance."""
_TELLING = 0.02
"""Promises below this share of the cost tell nothing."""

Costs = Mapping[int, float]


@dataclass(frozen=True)
class Probe:
    """What was measured on a target; costs are relative to the narrowest width, in fp32 unless that does not run."""

    channel_step: int
    int8_step: int
    int8_format: str
    fp32: dict[int, float] = field(default_factory=dict)
    """Cost by width."""
    int8: dict[int, float] = field(default_factory=dict)
    """Cost by width, in ``int8_format``."""
    formats: dict[str, float] = field(default_factory=dict)
    """Cost by int8 format, relative to fp32 at the same width; what the target refuses is left out."""
    seconds: float = 0.0
    """What it took to find out."""

    @property
    def int8_ratio(self) -> float | None:
        """Cost of int8 relative to fp32, in the format that was chosen; None where it was not measured."""
        return self.formats.get(self.int8_format)

    @property
    def int8_is_slower(self) -> bool:
        """Whether int8 costs more than fp32 on this target; False where it was not measured."""
        return self.int8_ratio is not None and self.int8_ratio > 1.0


def probed(target: Target, *, measure: bool = True, watch: Watch | None = None) -> Capabilities:
    """What ``target`` can do, with its channel steps and its int8 format as ``probe`` found them."""
    can = target.capabilities()
    found = probe(target, measure=measure, watch=watch)
    if found is None:
        return can
    return replace(
        can, channel_step=found.channel_step, int8_step=found.int8_step, int8_format=found.int8_format
    )  # fmt: skip


def probe(target: Target, *, measure: bool = True, watch: Watch | None = None) -> Probe | None:
    """What was found out about ``target`` before, or, with ``measure``, now (some seconds).

    None where the target is not probed, measuring is not possible, or it fails.
    """
    if not target.probed:
        return None
    try:
        described = target.describe()
        path = _path(described)
        known = _load(path)
        if known is not None or not measure or importlib.util.find_spec("onnx") is None:
            return known
        found = _measure(target, watch)
    except CompressError:
        return None
    # It is kept for the next time; where that cannot be, it still holds now.
    with suppress(OSError):
        _save(path, found, described)
    return found


def find_step(costs: Costs) -> int | None:
    """The step at which cost changes: 32, 16, 8, 4, or 1 for anything finer; None where the costs do not tell.

    ``costs``: by width. Widths are looked at by the largest step that they are a multiple of, finest first. Between
    its neighbours on the next coarser grid, a width in the middle promises half of the difference: a smooth cost
    keeps the promise, a staircase none of it. The finest grid whose own widths together keep a fair part of what they
    promise is the answer, so that in doubt the step is too small: that costs time, too large a step hides gains.
    """
    grids = (1, *STEPS)
    kept = [_kept_share(costs, finer, step) for finer, step in pairwise(grids)]
    if all(one is None for one in kept):
        return None
    for index, share in enumerate(kept):
        coarser = kept[index + 1] if index + 1 < len(kept) else None
        needed = _KEPT if coarser is None or coarser >= _KEPT else _KEPT_ALONE
        if share is not None and share >= needed:
            return grids[index]
    return STEPS[-1]


def _kept_share(costs: Costs, finer: int, step: int) -> float | None:
    """How much of their promise multiples of ``finer`` keep that are none of ``step``; None where nothing is promised.

    Promise and gain are both relative to the cost of the next wider multiple of ``step``, so that narrow layers count
    as much as wide ones.
    """
    lowest = _lowest(costs)
    grid = sorted(width for width in costs if width % step == 0)
    promised = gained = 0.0
    for width in costs:
        below = max((one for one in grid if one < width), default=None)
        above = min((one for one in grid if one > width), default=None)
        if width % finer or width % step == 0 or below is None or above is None:
            continue
        share = (above - width) / (above - below)
        promise = share * (1.0 - lowest[below] / lowest[above])
        if promise < _TELLING:
            continue
        gain = 1.0 - costs[width] / lowest[above]
        promised += promise
        gained += min(max(gain, -promise), 1.5 * promise)
    return gained / promised if promised else None


def _lowest(costs: Costs) -> dict[int, float]:
    """By width: the lowest cost at which that many channels, or more, can be had."""
    found: dict[int, float] = {}
    lowest = math.inf
    for width in sorted(costs, reverse=True):
        lowest = found[width] = min(lowest, costs[width])
    return found


def _measure(target: Target, watch: Watch | None) -> Probe:
    start = time.monotonic()
    can = target.capabilities()
    widths, few = (FEW_WIDTHS, FEW_FORMAT_WIDTHS) if target.slow_to_load else (WIDTHS, FORMAT_WIDTHS)
    with tempfile.TemporaryDirectory(prefix="paretopress-") as name:
        bench = _Bench(target, Path(name), watch)
        floats = () if "fp32" in can.refuses else widths
        others = FORMATS if can.int8_format in FORMATS else ()
        wanted = {**dict.fromkeys(others, few), can.int8_format: widths} if "int8" in can.precisions else {}
        tables = _measure_all(bench, floats, wanted)
        formats = {
            one: median(tables[one][width] / tables["fp32"][width] for width in few)
            for one in wanted
            if one in tables and floats
        }
        tie = _COUNT_TIE if target.counted else _TIE
        chosen = _choose(formats, can.int8_format, tie)
        if chosen != can.int8_format:
            chosen = _confirm(bench, tables, chosen, can.int8_format, tie)
    fp32, int8 = tables["fp32"], tables.get(chosen, {})
    int8_step = find_step(int8) or can.int8_step
    return Probe(
        channel_step=(find_step(fp32) or can.channel_step) if floats else int8_step,
        int8_step=int8_step,
        int8_format=chosen,
        fp32=fp32,
        int8=int8,
        formats=formats,
        seconds=round(time.monotonic() - start, 3),
    )


def _measure_all(
    bench: _Bench, widths: Sequence[int], wanted: Mapping[str, Sequence[int]]
) -> dict[str, dict[int, float]]:
    """Costs by precision or format, and width: ``widths`` in fp32, and of the int8 formats what is ``wanted``.

    Without ``widths`` no float file is measured: there are targets on which none runs. A format that is refused takes
    none of the others with it.
    """
    try:
        return bench.costs({"fp32": widths, **wanted})
    except CompressError:
        found = bench.costs({"fp32": widths})
        for one in wanted:
            with suppress(CompressError):
                found[one] = bench.costs({"fp32": widths[:1], one: wanted[one]})[one]
        return found


def _confirm(bench: _Bench, tables: dict[str, dict[int, float]], chosen: str, declared: str, tie: float) -> str:
    """The format that holds when asked again, its costs at all widths added to ``tables``.

    A moment of something else on the CPU must not turn a whole search to a format that is not fused.
    """
    rival = {declared: tuple(tables[chosen])} if declared in tables else {}
    narrowest = (min(tables["fp32"]),)
    again = bench.costs({"fp32": narrowest, **rival, chosen: tuple(tables["fp32"])})
    if rival:
        ratio = median(again[chosen][width] / cost for width, cost in again[declared].items())
        if ratio * (1.0 + tie) > 1.0:
            return declared
    tables[chosen] = again[chosen]
    return chosen


@dataclass(frozen=True)
class _Bench:
    """Measures generated files on a target."""

    target: Target
    folder: Path
    watch: Watch | None

    def costs(self, wanted: Mapping[str, Sequence[int]]) -> dict[str, dict[int, float]]:
        """Costs relative to the first file, measured in one call; ``wanted``: widths by precision or format."""
        kinds = [(kind, width) for kind, widths in wanted.items() for width in widths]
        files = [self._file(kind, width) for kind, width in kinds]
        measured = self.target.measure(files, protocol=PROTOCOL, watch=self.watch)
        counts = [float(one.count) for one in measured if one.count]
        ratios = [count / counts[0] for count in counts] if len(counts) == len(files) else _best_ratios(measured)
        found: dict[str, dict[int, float]] = {kind: {} for kind in wanted}
        for (kind, width), ratio in zip(kinds, ratios, strict=True):
            found[kind][width] = ratio
        return found

    def _file(self, kind: str, width: int) -> Path:
        """A generated file; one that the target converts is calibrated with made-up values."""
        if kind in ("fp32", *FORMATS):
            return write_probe_model(self.folder, kind, width)
        path, made = write_probe_model(self.folder, "fp32", width), self.folder / f"{kind}-{width}.tflite"
        samples = {"x": np.random.default_rng(0).normal(size=(8, width, SIDE, SIDE)).astype(np.float32)}
        return self.target.convert(path, "int8", samples, made) or path


def _choose(formats: Mapping[str, float], declared: str, tie: float) -> str:
    """The fastest format; the declared one where it is as fast: it is so in graphs beyond this small one."""
    if not formats:
        return declared
    fastest = min(formats, key=formats.__getitem__)
    return declared if formats.get(declared, math.inf) <= formats[fastest] * (1.0 + tie) else fastest


def _best_ratios(measured: Sequence[Measurement]) -> list[float]:
    """Of every file its best process, since a model's place in memory may cost a tenth and is drawn anew in each.

    The first file has luck of its own: every process is put on one scale by the mean of all its ratios first.
    """
    per_process = zip(*(_ratios(one) for one in measured), strict=True)
    scaled = [[ratio / _mean(ratios) for ratio in ratios] for ratios in per_process]
    best = [min(ratios) for ratios in zip(*scaled, strict=True)]
    return [one / best[0] for one in best]


def _ratios(one: Measurement) -> list[float]:
    if one.samples:
        return [measuring.paired_ratio([samples]).value for samples in one.samples]
    if one.latency is None:
        raise CompressError(f"{one.path}: {one.target} gave neither a time nor a count")
    return [one.latency.ratio]


def _mean(values: Iterable[float]) -> float:
    """Geometric."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def _path(described: Mapping[str, Any]) -> Path:
    """Where the probe of a target so described is kept."""
    said = json.dumps({"version": VERSION, "target": described}, sort_keys=True)
    return cache_folder() / "probes" / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.json"


def _load(path: Path) -> Probe | None:
    """What is kept; None where there is nothing, or nothing that can be read."""
    try:
        kept = parse_json(read_text(path))["probe"]
        found = Probe(
            channel_step=int(kept["channel_step"]),
            int8_step=int(kept["int8_step"]),
            int8_format=kept["int8_format"],
            fp32={int(width): float(cost) for width, cost in kept["fp32"].items()},
            int8={int(width): float(cost) for width, cost in kept["int8"].items()},
            formats={name: float(cost) for name, cost in kept["formats"].items()},
            seconds=float(kept["seconds"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    sane = found.int8_format in (*FORMATS, *CONVERTED) and min(found.channel_step, found.int8_step) >= 1
    return found if sane else None


def _save(path: Path, found: Probe, described: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"version": VERSION, "target": described, "probe": asdict(found)}
    write_text(path, json.dumps(document, indent=1, sort_keys=True))

"""What a reader of a bench should know, in words: one line each, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from targets.benches.bench_results import Bench, Model, OnTarget
from targets.benches.comparing import disturbed
from targets.model_files.onnx_files import example
from targets.target import Measurement

_BUSY = 0.1
"""Share of rounds that something else may disturb before it is said."""
_PATIENCE = 3600.0
"""Seconds beyond which more time is no advice."""


def warnings(bench: Bench) -> list[str]:
    """One line for each thing a reader should know: about the models, then what each target found, then the machine."""
    found = [*_identical(bench.models), *_made_up(bench)]
    for here in bench.found:
        found += _interval(bench, here)
        found += _integers(bench.models, here)
        found += _slower(bench.models, here)
        found += here.remarks
    return found + list(_machine(bench))


def short_names(paths: Sequence[Path]) -> list[str]:
    """File names, with as many folders before them as it takes to tell them apart."""
    for depth in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        names = [str(Path(*path.parts[-depth:])) for path in paths]
        if len(set(names)) == len(set(paths)):
            return names
    return [str(path) for path in paths]


def target_name(here: OnTarget) -> str:
    """The name of the target as it stands in reports, for example ``ort-cpu:threads=2``."""
    return here.comparison.measurements[0].target


def half_width(one: Measurement) -> float:
    """Half the width of the ratio's 95 % interval, as a share of the ratio; 0 where cost is counted, which is exact."""
    found = one.latency
    return max(found.high - found.ratio, found.ratio - found.low) / found.ratio if found else 0.0


def listed(names: Sequence[str]) -> str:
    """One or more names as they stand in a sentence: ``a, b and c``."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _identical(models: Sequence[Model]) -> Iterator[str]:
    names = short_names([model.path for model in models])
    same: dict[str, list[str]] = {}
    for model, name in zip(models, names, strict=True):
        same.setdefault(model.sha256, []).append(name)
    for group in same.values():
        if len(group) > 1 and len(set(group)) == 1:
            yield f"{group[0]} is given {len(group)} times: its ratio shows only what two sessions of it differ by"
        elif len(group) > 1:
            yield f"{listed(group)} are the same file, byte for byte: check the export that was to make them differ"


def _made_up(bench: Bench) -> Iterator[str]:
    """Dynamic axes that were taken as 1, and integers that were drawn, of inputs that nobody spoke of."""
    told: set[str] = set()
    for model in bench.models:
        for one in model.facts.inputs if model.facts else ():
            if one.name in told or one.name in bench.given:
                continue
            told.add(one.name)
            if one.open_axes and one.name not in bench.shapes:
                axes = listed(one.open_axes)
                yield f"input {one.name}: {axes} of it measured as 1: say the real size, as --shape {example(one)}"
            if one.integer:
                yield f"input {one.name}: integers 0 to 7 were made up; where values matter, give --data FILE.npz"


def _interval(bench: Bench, here: OnTarget) -> Iterator[str]:
    measured, name = here.comparison.measurements, target_name(here)
    busy = max(disturbed(one) for one in measured)
    if busy > _BUSY:
        yield (
            f"{name}: something else held up or slowed this CPU in {100 * busy:.0f} % of the rounds (repeated where "
            "time allowed): close other programs, or use an idle machine"
        )
    if here.counted:
        return
    processes, asked = len(measured[0].samples), bench.protocol.processes
    names = short_names([one.path for one in measured])
    wide = [(half_width(one), label) for one, label in zip(measured, names, strict=True) if not one.settled]
    if 0 < processes < asked:
        remedy = _time(1.2 * here.seconds * asked / processes)
        yield f"{name}: only {processes} of {asked} processes fitted into the time, intervals are wide: {remedy}"
    elif wide:
        widest = max(wide)[0]
        labels = listed([label for _, label in wide])
        yield (
            f"{name}: {labels} {'are' if len(wide) > 1 else 'is'} known within ±{100 * widest:.1f} % only, "
            f"not ±{100 * bench.protocol.width:g} %: {_more_time(here.seconds, widest / bench.protocol.width, busy)}"
        )


def _more_time(spent: float, factor: float, busy: float) -> str:
    """The interval shrinks with the square root of the time."""
    wanted = spent * max(factor, 1.2) ** 2
    if wanted > _PATIENCE or busy > _BUSY:
        return "a quieter machine would help more than time"
    return _time(wanted)


def _time(wanted: float) -> str:
    if wanted <= 90:
        return f"--time {10 * math.ceil(wanted / 10)}s would likely do"
    return f"--time {math.ceil(wanted / 60)}min would likely do"


def _integers(models: Sequence[Model], here: OnTarget) -> Iterator[str]:
    names = short_names([model.path for model in models])
    for name, layers in zip(names, here.audits, strict=True):
        if not layers or layers[0].on_npu is not None:  # what an NPU lacks is among the target's own remarks
            continue
        integer = sum(one.integer for one in layers)
        if 2 * integer < len(layers):
            reason = next((f" ({one.why})" for one in layers if not one.integer and one.why), "")
            yield (
                f"{name}: int8 in the file, but only {integer} of {len(layers)} products run in integers "
                f"on {target_name(here)}{reason}: quantize it for this target"
            )


def _slower(models: Sequence[Model], here: OnTarget) -> Iterator[str]:
    """Fewer bits than the first model's, and more time."""
    first = models[0]
    names = short_names([model.path for model in models])
    if first.facts is None or first.facts.precision != "float":
        return
    for index, (model, name) in enumerate(zip(models, names, strict=True)):
        if model.facts is None or model.facts.precision == "float":
            continue
        ratio = here.comparison.ratio_at(index)
        if ratio.value > 1 and not ratio.tied:
            yield (
                f"{name} is {model.facts.precision} and takes {ratio} the time of {names[0]}, which is float, "
                f"on {target_name(here)}: ship the float one, unless size matters more"
            )


def _machine(bench: Bench) -> Iterator[str]:
    governor: Any = bench.environment.get("governor")
    if governor and governor != "performance" and not all(here.counted for here in bench.found):
        yield (
            f"the CPU's frequency governor is {governor}: times vary, ratios hold; "
            "for steady times: sudo cpupower frequency-set -g performance"
        )

"""What int8 costs each layer in accuracy, and what it saves in time: both measured, each layer by itself.

A layer's error is that of the network with nothing but this layer in int8. What it saves is measured where it counts,
among other int8 layers: the time of the network with this layer alone in float, against all of it in int8. Layers stay
in float by error per time saved; those that are faster in float than in int8 come before all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.float_models.float_nodes import other_operators
from compress.float_models.plain_models import LEAST_OPSET, read_plain
from compress.onnx_files.sessions import grown_by_one
from compress.precision import quantizer
from compress.precision.noise import noise_share
from targets.errors import MeasurementError, ModelError, QuantizeError
from targets.machine import memory
from targets.target import Capabilities, Measurement, Protocol, Target

MOST = 24
"""Networks that are timed; where there are more layers, neighbours are timed together."""
ROOM, _LEAST_TIMED = 1_000_000_000, 3
"""Bytes of memory that these may take together, since all are loaded at once; so many are timed in any case."""
SECONDS = 8.0
"""That they are timed for, all together."""
_PROTOCOL = Protocol(width=0.01, seconds=SECONDS, rounds=10, block=0.01, warmup=0.1)
LOSSY = 0.01
"""Noise as a share of the signal (20 dB) from which on an operator is said to lose much."""
_FEW = 16
"""Samples on which operators are tried: what loses much shows on these."""
_LEAST = 0.002
"""Share of the network's time that is too little to tell from none."""


@dataclass(frozen=True)
class Saving:
    """The share of the int8 network's time that int8 saves in one layer (below 0: float is faster), and its error.

    ``noise``: half the width of the 95 % interval of ``value``.
    """

    value: float
    noise: float


def layer_errors(
    source: Path, ranges: Path, method: str, samples: Mapping[str, np.ndarray], capabilities: Capabilities, folder: Path
) -> list[float]:
    """What int8 costs each layer alone, in the order of ``quantizable_layers``: noise as a share of the outputs.

    ``ranges``: what ``collect_ranges`` wrote for ``source`` by ``method``; ``folder``: for the files made on the way.
    Infinite for a layer whose file cannot be made or does not run.
    """
    alone = [(name,) for name in quantizer.quantizable_layers(source)]
    return _errors(source, ranges, method, samples, capabilities, folder, alone)


def operator_errors(
    source: Path, ranges: Path, method: str, samples: Mapping[str, np.ndarray], capabilities: Capabilities, folder: Path
) -> dict[str, float]:
    """As ``layer_errors``, of all nodes of one operator together; by name, for the operators that are no products.

    Empty where the whole file in int8 loses less than LOSSY: then none of them does.
    """
    others = other_operators(read_plain(source, LEAST_OPSET))
    samples = {name: x[:_FEW] for name, x in samples.items()}
    if not others or _errors(source, ranges, method, samples, capabilities, folder, [()])[0] <= LOSSY:
        return {}
    alone = [tuple(nodes) for nodes in others.values()]
    found = _errors(source, ranges, method, samples, capabilities, folder, alone)
    return dict(zip(others, found, strict=True))


def _errors(
    source: Path, ranges: Path, method: str, samples: Mapping[str, np.ndarray], capabilities: Capabilities,
    folder: Path, alone: Sequence[tuple[str, ...]],
) -> list[float]:  # fmt: skip
    """What each set of nodes costs, quantized alone; an empty one stands for the whole file."""
    model = read_plain(source)
    reference = quantizer.outputs(source, model, samples)
    errors = []
    for names in alone:
        path = folder / "one.onnx"
        try:
            quantizer.quantize_static(source, path, ranges, method, capabilities, only=names)
            errors.append(noise_share(reference, quantizer.outputs(path, model, samples)))
        except (QuantizeError, ModelError, MeasurementError):
            errors.append(float("inf"))  # of this alone: the others can still be told apart
        path.unlink(missing_ok=True)
    return errors


def files_timed(layers: int, operators: int, *, slow_to_load: bool = False) -> int:
    """How many files ``layer_savings`` makes and times for so many layers and operators."""
    return 1 + min(MOST // 3 if slow_to_load else MOST, layers) + operators


def layer_savings(
    source: Path,
    ranges: Path,
    method: str,
    samples: Mapping[str, np.ndarray],
    capabilities: Capabilities,
    target: Target,
    folder: Path,
    operators: Sequence[str] = (),
) -> list[Saving]:
    """What int8 saves of the time (or of what is counted) by each layer, in the order of ``quantizable_layers``.

    Then by each of ``operators``, all of its nodes together. Raises MeasurementError as the target does.
    """
    names = quantizer.quantizable_layers(source)
    first = {name: x[:1] for name, x in samples.items()}
    each = grown_by_one(source, first)
    most = min(MOST // 3 if target.slow_to_load else MOST, max(_LEAST_TIMED, memory.room(ROOM) // max(1, each)))
    groups = [list(part) for part in np.array_split(np.arange(len(names)), min(most, len(names)))]
    kept = [tuple(names[i] for i in group) for group in groups] + [(name,) for name in operators]
    files = [folder / "int8.onnx", *(folder / f"without{i}.onnx" for i in range(len(kept)))]
    quantizer.quantize_static(source, files[0], ranges, method, capabilities)
    for path, some in zip(files[1:], kept, strict=True):
        quantizer.quantize_static(source, path, ranges, method, capabilities, keep_float=some)
    zero, *found = target.measure(files, inputs=first, protocol=_PROTOCOL)
    savings: list[Saving] = []
    for some, measurement in zip(kept, found, strict=True):
        value, noise = _gain(zero, measurement)
        savings += [Saving(value / len(some), noise / len(some))] * len(some)
    return savings


def float_order(errors: Sequence[float | None], savings: Sequence[Saving]) -> tuple[int, ...]:
    """Positions of the layers, those first that should stay in float first.

    An error of None is not finite: the worst. Without ``savings`` errors alone decide.
    """
    known = [float("inf") if error is None else error for error in errors]
    if not savings:
        return tuple(sorted(range(len(known)), key=lambda i: -known[i]))

    def key(i: int) -> tuple[bool, float, float]:
        one = savings[i]
        faster_in_float = one.value < -max(one.noise, _LEAST)
        worth = known[i] / max(one.value, one.noise, _LEAST)
        return (not faster_in_float, one.value if faster_in_float else -worth, -known[i])

    return tuple(sorted(range(len(known)), key=key))


def _gain(zero: Measurement, one: Measurement) -> tuple[float, float]:
    """Share of the first's cost that the second takes more, and half its interval."""
    if one.latency is not None:
        return one.latency.ratio - 1.0, (one.latency.high - one.latency.low) / 2
    if one.count and zero.count:
        return one.count / zero.count - 1.0, 0.0
    return 0.0, 0.0

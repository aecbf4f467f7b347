"""Where a quantized file loses what it loses: the values inside it against those of the float file, layer by layer.

One pass over both. The noise of a layer's output is what reaches it and what it adds; it is charged with the
difference, and so where damage shows: values of uneven size may hide it until they are evened out. A value that is
quantized is looked at behind its quantizer, so that a range that does not fit is charged to the layer that puts it out.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from compress.float_models.plain_models import LEAST_OPSET, read_plain, with_types
from compress.onnx_files.contents import inputs_of
from compress.onnx_files.graphs import read_unchecked
from targets.errors import CompressError
from targets.target import Target

_ROOM = 128 * 2**20
"""Bytes of inner values of a file that are looked at at once."""
_LOOKS = 6
"""Times that as many values as have room are looked at, after the first."""
_FIRST = 16
"""Inner values that are looked at before it is known how large they are."""
_WORST = 1e6
"""Noise as a share of the signal, at most: what is not finite counts as that."""


@dataclass(frozen=True)
class Damage:
    """What one layer loses in int8."""

    layer: str
    """The node's name."""
    operator: str
    sqnr: float
    """Decibels of its output, with all that was lost before it."""
    added: float
    """Its own part: noise as a share of the signal at its output, less the noisiest of its inputs."""


def locate(source: Path, made: Path, batch: Mapping[str, np.ndarray], checker: Target) -> tuple[Damage, ...]:
    """What each layer of ``source`` adds to the noise in ``made``, the largest first.

    ``batch``: one batch by input name. Nothing where the inside of a file cannot be looked at.
    """
    try:
        model = with_types(read_plain(source, LEAST_OPSET))
        names, behind = _common(model, read_unchecked(made))
        if not names:
            return ()
        made_model = read_unchecked(made)
        free = not any(axes and axes[0].dim_value for axes in (v.type.tensor_type.shape.dim for v in inputs_of(model)))
        one = {name: x[:1] for name, x in batch.items()} if free else batch
        noise, size = _noises(model, made_model, names, behind, one, checker)
        count = min(_ROOM // max(1, size), max((len(x) for x in batch.values() if x.ndim), default=1))
        if free and count > 1:
            more = {name: x[:count] for name, x in batch.items()}
            noise, _ = _noises(model, made_model, names, behind, more, checker)
    except CompressError:
        return ()
    except Exception:  # the runtime cannot make an output of some inner value: there is nothing to be told then
        return ()
    return tuple(sorted(_charged(model, noise), key=lambda one: -one.added))


def _noises(
    model: onnx.ModelProto, made: onnx.ModelProto, names: Sequence[str], behind: Mapping[str, str],
    batch: Mapping[str, np.ndarray], checker: Target,
) -> tuple[dict[str, float], int]:  # fmt: skip
    """The noise of inner values for one batch, and the bytes that those take.

    Some values at a time, as many as have room: of a network on long sounds all of them are gigabytes. There it is not
    all of them that are looked at: what is lost in one that is left out shows in the next.
    """
    noise: dict[str, float] = {}
    left, size, count = list(names), 0, _FIRST
    while left:
        some, left = left[:count], left[count:]
        expected = _inside(model, some, batch, checker)
        found = _inside(made, [behind[name] for name in some], batch, checker)
        first = not noise
        noise |= {name: _noise(a, b) for name, a, b in zip(some, expected, found, strict=True)}
        size += sum(values.nbytes for values in expected)
        each = max(1, size // len(noise))
        count = max(1, _ROOM // each)
        if first:
            left = left[::-1][:: max(1, round(each * len(left) / (_LOOKS * _ROOM)))][::-1]
    return noise, size


def _common(model: onnx.ModelProto, made: onnx.ModelProto) -> tuple[list[str], dict[str, str]]:
    """Values of floats that both files have, and the name each has in ``made`` behind its quantizer, if it has one."""
    floats = {
        value.name
        for value in (*model.graph.value_info, *model.graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    there = {name for node in made.graph.node for name in node.output}
    quantized = {node.output[0]: node.input[0] for node in made.graph.node if node.op_type == "QuantizeLinear"}
    behind = {
        quantized[node.input[0]]: node.output[0]
        for node in made.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in quantized
    }
    names = [name for node in model.graph.node for name in node.output if name in floats and name in there]
    return names, {name: behind.get(name, name) for name in names}


def _inside(
    model: onnx.ModelProto, names: Sequence[str], batch: Mapping[str, np.ndarray], checker: Target
) -> list[np.ndarray]:
    """The values called ``names`` for one batch; raises what the target does."""
    model = copy.deepcopy(model)
    del model.graph.output[:]
    unique = list(dict.fromkeys(names))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in unique)
    size = max((len(x) for x in batch.values() if x.ndim), default=1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inside.onnx"
        onnx.save(model, path)
        found = dict(zip(unique, checker.run(path, batch, batch=size), strict=True))
    return [found[name] for name in names]


def _noise(expected: np.ndarray, found: np.ndarray) -> float:
    """Noise as a share of the signal."""
    if expected.shape != found.shape:
        return _WORST
    finite = np.isfinite(expected)
    a, b = expected[finite].astype(np.float64), found[finite].astype(np.float64)
    if not np.isfinite(b).all():
        return _WORST
    signal, noise = float(np.square(a).sum()), float(np.square(a - b).sum())
    return min(_WORST, noise / signal) if signal > 0 else float(noise > 0)


def _charged(model: onnx.ModelProto, noise: Mapping[str, float]) -> list[Damage]:
    """What each node adds, in graph order; what a folded activation adds is that of the layer it is folded into."""
    known = dict(noise)
    maker = {name: node for node in model.graph.node for name in node.output}
    found = []
    for node in model.graph.node:
        before = max((known[name] for name in node.input if name in known), default=0.0)
        seen = [noise[name] for name in node.output if name in noise]
        if not seen:
            known.update(dict.fromkeys(node.output, before))
            continue
        layer = node
        folded = node.op_type in ("Relu", "Clip") and node.input[0] not in noise and node.input[0] in maker
        if folded:
            layer = maker[node.input[0]]
        share = max(seen)
        decibels = 200.0 if share == 0 else float(-10 * np.log10(share))
        found.append(Damage(layer.name, layer.op_type, round(decibels, 2), max(0.0, share - before)))
    return found

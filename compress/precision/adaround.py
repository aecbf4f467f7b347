"""Weights rounded up or down by what a layer puts out, not each to its nearest integer (AdaRound, Nagel et al. 2020).

With s a row's scale, X a layer's inputs in the float model and Y those that the layers before it, rounded already, give
it, the integers of a row are to minimise

    || w X - s q Y ||^2  =  s^2 q A q' - 2 s w B q' + const,      A = Y Y',  B = X Y',

each q_j being floor(w_j / s) or that plus one. The paper relaxes the choice and learns it by gradient descent; the sum
needs only A and B, so here one weight after the other is turned to its other integer, always the one that gains most,
until none gains. That starts at the nearest integers and is never worse than they are on the calibration samples; it
is the same each time. Left out: the activation function behind the layer, and rounding across layers.

The rewritten weights are s q in floats: with the scales that ONNX Runtime's quantizer takes (largest value of a row
over 127, or 64 with a reduced range) they become q again when quantized, since the largest value stays where it is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import onnx

from compress.onnx_files.contents import attributes_of
from compress.precision.activations import paired_values
from compress.precision.products import Product, find_products
from targets.target import Capabilities

_COLUMNS = 1 << 14
"""Inputs of a product (places of a convolution count each) that are looked at, at most."""
_SWEEPS = 4
"""Turned weights at most, as a multiple of a row's length."""


def round_weights(
    model: onnx.ModelProto,
    samples: Mapping[str, np.ndarray],
    capabilities: Capabilities,
    keep_float: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """A copy of ``model``, whose nodes must have names, with weights that quantize to the integers found here.

    The nodes in ``keep_float`` stay as they are.
    """
    original, model = model, copy.deepcopy(model)
    graph = find_products(model)
    for product in graph.products:
        if product.name in keep_float or not _known(product):
            continue
        rows = product.rows(graph.array(product.weight))
        if not np.isfinite(rows).all():
            continue
        a, b = _moments(original, model, product, rows, samples)
        q, scale = _integers(rows, a, b, 64 if capabilities.reduce_range else 127)
        found = (q * scale[:, None]).astype(np.float32).reshape(rows.shape)
        graph.write(product.weight, product.rows(found))
    return model


def scaled_rows(rows: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows / scales, scales): rows (n, length), each divided by its scale so that its largest size becomes ``most``.

    Nothing is rounded. Scales are (n,); a row of zeros has scale 1.
    """
    largest = np.abs(rows).max(axis=1)
    scale = np.where(largest > 0, largest / most, 1.0)
    return rows / scale[:, None], scale


def _integers(rows: np.ndarray, a: np.ndarray, b: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers (out, length) and scales (out,) of ``rows``; ``a``, ``b``: (groups, length, length)."""
    wide = rows.reshape(len(rows), -1).astype(np.float64)
    exact, scale = scaled_rows(wide, most)
    each = len(rows) // len(a)
    found = [_turned(exact[g * each : (g + 1) * each], a[g], b[g], most) for g in range(len(a))]
    return np.concatenate(found), scale


def _turned(exact: np.ndarray, a: np.ndarray, b: np.ndarray, most: int) -> np.ndarray:
    """Greedy search from the nearest integers; all rows at once. The scale of a row drops out of the comparison."""
    q: np.ndarray = np.rint(exact)
    low = np.floor(exact)
    other = np.where(q == low, low + 1, low)
    # The largest weight holds the scale; an integer needs no other one; none goes beyond the largest.
    fixed = (np.abs(exact) >= most - 1e-6) | (exact == low) | (np.abs(other) > most)
    gradient = q @ a - exact @ b
    diagonal = np.diag(a)
    numbers = np.arange(len(exact))
    for _ in range(_SWEEPS * exact.shape[1]):
        step = other - q
        change = np.where(fixed, 0.0, 2 * step * gradient + step**2 * diagonal)
        best = change.argmin(axis=1)
        gains = change[numbers, best] < -1e-9 * np.abs(diagonal).max(initial=0.0)
        if not gains.any():
            break
        at, column = numbers[gains], best[gains]
        gradient[at] += step[at, column][:, None] * a[column]
        q[at, column], other[at, column] = other[at, column], q[at, column]
    return q


def _moments(
    original: onnx.ModelProto, model: onnx.ModelProto, product: Product, rows: np.ndarray,
    samples: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """A = Y Y' and B = X Y' (groups, length, length), where X is read in ``original`` and Y in ``model``."""
    length = rows[0].size
    a, b = np.zeros((2, product.groups, length, length))
    name = product.node.input[0]
    count = max(len(x) for x in samples.values())
    for [x], [y] in paired_values([original, model], [name], samples):
        most = max(1, _COLUMNS * len(x) // count)
        wide, tall = columns(x, product, rows.shape[2:], most), columns(y, product, rows.shape[2:], most)
        turned = tall.transpose(0, 2, 1)
        a += tall @ turned
        b += wide @ turned
    return a, b


def columns(x: np.ndarray, product: Product, kernel: tuple[int, ...], most: int) -> np.ndarray:
    """The columns that a product's rows are multiplied with, (groups, length, n), for its inputs ``x``.

    ``kernel``: of a convolution, whose columns are the patches of its input. At most ``most`` columns are taken, evenly
    from all places.
    """
    if product.node.op_type != "Conv":
        wide = x.reshape(-1, x.shape[-1]).T[None]
        return wide[:, :, :: -(-wide.shape[2] // most)]
    found = attributes_of(product.node)
    places = len(kernel)
    pads = _list(found.get("pads"), [0] * 2 * places)
    strides, dilations = _list(found.get("strides"), [1] * places), _list(found.get("dilations"), [1] * places)
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:places], pads[places:], strict=True)])
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, places + 2)))
    steps = tuple(slice(None, None, step) for step in (1, 1, *strides, *dilations))
    windows = windows[steps]
    # (batch, channels, *places, *kernel): some of (batch, *places), before anything is copied
    shape = (len(x), *windows.shape[2 : places + 2])
    step = -(-int(np.prod(shape)) // most)
    batch, *at = np.unravel_index(np.arange(0, int(np.prod(shape)), step), shape)
    # The channels come after the chosen places, the kernel last.
    chosen: np.ndarray = np.moveaxis(windows, 1, places + 1)[(batch, *at)]
    return chosen.reshape(len(batch), product.groups, -1).transpose(1, 2, 0)


def _known(product: Product) -> bool:
    """Whether its padding is written in numbers."""
    return attributes_of(product.node).get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID", "NOTSET", "VALID")


def _list(value: object, default: list[int]) -> list[int]:
    """An attribute's whole numbers; ``default`` where it is not given."""
    return [int(v) for v in value] if isinstance(value, (list, tuple)) else default

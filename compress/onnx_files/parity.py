"""The parity check: does an ONNX file compute what the network does that it was made of?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from compress.networks.running import copies, evaluating, outputs_of
from compress.onnx_files.sessions import open_session
from compress.values.candidates import Parity
from compress.values.error_lines import one_line, root_cause
from targets.errors import ExportError, ModelError, ParityError
from targets.target import Target

TOLERANCE = 1e-4
"""Largest difference allowed, as a share of the largest output (at least of 1)."""


def check_parity(path: Path, module: nn.Module, inputs: tuple[Tensor, ...], *, enforce: bool = True) -> Parity:
    """Compare the outputs of the file with those of ``module`` (in eval mode) on ``inputs``, at two batch sizes.

    A file that takes one number of samples only is compared at that one, on two batches of it. ``inputs``: samples,
    batch first, in the order of the file's inputs. ``enforce``: raise ParityError when they differ by more than
    TOLERANCE; False for quantized files, whose difference is a property and no error.

    Returns the largest difference and the share of samples on which both decide for the same class. Raises ParityError
    for a file that does not load, does not run or gives other shapes, ExportError for a module that does not run at
    a batch size that the file takes, MeasurementError where ONNX Runtime crashes or does not answer.
    """
    try:
        session = open_session(path)
    except ModelError as error:
        raise ParityError(f"{path.name} does not load in ONNX Runtime: {error}") from None
    names = [node.name for node in session.get_inputs()]
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    worst, scale, same, count = 0.0, 1.0, 0, 0
    for batch in _batches(inputs, session.batch):
        size = sample_count(batch)
        try:
            with evaluating(module), torch.no_grad():
                expected = [x.cpu().numpy() for x in outputs_of(module(*copies(tuple(x.to(device) for x in batch))))]
        except Exception as error:
            raise ExportError(
                f"{type(module).__name__} cannot be exported to ONNX: it does not run on a batch of {size} "
                f"({one_line(root_cause(error), kind=True)}); let it take any batch"
            ) from None
        try:
            found = session.run(None, {name: x.cpu().numpy() for name, x in zip(names, batch, strict=True)})
        except (ModelError, ValueError) as error:
            raise ParityError(f"{path.name} does not run at batch {size}: {error}") from None
        for a, b in zip(expected, found, strict=True):
            if a.shape != b.shape:
                raise ParityError(f"{path.name}: output is {b.shape} at batch {size}, the network gives {a.shape}")
            # `np.maximum`, since the built-in one loses NaN.
            worst = float(np.maximum(worst, _difference(a, b)))
            scale = max(scale, float(np.abs(a[np.isfinite(a)]).max(initial=0.0)))
        same += int((_decision(expected[0]) == _decision(found[0])).sum())
        count += _decision(expected[0]).size
    # `not <=` so that NaN is caught as well.
    if enforce and not worst <= TOLERANCE * scale:
        raise ParityError(
            f"{path.name} differs from the network by {worst:.3g} where {TOLERANCE * scale:.3g} is allowed"
        )
    return Parity(worst, same / count if count else 1.0)


def compare_with_target(
    path: Path, target: Target, names: Sequence[str], module: nn.Module, inputs: tuple[Tensor, ...]
) -> Parity:
    """The same for a file that only ``target`` runs; its difference is a property. ``names``: of the inputs."""
    with evaluating(module), torch.no_grad():
        expected = [x.cpu().numpy() for x in outputs_of(module(*copies(inputs)))]
    found = target.run(path, {name: x.cpu().numpy() for name, x in zip(names, inputs, strict=True)})
    worst = max(_difference(a, b) for a, b in zip(expected, found, strict=True))
    return Parity(worst, float((_decision(expected[0]) == _decision(found[0])).mean()))


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of two values in the same place; equal infinities do not differ."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return float(np.where(a == b, 0.0, np.abs(a - b)).max(initial=0.0))


def _decision(output: np.ndarray) -> np.ndarray:
    """The class of each sample; all the same where the output is no scores of classes."""
    return output.argmax(axis=1) if output.ndim >= 2 and output.shape[1] > 1 else np.zeros(len(output))


def _batches(inputs: tuple[Tensor, ...], fixed: int | None) -> list[tuple[Tensor, ...]]:
    """What is compared: one sample and several, or two batches of the number of samples that the file takes."""
    count = sample_count(inputs)
    if fixed is None:
        return [with_batch(inputs, size) for size in (1, max(3, count))]
    both = with_batch(inputs, 2 * fixed)
    first = batch_first(inputs)
    return [
        tuple(x[s] if f else x for x, f in zip(both, first, strict=True)) for s in (slice(fixed), slice(fixed, None))
    ]


def sample_count(inputs: tuple[Tensor, ...]) -> int:
    """The number of samples in ``inputs``: the length of the first that has an axis; 1 where none has."""
    return next((len(x) for x in inputs if x.ndim), 1)


def batch_first(inputs: tuple[Tensor, ...]) -> list[bool]:
    """For each input, whether its first axis is that of the samples: one of another length is something else's."""
    return [x.ndim > 0 and len(x) == sample_count(inputs) for x in inputs]


def with_batch(inputs: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    """``inputs`` repeated or cut to ``size`` samples, detached and on the CPU; those without samples as they are."""
    return tuple(
        (torch.cat([x] * (-(-size // len(x))))[:size] if first else x).detach().cpu().contiguous()
        for x, first in zip(inputs, batch_first(inputs), strict=True)
    )

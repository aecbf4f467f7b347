"""Writes down the operators of one run: what each reads and makes, and the labels of its channels.

What compilers of graphs for small devices fuse counts as one operator here: a normalisation into the product before
it, and an activation into what computes its input, where nothing else reads that. What is computed from no input, as a
table of angles, is a constant and no value.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from compress.networks.running import copies, repeatable, tensors_in, unfused
from compress.tracing.channels import ChannelMode
from compress.tracing.labels import ChannelTrace, Labels

_PRODUCTS = ("convolution", "addmm", "mm", "bmm", "baddbmm")
_NORMALISATIONS = ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
                   "cudnn_batch_norm")  # fmt: skip
_ACTIVATIONS = ("relu", "hardtanh", "clamp", "clamp_min")
_SUMS = ("add", "sub", "mul")
"""Beside products, what an activation is fused into."""


@dataclass
class RecordedStep:
    """One operator: the numbers of the values that it reads and makes."""

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    padded: tuple[int, ...] = ()
    """Shape of a convolution's input with its border, where that is larger than it must be."""
    weight: Labels | None = None
    """Of a convolution over several positions: the labels of what its filters are multiplied by, at one of them."""
    depthwise: bool = False


@dataclass
class RecordedRun:
    """The values of a run by number, the network's inputs first, and its operators in their order."""

    seen: ChannelTrace
    labels: list[Labels] = field(default_factory=list)
    """Of every value, for one example where the run was given one."""
    inputs: int = 0
    outputs: tuple[int, ...] = ()
    steps: list[RecordedStep] = field(default_factory=list)


def record_run(module: nn.Module, inputs: tuple[Tensor, ...]) -> RecordedRun:
    """The run of ``module`` on the first of ``inputs``; raises what its forward raises."""
    one = copies(tuple(x[:1] if x.ndim else x for x in inputs))
    mode = _Recorder(module, one)
    with repeatable(module), unfused(), mode:
        outputs = tensors_in(module(*one))
    mode.run.outputs = tuple(dict.fromkeys(n for x in outputs for n in [mode.number(x)] if n is not None))
    mode.run.steps = _breadth_first(_fused(mode.run))
    return mode.run


class _Recorder(ChannelMode):  # type: ignore[no-untyped-call]
    """Labels the channels of a run, and numbers the values that its operators read and make."""

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        super().__init__(module, inputs)
        self._numbers: dict[int, int] = {}
        self._held: list[Tensor] = []
        """All tensors, so that no place in memory is used twice."""
        self.run = RecordedRun(self.found, inputs=len(inputs))
        for x in inputs:
            self._add(x)

    def number(self, tensor: Tensor) -> int | None:
        """The number of the value that ``tensor`` is, or is a view of; None of a constant."""
        return self._numbers.get(tensor.untyped_storage().data_ptr())

    def _add(self, tensor: Tensor) -> int:
        self._held.append(tensor)
        self._numbers[tensor.untyped_storage().data_ptr()] = len(self.run.labels)
        self.run.labels.append(self.labels(tensor))
        return len(self.run.labels) - 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, label its results, and write down what is new among them."""
        result = super().__torch_dispatch__(func, types, args, kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        reads = tuple(dict.fromkeys(n for x in given for n in [self.number(x)] if n is not None))
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor) and x.numel()]
        self._held += made
        if reads:
            places = {x.untyped_storage().data_ptr() for x in given}
            writes = tuple(self._add(x) for x in made[: _results(func)] if x.untyped_storage().data_ptr() not in places)
            if writes:
                step = RecordedStep(func.overloadpacket.__name__.removesuffix("_"), reads, writes)
                if step.name == "convolution":
                    self._look_at(step, args)
                self.run.steps.append(step)
        return result

    def _look_at(self, step: RecordedStep, args: tuple[Any, ...]) -> None:
        """Note a convolution's border and window; ``args`` are those of ``aten.convolution``."""
        x, weight, _, strides, borders, dilations, transposed, _, groups = args
        spaces, kernel = x.shape[2:], weight.shape[2:]
        if transposed:
            return
        each = zip(spaces, kernel, *(_each(some, len(spaces)) for some in (strides, borders, dilations)), strict=True)
        if any(not _is_least(*axis) for axis in each):
            border = _each(borders, len(spaces))
            step.padded = (*x.shape[:2], *(n + 2 * b for n, b in zip(spaces, border, strict=True)))
        if math.prod(kernel) > 1:
            step.depthwise = groups == x.shape[1] > 1
            labels = self.labels(weight)
            step.weight = labels if step.depthwise else labels[1:]


def _results(func: Any) -> int:
    """How many of an operator's results are needed when nothing is trained."""
    return 1 if func.overloadpacket.__name__ in (*_NORMALISATIONS, "native_layer_norm", "native_group_norm",
                                                 "max_pool2d_with_indices") else 1 << 30  # fmt: skip


def _each(given: Any, count: int) -> tuple[int, ...]:
    return tuple(given) * count if len(given) == 1 else tuple(given)


def _is_least(size: int, kernel: int, stride: int, border: int, dilation: int) -> bool:
    """Whether there is no border, or the least that leaves ceil(size / stride) places, shared alike by both ends.

    Convolutions of TensorFlow know no other ones (``VALID`` and ``SAME``).
    """
    least = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return border == 0 or 2 * border == least


def _fused(run: RecordedRun) -> list[RecordedStep]:
    """The steps with normalisations and activations as part of what they follow; values keep their numbers."""
    readers = Counter(number for step in run.steps for number in step.reads)
    made_by: dict[int, RecordedStep] = {}
    kept: list[RecordedStep] = []
    for step in run.steps:
        first = step.reads[0]
        before = made_by.get(first) if len(step.reads) == 1 else None
        into = _PRODUCTS if step.name in _NORMALISATIONS else _PRODUCTS + _SUMS if step.name in _ACTIVATIONS else ()
        if before is not None and before.name in into and readers[first] == 1 and first not in run.outputs:
            before.writes = step.writes
            made_by[step.writes[0]] = before
        else:
            kept.append(step)
            made_by |= dict.fromkeys(step.writes, step)
    return kept


def _breadth_first(steps: list[RecordedStep]) -> list[RecordedStep]:
    """``steps`` in the order in which converters write operators: what could be computed first comes first.

    So branches take turns, and more is live at a time than in the order in which a module computes them.
    """
    missing = [0] * len(steps)
    readers: dict[int, list[int]] = {}
    written = {number for step in steps for number in step.writes}
    for i, step in enumerate(steps):
        for number in written.intersection(step.reads):
            missing[i] += 1
            readers.setdefault(number, []).append(i)
    ready = deque(i for i, count in enumerate(missing) if not count)
    found: list[RecordedStep] = []
    while ready:
        found.append(steps[ready.popleft()])
        for number in found[-1].writes:
            for i in readers.get(number, ()):
                missing[i] -= 1
                if not missing[i]:
                    ready.append(i)
    return found

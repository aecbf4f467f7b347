"""Residual blocks of a network, seen in one run: what may be dropped so that the input of ``x + f(x)`` passes alone.

A dispatch mode numbers every value that the operators make, hooks tell which module each lies in. A residual addition
is one whose one summand was computed from the other, of the same shape. It can be dropped in two ways: a module that
computes ``tail(x + f(x))`` and nothing else becomes its tail (pre-activation, post-activation, a whole transformer
layer); or the last module of ``f`` becomes a zero (an attention or feed-forward sublayer), and what only served it
goes as well. Additions that neither covers are left alone, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compress.networks.running import repeatable, tensors_in, unfused

_ADDITIONS = ("aten.add.Tensor", "aten.add_.Tensor")
_ACTIVATIONS = {
    "aten.relu": "torch.nn.ReLU", "aten.silu": "torch.nn.SiLU", "aten.hardswish": "torch.nn.Hardswish",
}  # fmt: skip
_POSITIVE = ("aten.relu", "aten.sigmoid", "aten.hardsigmoid")
_MONOTONE = ("aten.max_pool2d_with_indices", "aten.avg_pool2d", "aten.view", "aten.clone", "aten.mean")
"""What gives nothing negative where it is given nothing negative."""
_LINEAR = ("aten.mul", "aten.div", "aten.transpose", "aten.permute", "aten.clone")
"""What lies between the last module of a branch and the addition, and makes a zero of a zero."""


@dataclass(frozen=True)
class Block:
    """A removable residual block, by the names of modules."""

    name: str
    """The module that is replaced."""
    shortcut: bool
    """Whether the module has its shortcut inside and becomes its tail; else it ends the branch and becomes a zero."""
    additions: tuple[tuple[int, int], ...]
    """Which additions of the run (see ``_adds``) add the branch, and as which of their summands; for the oracle."""
    place: int = 0
    """Which argument the module passes on, counted among its tensors."""
    tail: tuple[str, ...] = ()
    """What else the module does: names of its children, or of activations as ``torch.nn.ReLU``."""
    outputs: int = 0
    """Length of the tuple that the module gives, of which the first is meant; 0: a tensor."""
    rank: int = 0
    """Number of dimensions of what it gives."""
    turned: bool = False
    """Whether its dimensions are permuted before they are added."""
    served: tuple[str, ...] = ()
    """Modules elsewhere that computed something for it alone."""


@dataclass(frozen=True)
class ExecutedOperator:
    """One operator that was executed, with the numbers of the values that it took and gave."""

    name: str
    """As ``aten.relu``: overload and in-place mark left out."""
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass
class ModuleCall:
    """One call of a module: the operators that were executed in it, from ``start`` up to ``end``."""

    name: str
    start: int
    inputs: tuple[int, ...]
    """Numbers of the values that it takes."""
    end: int = -1
    result: int = -1
    """The number of the first tensor that it gives."""
    outputs: int = 0
    """Length of the tuple that it gives; 0: a tensor."""
    rank: int = 0
    """Number of dimensions of its result."""


class RecordedRun:
    """The values, operators and module calls of one run of ``module``, which must be in eval mode, on ``inputs``."""

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.module = module
        self.operators: list[ExecutedOperator] = []
        self.sums: dict[int, tuple[int, int]] = {}
        """Addition of equal shapes -> its two summands."""
        self.calls: list[ModuleCall] = []
        self._values: dict[int, int] = {}
        self._held: list[Tensor] = []
        open_calls: list[ModuleCall] = []
        hooks = []
        for name, layer in module.named_modules():
            if name:
                hooks.append(layer.register_forward_pre_hook(self._entering(name, open_calls), with_kwargs=True))
                hooks.append(layer.register_forward_hook(self._leaving(open_calls)))
        try:
            with unfused(), _Recording(self):
                outputs = module(*inputs)
        finally:
            for hook in hooks:
                hook.remove()
        self.outputs = tuple(self.value(t) for t in tensors_in(outputs))
        self.made = {value: k for k, op in enumerate(self.operators) for value in op.outputs}
        self.names = {call.name: [c for c in self.calls if c.name == call.name] for call in self.calls}

    def value(self, tensor: Tensor) -> int:
        """The number of the value that ``tensor`` holds now; a new one for a tensor that has not been seen."""
        found = self._values.get(id(tensor))
        return self.fresh(tensor) if found is None else found

    def fresh(self, tensor: Tensor) -> int:
        """A new number for ``tensor``, which is kept alive so that nothing else gets its id."""
        self._held.append(tensor)
        self._values[id(tensor)] = len(self._held)
        return len(self._held)

    def _entering(self, name: str, open_calls: list[ModuleCall]) -> Callable[..., None]:
        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            given = tuple(self.value(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
            call = ModuleCall(name, len(self.operators), given)
            self.calls.append(call)
            open_calls.append(call)

        return enter

    def _leaving(self, open_calls: list[ModuleCall]) -> Callable[..., None]:
        def leave(_: nn.Module, __: Any, outputs: Any) -> None:
            call = open_calls.pop()
            call.end = len(self.operators)
            first = outputs[0] if isinstance(outputs, tuple) and outputs else outputs
            if isinstance(first, Tensor):
                call.result, call.rank = self.value(first), first.ndim
                call.outputs = len(outputs) if isinstance(outputs, tuple) else 0

        return leave

    def before(self, values: Iterable[int], cut: Iterable[tuple[int, int]] = ()) -> set[int]:
        """All values that these were computed from, and these; ``cut``: (operator, input) that are not followed."""
        severed = set(cut)
        found: set[int] = set()
        left = list(values)
        while left:
            value = left.pop()
            if value in found:
                continue
            found.add(value)
            k = self.made.get(value)
            if k is not None:
                left += [i for i in self.operators[k].inputs if (k, i) not in severed]
        return found

    def positive(self, value: int) -> bool:
        """Whether nothing in a value is negative, as far as the operators that made it tell."""
        k = self.made.get(value)
        if k is None:
            return False
        name = self.operators[k].name
        return name in _POSITIVE or (name in _MONOTONE and self.positive(self.operators[k].inputs[0]))

    def users(self, value: int, start: int = 0, end: int | None = None) -> list[int]:
        """The operators from ``start`` up to ``end`` (None: the last) that take a value."""
        last = len(self.operators) if end is None else end
        return [k for k in range(start, last) if value in self.operators[k].inputs]

    def residual(self) -> dict[int, tuple[int, int]]:
        """The residual additions: {operator: (its summand that is the shortcut, the one that is the branch)}."""
        found = {}
        for k, (first, second) in self.sums.items():
            if first != second and first in self.before([second]):
                found[k] = (first, second)
            elif first != second and second in self.before([first]):
                found[k] = (second, first)
        return found

    def held(self, name: str) -> int:
        """The number of parameters that the module of that name holds, its submodules included."""
        return sum(p.numel() for p in self.module.get_submodule(name).parameters())

    def once(self, name: str) -> ModuleCall | None:
        """The only call of the module of that name; None where it is called several times or never."""
        calls = self.names.get(name, [])
        return calls[0] if len(calls) == 1 else None


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operator in ``run``."""

    def __init__(self, run: RecordedRun) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.run = run

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, then number its results."""
        given = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)]
        inputs = tuple(self.run.value(t) for t in given)
        adds = _adds(func, args, kwargs)
        result = func(*args, **(kwargs or {}))
        made = tensors_in(result)
        if adds:
            self.run.sums[len(self.run.operators)] = (inputs[0], inputs[1])
        name = str(func).rpartition(".")[0].removesuffix("_")
        self.run.operators.append(ExecutedOperator(name, inputs, tuple(self.run.fresh(t) for t in made)))
        return result


def possible_blocks(run: RecordedRun) -> tuple[list[Block], list[tuple[str, str]]]:
    """Blocks that may be removable, unchecked, in the order of the run; and where other residual additions stay.

    The blocks are as small as the modules allow: for each addition the innermost module that computes this addition
    alone; where there is none, the module that ends its branch; where there is none either, the module around several
    additions.
    """
    additions = run.residual()
    whole = [block for name in run.names for block in _shortcuts(run, name, additions)]
    found: dict[int, Block] = {}
    kept: dict[str, str] = {}
    for k in additions:
        around = [block for block in whole if [a for a, _ in block.additions] == [k]]
        if around:
            found[k] = max(around, key=lambda block: block.name.count("."))
        elif (block := _branch(run, k, *additions[k])) is not None:
            found[k] = block
    for k in additions:
        around = [b for b in whole if k in dict(b.additions) and not any(a in found for a, _ in b.additions)]
        if k not in found and around:
            block = min(around, key=lambda b: len(b.additions))
            found.update(dict.fromkeys((a for a, _ in block.additions), block))
        elif k not in found and (name := _user_module(run, k)) is not None:
            kept.setdefault(name, "no module of its own ends the branch of a residual addition, and none is the block")
    blocks = list(dict.fromkeys(found[k] for k in sorted(found)))
    number = {k: i for i, k in enumerate(run.sums)}
    numbered = [
        replace(block, served=_served(run, block), additions=tuple((number[k], place) for k, place in block.additions))
        for block in blocks
    ]
    return numbered, list(kept.items())


def _shortcuts(run: RecordedRun, name: str, additions: dict[int, tuple[int, int]]) -> Iterator[Block]:
    """The module as a block with its shortcut inside, for each of its inputs that passes."""
    call = run.once(name)
    if call is None or call.result < 0:
        return
    for place, value in enumerate(call.inputs):
        chain = _chain(run, call, value, additions)
        if chain is not None:
            dropped, tail = chain
            marked = tuple((k, run.sums[k].index(additions[k][1])) for k in dropped)
            yield Block(name, True, marked, place, tail, call.outputs, call.rank)


def _chain(
    run: RecordedRun, call: ModuleCall, value: int, additions: dict[int, tuple[int, int]]
) -> tuple[list[int], tuple[str, ...]] | None:
    """The way from an input of a call to its result past the branches: additions on it, and the rest of it."""
    dropped: list[int] = []
    tail: list[str] = []
    positive = run.positive(value)
    while not (dropped and value == call.result):
        inside = ((k, branch) for k, (shortcut, branch) in additions.items() if shortcut == value)
        added = [k for k, branch in inside if call.start <= k < call.end and run.made.get(branch, -1) >= call.start]
        if added:
            dropped.append(added[0])
            value = run.operators[added[0]].outputs[0]
            continue
        step = _step(run, call, value)
        if step is None:
            return None
        name, value = step
        rectifies = name == "torch.nn.ReLU" or (
            "." not in name and isinstance(run.module.get_submodule(f"{call.name}.{name}"), nn.ReLU)
        )
        positive = positive and rectifies
        if not positive:  # what is positive already passes a ReLU unchanged
            tail.append(name)
    return dropped, tuple(tail)


def _step(run: RecordedRun, call: ModuleCall, value: int) -> tuple[str, int] | None:
    """What alone takes ``value`` inside a call, and what it gives: a child of the module, or an activation."""
    users = run.users(value, call.start, call.end)
    for child in run.calls:
        if child.name.rpartition(".")[0] != call.name or child.inputs != (value,) or child.outputs or child.result < 0:
            continue
        inside = bool(users) and all(child.start <= k < child.end for k in users)
        if inside and call.start <= child.start and (not run.held(child.name) or run.once(child.name)):
            return child.name.rpartition(".")[2], child.result
    if len(users) != 1 or run.operators[users[0]].name not in _ACTIVATIONS:
        return None
    return _ACTIVATIONS[run.operators[users[0]].name], run.operators[users[0]].outputs[0]


def _branch(run: RecordedRun, k: int, shortcut: int, branch: int) -> Block | None:
    """The module that ends the branch of addition ``k``, to become a zero."""
    marked = ((k, run.sums[k].index(branch)),)
    value, user, turned = branch, k, False
    while run.users(value) == [user]:
        ends = [c for c in run.calls if c.result == value and c.end <= user and run.once(c.name) and run.held(c.name)]
        ends = [c for c in ends if not c.start <= run.made.get(shortcut, -1) < c.end]
        if ends:
            end = max(ends, key=lambda c: run.held(c.name))
            return Block(end.name, False, marked, outputs=end.outputs, rank=end.rank, turned=turned)
        user = run.made.get(value, -1)
        if user < 0 or run.operators[user].name not in _LINEAR:
            return None
        turned = turned or run.operators[user].name in ("aten.transpose", "aten.permute")
        before = [i for i in run.operators[user].inputs if shortcut in run.before([i])]
        if len(before) != 1:
            return None
        value = before[0]
    return None


def _served(run: RecordedRun, block: Block) -> tuple[str, ...]:
    """Modules with weights, outermost only, that nothing but the block's branch needs; not those in the block."""
    cut = [(k, run.sums[k][place]) for k, place in block.additions]
    live = run.before(run.outputs, cut)
    idle = {
        name
        for name, calls in run.names.items()
        if not f"{name}.".startswith(f"{block.name}.") and run.held(name) and all(_idle(run, c, live) for c in calls)
    }
    return tuple(name for name in run.names if name in idle and not any(name.startswith(f"{n}.") for n in idle))


def _idle(run: RecordedRun, call: ModuleCall, live: set[int]) -> bool:
    """Whether a call makes values, and none of them is needed."""
    made = [value for op in run.operators[call.start : call.end] for value in op.outputs]
    return bool(made) and live.isdisjoint(made)


def _user_module(run: RecordedRun, k: int) -> str | None:
    """The innermost module around an operator; None where that is one of torch's own layers."""
    around = [call for call in run.calls if call.start <= k < call.end]
    name = max(around, key=lambda call: call.name.count(".")).name if around else ""
    layer = run.module.get_submodule(name)
    own = type(layer).__module__.startswith("torch.nn") and not isinstance(layer, nn.TransformerEncoderLayer)
    return None if own else name or "(the network itself)"


def zeroed(module: nn.Module, inputs: tuple[Tensor, ...], additions: Iterable[tuple[int, int]]) -> list[Tensor]:
    """The outputs of ``module`` when branches are multiplied by zero: what the network without them must give.

    ``additions``: the branches, as (number of the addition, which of its summands) as in ``Block.additions``.
    """
    with repeatable(module), unfused(), _Zeroing(dict(additions)):
        return tensors_in(module(*inputs))


class _Zeroing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Multiplies the given summands of the given additions by zero."""

    def __init__(self, additions: dict[int, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.additions, self.count = additions, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, its branch times zero where it is one of those."""
        place = None
        if _adds(func, args, kwargs):
            place = self.additions.get(self.count)
            self.count += 1
        if place is not None:
            kept = "add_" in str(func) and place == 0  # the tensor itself is meant to change
            args = tuple((x.mul_(0.0) if kept else x * 0.0) if i == place else x for i, x in enumerate(args))
        return func(*args, **(kwargs or {}))


def _adds(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> bool:
    """Whether two tensors of real numbers and of one shape are added: the additions are numbered in their order."""
    if str(func) not in _ADDITIONS or kwargs or len(args) != 2 or not all(isinstance(x, Tensor) for x in args):
        return False
    return bool(args[0].shape == args[1].shape and all(x.is_floating_point() for x in args))

"""Examples as datasets give them, and batches of them: a pair (input, label), or a dict that holds both.

An input is a tensor, a tuple of tensors, or a dict of tensors by the names of forward's arguments; a label a number, a
tensor, or a dict or list of them (``labels``). A dict that is an
example by itself, as those of ``datasets`` and ``transformers``, has its label under one of ``LABELS``. Examples whose
tensors differ in length are put together by the task's own ``collate``, as torch's loaders call theirs: it takes a list
of examples as the dataset gives them, and returns a batch in the same form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.networks.plain_copies import full_precision
from compress.tasks import labels
from compress.tasks.user_code import guarded
from compress.values.error_lines import one_line
from targets.errors import TaskError

LABELS = ("labels", "label", "label_ids")
"""Where a dict that is an example by itself has its label."""
Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class Example:
    """One example, or a batch of them: then tensors hold samples first."""

    inputs: tuple[Tensor, ...]
    label: Any
    names: tuple[str, ...] = ()
    """Of the inputs, where they are given by name."""

    def ordered(self, names: tuple[str, ...], what: str) -> Example:
        """The same with its inputs in the order of ``names``; raises TaskError where it has others."""
        if self.names == names:
            return self
        if set(self.names) != set(names):
            raise TaskError(f"{what} has the inputs {_listed(self.names)}, others have {_listed(names)}; give the same")
        return Example(tuple(self.inputs[self.names.index(name)] for name in names), self.label, names)


def raw_examples(dataset: Any, indices: Sequence[int], name: str) -> list[Any]:
    """Examples as they come: all at once where the dataset offers that, as torch's own loader does."""
    together = getattr(dataset, "__getitems__", None)
    if not callable(together):
        return [raw_example(dataset, index, name) for index in indices]
    found = guarded(f"{name}.__getitems__", lambda: together(list(indices)))
    if not isinstance(found, (list, tuple)) or len(found) != len(indices):
        got = f"{len(found)} examples" if isinstance(found, (list, tuple)) else type(found).__name__
        raise TaskError(f"{name}.__getitems__ gave {got} for {len(indices)} indices; it must return a list, one each")
    return list(found)


def raw_example(dataset: Any, index: int, name: str) -> Any:
    """The example at ``index`` just as the dataset gives it; raises TaskError where its code fails."""
    return guarded(f"{name}[{index}]", lambda: dataset[index])


def as_example(given: Any, what: str) -> Example:
    """An example or a batch as tensors; ``what``: how messages call it. Raises TaskError for what is none."""
    if isinstance(given, Mapping):
        key = next((key for key in LABELS if key in given), None)
        if key is None:
            raise TaskError(
                f"{what} is a dict of {_listed(given)} without a label; give a pair (input, label), or the label under "
                f"{LABELS[0]!r}"
            )
        given = ({name: value for name, value in given.items() if name != key}, given[key])
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise TaskError(f"{what} is {type(given).__name__}, not a pair (input, label) or a dict with {LABELS[0]!r}")
    inputs, label = given
    names: tuple[str, ...] = ()
    if isinstance(inputs, Mapping):
        names, inputs = tuple(map(str, inputs)), tuple(inputs.values())
    inputs = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    return Example(tuple(_tensor(x, k, names, what) for k, x in enumerate(inputs)), label, names)


def _tensor(value: Any, place: int, names: tuple[str, ...], what: str) -> Tensor:
    try:
        return full_precision(torch.as_tensor(value))
    except (TypeError, ValueError, RuntimeError) as error:
        which, hint = f"the input ({type(value).__name__})", ""
        if names:
            which, hint = (
                f"the input {names[place]!r} ({type(value).__name__})",
                "; leave out what forward does not take",
            )
        raise TaskError(f"{what}: {which} is no tensor: {one_line(error)}{hint}") from None


def together(examples: Sequence[Example], name: str) -> Example:
    """Examples as one batch; raises TaskError where they do not fit together."""
    counts = {len(one.inputs) for one in examples}
    if len(counts) > 1:
        raise TaskError(f"{name}: examples have {sorted(counts)} inputs; all must have the same number")
    names = examples[0].names
    examples = [one.ordered(names, f"an example of {name}") for one in examples]
    try:
        inputs = tuple(torch.stack([one.inputs[k] for one in examples]) for k in range(len(examples[0].inputs)))
        return Example(inputs, labels.together([one.label for one in examples]), names)
    except (RuntimeError, TypeError, ValueError) as error:
        ragged = len({tuple(x.shape for x in one.inputs) for one in examples}) > 1
        hint = "; give the task a collate= that pads them" if ragged else ""
        raise TaskError(f"{name}: examples do not fit together in one batch: {one_line(error)}{hint}") from None


def collated(collate: Collate, raw: list[Any], name: str) -> Example:
    """What the task's ``collate`` makes of examples as they come, checked to be a batch of them."""
    what = f"what collate makes of {len(raw)} examples of {name}"
    found = as_example(guarded("the task's collate", lambda: collate(raw)), what)
    try:
        wanted = labels.of_batch(found.label, len(raw))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TaskError(
            f"{what}: the labels are no tensor, and not one dict or list for each example: {one_line(error)}"
        ) from None
    lengths = [*(len(x) if x.ndim else 0 for x in found.inputs), 0 if _is_scalar(wanted) else len(wanted)]
    if set(lengths) != {len(raw)}:
        raise TaskError(
            f"{what} holds {lengths} of its inputs and labels; it must return one of each for every example"
        )
    return Example(found.inputs, wanted, found.names)


def _is_scalar(wanted: labels.Labels) -> bool:
    return isinstance(wanted, Tensor) and wanted.ndim == 0


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"

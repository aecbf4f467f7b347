"""Labels of a batch: one tensor, samples first, or one dict or list for each example where that is no tensor.

Images hold different numbers of objects: what is wanted of them are dicts (boxes, classes) or lists, of tensors that
differ in length. These are never stacked. A loss is handed as many of them as there are examples, a metric an array of
objects with one of them in each place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.networks.plain_copies import full_precision

_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


class RaggedLabels(tuple[Any, ...]):
    """One label for each example: a dict, list or tuple of tensors and plain values, or tensors of uneven shapes."""

    def __getitem__(self, index: Any) -> Any:
        """One label for a number; the labels of several examples for a slice, a tensor or a list of numbers."""
        if isinstance(index, slice):
            return RaggedLabels(tuple.__getitem__(self, index))
        if isinstance(index, (Tensor, np.ndarray, list)):
            return RaggedLabels(tuple.__getitem__(self, int(i)) for i in index)
        return tuple.__getitem__(self, index)

    def to(self, device: torch.device | str) -> RaggedLabels:
        """The same with all tensors on ``device``."""
        return RaggedLabels(_mapped(one, lambda x: x.to(device)) for one in self)

    def numpy(self) -> np.ndarray:
        """(n,) the labels as objects, all tensors within them as arrays."""
        found = np.empty(len(self), dtype=object)
        for i, one in enumerate(self):
            found[i] = _mapped(one, lambda x: x.numpy())
        return found


Labels = Tensor | RaggedLabels
"""Of several examples, samples first."""


def together(labels: Sequence[Any]) -> Labels:
    """The labels of some examples: one tensor where they stack, else ragged.

    Raises what torch does for labels that neither stack nor are structures or tensors, as texts are not.
    """
    if all(map(_is_structure, labels)):
        return RaggedLabels(map(_as_tensors, labels))
    if all(isinstance(one, (Tensor, np.ndarray)) for one in labels) and len({tuple(x.shape) for x in labels}) > 1:
        return RaggedLabels(map(_as_tensors, labels))
    return torch.as_tensor(torch.utils.data.default_collate(list(labels)))


def of_batch(labels: Any, count: int) -> Labels:
    """What a ``collate`` gives as the labels of ``count`` examples; raises as torch does for what are none."""
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        fits = isinstance(labels, (list, tuple)) and len(labels) == count
        if not fits or not all(_is_structure(one) or isinstance(one, (Tensor, np.ndarray)) for one in labels):
            raise
    return RaggedLabels(map(_as_tensors, labels))


def on_device(labels: Any, device: torch.device | str) -> Any:
    """Labels of either kind on ``device``."""
    return labels.to(device) if isinstance(labels, (Tensor, RaggedLabels)) else labels


def kept(labels: Labels) -> Labels:
    """Labels as they are kept: on the CPU, of types that numpy knows and torch can compute with."""
    if isinstance(labels, RaggedLabels):
        return RaggedLabels(_mapped(one, _plain) for one in labels)
    return _plain(labels)


def tensors_of(labels: Any) -> Iterable[Tensor]:
    """All tensors within labels, in their order."""
    if isinstance(labels, Tensor):
        yield labels
    elif isinstance(labels, (Mapping, list, tuple)):
        for one in labels.values() if isinstance(labels, Mapping) else labels:
            yield from tensors_of(one)


def add_to(digest: hashlib._Hash, labels: Any) -> None:
    """Feed labels to a hash: values, types and shapes, and what they are called."""
    if isinstance(labels, Tensor):
        digest.update(f"{labels.dtype}{tuple(labels.shape)}".encode())
        digest.update(labels.contiguous().numpy().tobytes())
    elif isinstance(labels, (Mapping, list, tuple)):
        rows = sorted(labels.items(), key=str) if isinstance(labels, Mapping) else list(enumerate(labels))
        digest.update(f"{type(labels).__name__}{len(rows)}".encode())
        for key, value in rows:
            digest.update(repr(key).encode())
            add_to(digest, value)
    else:
        digest.update(repr(labels).encode())


def _is_structure(label: Any) -> bool:
    return isinstance(label, (Mapping, list, tuple))


def _as_tensors(label: Any) -> Any:
    """A label with its arrays made tensors; whatever else it holds is left as it is."""
    return _mapped(label, full_precision)


def _mapped(label: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(label, np.ndarray) and label.dtype != object:
        label = torch.as_tensor(label)
    if isinstance(label, Tensor):
        return change(label)
    if isinstance(label, Mapping):
        return {key: _mapped(value, change) for key, value in label.items()}
    if isinstance(label, (list, tuple)):
        return [_mapped(value, change) for value in label]
    return label


def _plain(x: Tensor) -> Tensor:
    x = x.detach().cpu()
    if x.dtype is torch.bfloat16:  # which numpy, and so a metric, does not know
        return x.float()
    return x.to(torch.int64) if x.dtype in _UNSIGNED else x  # of which torch can compute next to nothing

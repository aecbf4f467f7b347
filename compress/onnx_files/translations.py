"""The table by which torch writes its operators in ONNX: made once in a process, not at every export.

To make it, torch parses the source of some 500 functions, which takes as long as exporting a small network does.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

_MADE: dict[Any, Any] = {}
"""Arguments of the call that makes a table (the opset) -> the table."""


@contextlib.contextmanager
def kept_translations() -> Iterator[None]:
    """Inside, the exporter gets copies of one table; a torch that makes it in another way goes on making it anew."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        own = ONNXRegistry.__dict__["from_torchlib"]
        make = ONNXRegistry.from_torchlib
    except (ImportError, AttributeError, KeyError):
        yield
        return

    def kept(*given: Any, **named: Any) -> Any:
        asked = (given, tuple(sorted(named.items())))
        if asked not in _MADE:
            _MADE[asked] = make(*given, **named)
        table = copy.copy(_MADE[asked])
        # Its own dict and lists, which an export may add to; what stands in them is not changed.
        table.functions = {target: list(found) for target, found in table.functions.items()}
        return table

    ONNXRegistry.from_torchlib = staticmethod(kept)  # type: ignore[method-assign]  # put back below
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = own  # type: ignore[method-assign]  # as it was

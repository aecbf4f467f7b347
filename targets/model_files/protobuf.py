"""Protobuf's wire format, as far as reading an ``.onnx`` file without the onnx package takes.

A message is a row of (field number, kind, value). Fields that are not asked for are stepped over, so weights are
never looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """(number, value) of every field: a number, or the bytes of a string or message.

    Raises ValueError or IndexError for what is no message.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, at = _varint(message, at)
        if size is None or at + size > len(message):
            raise ValueError(f"no protobuf message: field {number} of kind {kind}")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("no protobuf message: a number without end")

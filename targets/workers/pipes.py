"""Messages with arrays over a pipe: how this process and a worker talk.

A frame is a fixed prefix (magic, length of the header, length of the body), a JSON header, and the arrays as
raw ``.npy`` bytes. Nothing is pickled, so a worker that went wrong can send garbage but cannot run code here.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

_PREFIX = struct.Struct("<4sIQ")
_MAGIC = b"PPM1"


class BrokenFrame(Exception):
    """What came over the pipe is not one of our frames, or ended in the middle of one."""


@dataclass(frozen=True)
class Message:
    """A request or a reply: ``header`` is plain JSON, ``arrays`` by name travel beside it."""

    header: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


def encode(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> list[bytes]:
    """The chunks of one frame, to be written one after the other."""
    bodies: list[bytes] = []
    sizes: list[tuple[str, int]] = []
    for name, array in (arrays or {}).items():
        body = _npy(array)
        bodies.append(body)
        sizes.append((name, len(body)))
    head = json.dumps({"header": dict(header), "arrays": sizes}).encode()
    return [_PREFIX.pack(_MAGIC, len(head), sum(map(len, bodies))) + head, *bodies]


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    # Runtimes hand out strings as object arrays, which .npy can only pickle.
    plain = np.asarray(array)
    np.lib.format.write_array(buffer, plain.astype(str) if plain.dtype == object else plain, allow_pickle=False)
    return buffer.getvalue()


class Decoder:
    """Makes messages of bytes that come in pieces of any size."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that ``data`` completes; raises BrokenFrame if it is not ours."""
        self.buffer += data
        found: list[Message] = []
        while len(self.buffer) >= _PREFIX.size:
            magic, head, body = _PREFIX.unpack_from(self.buffer)
            if magic != _MAGIC:
                raise BrokenFrame(f"expected a frame, found {bytes(self.buffer[:16])!r}")
            total = _PREFIX.size + head + body
            if len(self.buffer) < total:
                break
            frame = bytes(memoryview(self.buffer)[_PREFIX.size : total])
            del self.buffer[:total]
            found.append(_decode(frame[:head], memoryview(frame)[head:]))
        return found


def _decode(head: bytes, body: memoryview) -> Message:
    arrays: dict[str, np.ndarray] = {}
    start = 0
    try:
        document = json.loads(head)
        for name, size in document["arrays"]:
            arrays[name] = np.lib.format.read_array(io.BytesIO(body[start : start + size]), allow_pickle=False)
            start += size
        return Message(dict(document["header"]), arrays)
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenFrame(f"a frame that does not hold together ({type(error).__name__})") from None


def write_message(stream: BinaryIO, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
    """Send one message, waiting until it is gone; raises OSError where the other side is."""
    for chunk in encode(header, arrays):
        stream.write(chunk)
    stream.flush()


def read_message(stream: BinaryIO) -> Message | None:
    """Wait for one message; None when the other side has closed the pipe."""
    prefix = stream.read(_PREFIX.size)
    if not prefix:
        return None
    if len(prefix) < _PREFIX.size or not prefix.startswith(_MAGIC):
        raise BrokenFrame(f"expected a frame, found {prefix!r}")
    _, head, body = _PREFIX.unpack(prefix)
    frame = stream.read(head + body)
    if len(frame) < head + body:
        raise BrokenFrame("the pipe was closed in the middle of a frame")
    return _decode(frame[:head], memoryview(frame)[head:])

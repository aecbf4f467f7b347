"""What has to be sent so that a model can be run elsewhere: its file, and those that its weights lie in."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from targets.documents import file_hash
from targets.errors import ModelError
from targets.workers.worker import existing, one_line

MODEL = "model.onnx"
"""Name of the model itself, there."""
_LOCATION = re.compile(rb"\x0a\x08location\x12")
"""How an entry of ``TensorProto.external_data`` begins that names a file: key "location", then the value's length."""


@dataclass(frozen=True)
class ParcelFile:
    """A file: its name there, where it lies here, bytes, and SHA-256 in hex."""

    name: str
    path: Path
    size: int
    sha256: str


@dataclass(frozen=True)
class Parcel:
    """A model; ``key`` is a hash that is the same for the same bytes."""

    path: Path
    key: str
    parts: tuple[ParcelFile, ...]


def pack_model(path: Path) -> Parcel:
    """What belongs to a model; raises ModelError where a file is not there or lies outside the model's folder."""
    parts = [_part(MODEL, path)]
    parts += [_part(name, path.parent / name) for name in _locations(path) if (path.parent / name).is_file()]
    named = json.dumps([[part.name, part.sha256] for part in parts])
    # A model alone goes by its own hash.
    key = parts[0].sha256 if len(parts) == 1 else hashlib.sha256(named.encode()).hexdigest()
    return Parcel(path, key, tuple(parts))


def _part(name: str, path: Path) -> ParcelFile:
    size = existing(path).st_size
    try:
        return ParcelFile(name, path, size, file_hash(path))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or one_line(error)}") from None


def _locations(path: Path) -> list[str]:
    """Names of the files that hold a model's weights, beside it; empty where they are in the model."""
    content = path.read_bytes()
    found: dict[str, None] = {}
    for match in _LOCATION.finditer(content):
        length, start = _varint(content, match.end())
        name = content[start : start + length].decode(errors="replace")
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts:
            raise ModelError(f"{path}: its weights lie outside its folder, in {name!r}; keep them beside the model")
        if name.isprintable() and parts.name:
            found[name] = None
    return sorted(found)


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A protobuf length and where it ends; lengths of names have two bytes at most."""
    if at >= len(content) or content[at] < 128:
        return (content[at] if at < len(content) else 0), at + 1
    return (content[at] & 127) | (content[at + 1] << 7 if at + 1 < len(content) else 0), at + 2

"""The folder on a device in which models are kept from one use to the next, each once, by the hash of its bytes.

FOLDER/runner-HASH.zip      what runs there
FOLDER/models/KEY/NAME      a model and the files that belong to it
FOLDER/session-.../         of one running runner: what is half received, temporary files; locked while it runs
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from targets.errors import MeasurementError, TransientError

LIMIT = 2_000_000_000
"""Bytes of models that are kept; beyond it the oldest go."""
_STALE = 3600.0
"""Seconds after its last use from which a model may go: until then another search may be at it."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Piece:
    """A part of a file under way: which file, its size and hash as a whole, and where the part begins."""

    key: str
    name: str
    size: int
    sha256: str
    offset: int


class DeviceCache:
    """Keeps models under a folder of the device. A process has one, and closes it when it ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._models = folder / "models"
        self._models.mkdir(parents=True, exist_ok=True)
        self._clear()
        self.session, self._lock = self._begun()
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._hashes: dict[tuple[str, int, int, int], str] = {}

    def _begun(self) -> tuple[Path, int]:
        # Until it is locked, another runner that begins may take the new folder for one that was left behind.
        for _ in range(5):
            session = Path(tempfile.mkdtemp(dir=self.folder, prefix="session-"))
            lock = _locked(session)
            if lock >= 0 and session.is_dir():
                return session, lock
        return session, lock

    def path(self, key: str, name: str = "model.onnx") -> Path:
        """Where a file is kept; raises MeasurementError for names that lead elsewhere."""
        parts = PurePosixPath(name)
        if not re.fullmatch(r"[0-9a-f]{64}", key) or parts.is_absolute() or ".." in parts.parts or not parts.name:
            raise MeasurementError(f"{key}/{name} is no place for a model")
        return self._models / key / parts

    def missing(self, wanted: Mapping[str, Mapping[str, int]]) -> dict[str, list[str]]:
        """Of models, key -> name of file -> size, what is not there; what is there counts as used now.

        A model whose bytes are no longer those that its key stands for is not there either, with all of its files.
        """
        found = {}
        for key, files in wanted.items():
            found[key] = [name for name, size in files.items() if _size(self.path(key, name)) != size]
            if not found[key] and self._key([(name, self.path(key, name)) for name in files]) != key:
                found[key] = list(files)
            with suppress(OSError):
                os.utime(self._models / key)
        return found

    def _key(self, files: list[tuple[str, Path]]) -> str:
        """The key of a model of these files, as the sender makes it; empty where one cannot be read."""
        hashes = []
        for name, path in files:
            try:
                state = path.stat()
                known = (str(path), state.st_mtime_ns, state.st_ctime_ns, state.st_size)
                if known not in self._hashes:  # a file is read once, and again when it was changed
                    self._hashes[known] = _sha256(path)
            except OSError:
                return ""
            hashes.append([name, self._hashes[known]])
        return hashes[0][1] if len(hashes) == 1 else hashlib.sha256(json.dumps(hashes).encode()).hexdigest()

    def receive(self, piece: Piece, data: bytes) -> bool:
        """Take the next part of a file; True when the file is whole and in its place.

        Raises TransientError where there is no room, or where the bytes are not those announced.
        """
        place = self.path(piece.key, piece.name)
        try:
            if piece.offset == 0:
                self._begin(piece.size)
            if self._file is None or self._file.tell() != piece.offset:
                raise TransientError(f"a part of a file is missing before byte {piece.offset}")
            self._file.write(data)
            self._file.flush()
            self._hash.update(data)
            if self._file.tell() < piece.size:
                return False
            os.fsync(self._file.fileno())
            if self._file.tell() != piece.size or self._hash.hexdigest() != piece.sha256:
                raise TransientError("the file changed while it was sent")
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._part, place)
            self._drop()
            return True
        except OSError as error:
            self._drop()
            raise self._failed(error, piece.size) from None
        except TransientError:
            self._drop()
            raise

    def close(self) -> None:
        """Remove what only this process needed; models stay for the next."""
        self._drop()
        shutil.rmtree(self.session, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def _part(self) -> Path:
        return self.session / "part"

    def _begin(self, size: int) -> None:
        self._drop()
        self._make_room(size)
        self._hash = hashlib.sha256()
        self._file = self._part.open("wb")

    def _drop(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None
        with suppress(OSError):
            self._part.unlink()

    def _make_room(self, size: int) -> None:
        """Remove models that were not used for long, until the file fits; raises OSError where it does not."""
        kept = [(model.stat().st_mtime, model) for model in self._models.iterdir() if model.is_dir()]
        total = sum(_size(file) or 0 for _, model in kept for file in model.rglob("*"))
        for used, model in sorted(kept):
            if shutil.disk_usage(self.folder).free >= size and total + size <= LIMIT:
                return
            if time.time() - used > _STALE:
                total -= sum(_size(file) or 0 for file in model.rglob("*"))
                shutil.rmtree(model, ignore_errors=True)
        if shutil.disk_usage(self.folder).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _failed(self, error: OSError, size: int) -> TransientError:
        if error.errno in _FULL:
            free = shutil.disk_usage(self.folder).free
            return TransientError(no_space(str(self.folder), size, free))
        return TransientError(f"cannot write to {self.folder} on the device: {error.strerror or error}")

    def _clear(self) -> None:
        """Remove what runners left behind that did not come to their end."""
        for session in self.folder.glob("session-*"):
            lock = _locked(session)
            if lock >= 0:
                shutil.rmtree(session, ignore_errors=True)
                os.close(lock)


def no_space(folder: str, size: int, free: int) -> str:
    """The message for a full disk: the folder, the bytes that are needed and free there, and what helps."""
    return (
        f"no space left on the device in {folder} (needs {size / 1e6:.1f} MB, has {free / 1e6:.1f} MB): "
        "free some, or choose another folder with cache=FOLDER"
    )


def _locked(session: Path) -> int:
    """A descriptor of the folder, locked until it is closed; -1 where somebody else holds it."""
    descriptor = -1
    try:
        descriptor = os.open(session, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if descriptor >= 0:
            os.close(descriptor)
        return -1
    return descriptor


def _sha256(path: Path) -> str:
    """Read in pieces: an old Python has nothing better, and a small board not the memory for a whole file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def piece_of(header: Mapping[str, Any]) -> Piece:
    """The part of a file that a request's header announces; raises KeyError where it announces none."""
    return Piece(header["key"], header["name"], header["size"], header["sha256"], header["offset"])

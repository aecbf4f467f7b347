"""Tables of a FlatBuffers file, read where they lie: nothing need be installed, as on a small board.

A table begins with the distance to its list of fields, which says where each field lies, or 0 where it has the
default; vectors and tables in fields are reached by distances, too (flatbuffers.dev, "FlatBuffers internals").
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_LARGEST = 1 << 20
"""Entries that a vector of tables may have: a broken file must not take all memory."""


@dataclass(frozen=True)
class Table:
    """One table: ``data`` is the whole file, ``at`` where the table begins. Reads raise struct.error beyond the end."""

    data: bytes
    at: int

    def number(self, field: int, kind: str = "i", default: int = 0) -> int:
        """A scalar; ``kind`` is its struct code."""
        place = self._place(field)
        return default if not place else int(struct.unpack_from("<" + kind, self.data, place)[0])

    def text(self, field: int) -> str:
        """A string; empty where there is none."""
        return self.raw(field).decode(errors="replace")

    def raw(self, field: int) -> bytes:
        """The bytes of a vector of bytes, or of a string."""
        start, count = self._vector(field)
        if start + count > len(self.data):
            raise struct.error("a vector ends beyond the file")
        return self.data[start : start + count]

    def numbers(self, field: int, kind: str) -> tuple[float, ...]:
        """A vector of scalars of a struct code."""
        start, count = self._vector(field)
        return tuple(struct.unpack_from(f"<{_bounded(count)}{kind}", self.data, start)) if count else ()

    def length(self, field: int) -> int:
        """How many entries a vector has."""
        return self._vector(field)[1]

    def tables(self, field: int) -> tuple[Table, ...]:
        """A vector of tables."""
        start, count = self._vector(field)
        places = (start + 4 * index for index in range(_bounded(count)))
        return tuple([Table(self.data, place + _unsigned(self.data, place)) for place in places])

    def table(self, field: int) -> Table | None:
        """A table; None where there is none."""
        place = self._place(field)
        return Table(self.data, place + _unsigned(self.data, place)) if place else None

    def _place(self, field: int) -> int:
        fields = self.at - struct.unpack_from("<i", self.data, self.at)[0]
        if fields < 0:
            raise struct.error("a table's fields lie before the file")
        entry = 4 + 2 * field
        if entry >= struct.unpack_from("<H", self.data, fields)[0]:
            return 0
        offset = struct.unpack_from("<H", self.data, fields + entry)[0]
        return self.at + int(offset) if offset else 0

    def _vector(self, field: int) -> tuple[int, int]:
        place = self._place(field)
        if not place:
            return 0, 0
        place += _unsigned(self.data, place)
        return place + 4, _unsigned(self.data, place)


def root(data: bytes) -> Table:
    """The file's main table."""
    return Table(data, _unsigned(data, 0))


def _unsigned(data: bytes, place: int) -> int:
    return int(struct.unpack_from("<I", data, place)[0])


def _bounded(count: int) -> int:
    if count > _LARGEST:
        raise struct.error(f"a vector says that it has {count} entries")
    return count

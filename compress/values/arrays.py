"""Arrays by name out of an ``.npz`` file that somebody gave us."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from compress.values.error_lines import one_line
from targets.errors import RequestError
from targets.machine import memory

if TYPE_CHECKING:
    import numpy as np

_SHARE = 0.5
"""Of the memory that is free, what the arrays of a file may take."""


def read_arrays(path: Path, kind: type[RequestError]) -> dict[str, np.ndarray]:
    """The arrays of the file by their names; raises ``kind``, in one line, where ``load_arrays`` raises."""
    try:
        return load_arrays(path)
    except (OSError, ValueError) as error:
        raise kind(f"--data {str(path)!r} is not a readable .npz file: {one_line(error)}") from None


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the file by their names; nothing is unpickled.

    Raises OSError for a file that cannot be read; ValueError for one that is no such file, or that holds more than half
    of the memory that is free: a few kilobytes of an archive can stand for many gigabytes.
    """
    import numpy as np

    if path.exists() and not path.is_file():
        raise ValueError("it is not a file")
    try:
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array without a name; write it with numpy.savez")
        with found:
            size = _size(found.zip)
            free = memory.available_bytes()
            if free is not None and size > _SHARE * free:
                raise ValueError(f"its arrays take {size / 1e9:.3g} GB, up to {_SHARE * free / 1e9:.3g} GB can be used")
            arrays = {name: found[name] for name in found.files}
    except OSError:
        raise
    except Exception as error:
        # Archives and arrays are damaged in many ways, and zipfile, zlib and numpy have an exception for each.
        raise ValueError(one_line(error)) from None
    return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}


def _size(archive: zipfile.ZipFile | None) -> int:
    """Bytes of all arrays in the archive: as it says itself, or as the arrays' own heads say where that is more."""
    import numpy as np

    total = 0
    for entry in archive.infolist() if archive is not None else ():
        total += entry.file_size
        if not entry.filename.endswith(".npy"):
            continue
        with archive.open(entry) as file:  # type: ignore[union-attr]
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            if any(size < 0 for size in shape):
                raise ValueError(f"the array {entry.filename!r} has shape {shape}")
            total += max(0, math.prod(shape) * dtype.itemsize - entry.file_size)
    return total

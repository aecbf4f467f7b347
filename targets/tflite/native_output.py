"""What native libraries write to their output, which no stream of Python's sees."""

from __future__ import annotations

import os
import tempfile


class heard:
    """What is written to the descriptors meanwhile, native code included, as ``text`` once it is over."""

    text = ""

    def __init__(self, *descriptors: int) -> None:
        self._descriptors = descriptors

    def __enter__(self) -> heard:
        self._file = tempfile.TemporaryFile()
        self._kept = [os.dup(one) for one in self._descriptors]
        for one in self._descriptors:
            os.dup2(self._file.fileno(), one)
        return self

    def __exit__(self, *_: object) -> None:
        for one, kept in zip(self._descriptors, self._kept, strict=True):
            os.dup2(kept, one)
            os.close(kept)
        self._file.seek(0)
        self.text = self._file.read().decode(errors="replace")
        self._file.close()

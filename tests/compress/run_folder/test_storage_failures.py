"""A full disk is told from other failures, whatever it was wrapped in."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from compress.run_folder.storage_failures import (
    is_storage_failure,
    name_storage_failure,
    naming_storage_failures,
)
from targets.errors import TrainingError, TransientError


def _chained(error: Exception) -> Exception:
    try:
        try:
            raise error
        except Exception as caught:
            raise TrainingError("fine-tuning failed") from caught
    except TrainingError as wrapped:
        return wrapped


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (_chained(OSError(errno.ENOSPC, "No space left on device")), "No space left on device"),
        (RuntimeError("worker: [Errno 28] No space left on device: 'x'"), "No space left on device"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 8768 vs 8664"), "is it full"),
    ],
)
def test_a_full_disk_is_named(error: Exception, name: str) -> None:
    assert is_storage_failure(error)
    assert name in name_storage_failure(error)


def test_other_failures_are_none_of_a_disk() -> None:
    assert not is_storage_failure(OSError(errno.EACCES, "Permission denied"))
    assert not is_storage_failure(_chained(ValueError("no")))
    with pytest.raises(PermissionError), naming_storage_failures(Path("run")):
        raise PermissionError(errno.EACCES, "Permission denied")
    with (
        pytest.raises(TransientError, match=r"No space left on device while writing 'w\.pt': make room"),
        naming_storage_failures(Path("run")),
    ):
        raise OSError(errno.ENOSPC, "No space left on device", "w.pt")

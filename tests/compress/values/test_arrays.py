"""Archives of arrays, whole and damaged."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from compress.values.arrays import read_arrays
from targets.errors import TaskError
from targets.machine import memory


def test_arrays_come_by_their_names(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=np.arange(3), y=np.array(["a"]))
    found = read_arrays(tmp_path / "d.npz", TaskError)
    assert sorted(found) == ["x", "y"]
    assert np.array_equal(found["x"], np.arange(3))


def _header(path: Path, shape: str) -> None:
    """An archive of one array that is said to be of ``shape`` and holds nothing."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(4611686018427387904,)", "(-1,)", "(" * 200])
def test_an_array_that_is_said_to_be_huge_is_refused(tmp_path: Path, shape: str) -> None:
    _header(tmp_path / "d.npz", shape)
    with pytest.raises(TaskError, match=r"d\.npz' is not a readable .npz file") as caught:
        read_arrays(tmp_path / "d.npz", TaskError)
    assert "\n" not in str(caught.value)


def test_an_archive_that_unpacks_to_more_than_there_is_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros(10**6))
    monkeypatch.setattr(memory, "available_bytes", lambda: 10**7)
    with pytest.raises(TaskError, match=r"take 0\.008 GB, up to 0\.005 GB"):
        read_arrays(tmp_path / "d.npz", TaskError)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"no", b"\x80\x04K\x01."])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(TaskError, match="not a readable"):
        read_arrays(tmp_path / "d.npz", TaskError)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.array([{}], dtype=object))
    with pytest.raises(TaskError, match="allow_pickle"):
        read_arrays(tmp_path / "d.npz", TaskError)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "d.npz")
    with pytest.raises(TaskError, match="not a file"):
        read_arrays(tmp_path / "d.npz", TaskError)

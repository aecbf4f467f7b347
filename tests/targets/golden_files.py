"""MLPerf Tiny's keyword spotter with inputs and outputs, which lies beside the archive of TFLM's sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from targets.cortex_m import sources

_REPOSITORY = Path(__file__).resolve().parents[2]


def golden_file(name: str) -> Path:
    """One of its files; the test is skipped where it is not there."""
    archive = sources.given_archive()
    folder = (archive.parent if archive else _REPOSITORY.parent / "shared" / "cortex-m") / "golden"
    if not (folder / name).is_file():
        pytest.skip(f"no {name} in {folder}; set {sources.VARIABLE} to the archive that it lies beside")
    return folder / name

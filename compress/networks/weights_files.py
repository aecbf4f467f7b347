"""Files of weights: written whole, and read without running anything that may stand in them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch


def write_weights(value: Any, path: Path) -> None:
    """``torch.save`` of ``value``; raises OSError where the disk does not take it.

    torch's own writer says nothing of a full disk but that a position in the file is not the one it expected.
    """
    held = io.BytesIO()
    torch.save(value, held)
    path.write_bytes(held.getbuffer())


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file by name; raises OSError or ValueError where it cannot be read."""
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception as error:  # a damaged archive raises whatever the part of it does that is hit
        raise ValueError(str(error)) from error
    if not isinstance(found, dict):
        raise ValueError(f"it holds {type(found).__name__}, not weights by name")
    return found

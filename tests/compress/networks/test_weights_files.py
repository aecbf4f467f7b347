"""Files of weights that are not what they should be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.networks.weights_files import read_weights, write_weights


def test_what_is_no_weights_file_is_a_value_error_and_what_is_absent_none(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    write_weights({"a": torch.ones(2)}, path)
    assert torch.equal(read_weights(path)["a"], torch.ones(2))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"\S"):
        read_weights(path)
    write_weights([torch.ones(2)], path)
    with pytest.raises(ValueError, match="it holds list, not weights by name"):
        read_weights(path)
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "absent.pt")

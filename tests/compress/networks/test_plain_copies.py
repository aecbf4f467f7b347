"""Weights that cannot be worked with are refused before anything is copied."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compress.networks.plain_copies import unwrap
from targets.errors import TaskError


def test_weights_without_values_or_beyond_any_file_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy, "deepcopy", lambda *_: pytest.fail("copied"))
    with pytest.raises(
        TaskError, match="task 't': weight 'weight' is on the meta device and has no values; load the wei"
    ):
        unwrap(nn.Linear(2, 2, device="meta"), "t")
    wide = nn.Linear(1, 1)
    wide.weight = nn.Parameter(torch.zeros(1, 1).expand(1, 600_000_000))
    said = (
        "task 't': the model's weights take 2.4 GB; networks of up to 2 GB can be worked with, since an ONNX file holds"
    )
    with pytest.raises(TaskError, match=said):
        unwrap(nn.DataParallel(wide), "t")

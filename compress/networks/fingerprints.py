"""Hashes that stand for a network's weights in a key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

_WITHOUT_NUMPY = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
"""Types that numpy lacks, whose bytes are hashed instead."""


def state_hash(module: nn.Module) -> str:
    """16 hex digits that stand for all weights and buffers of a module."""
    return tensor_hash(module.state_dict())


def tensor_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """16 hex digits that stand for named tensors: their names, types, shapes and values, in their order."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous()
        if plain.dtype in _WITHOUT_NUMPY:
            plain = plain.reshape(-1).view(torch.uint8)
        digest.update(plain.numpy().tobytes())
    return digest.hexdigest()[:16]

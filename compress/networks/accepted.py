"""Kinds of modules that cannot be worked with, each told in one line before anything is tried."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from targets.errors import TaskError

_QUANTIZED = (
    "torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.qat", "torch.ao.nn.intrinsic.qat",
    "torch.ao.nn.quantizable", "torch.ao.nn.sparse", "torch.ao.quantization", "bitsandbytes",
)  # fmt: skip
"""Where the layers live that are quantized, or prepared to be."""
_FROM_PYTHON = "give the Python module that it was made from"


def check_accepted(module: Any, what: str = "the model") -> None:
    """Raise TaskError where ``module`` is nothing that can be pruned, exported and trained.

    ``what``: how messages call it. Refused are TorchScript, programs of ``torch.export`` and their modules, sharded
    modules (FSDP), and networks that are quantized already. Wrappers that only pass calls on are no obstacle.
    """
    if isinstance(module, torch.export.ExportedProgram):
        raise TaskError(f"{what} is a program of torch.export, which has no layers to work with: {_FROM_PYTHON}")
    if isinstance(module, torch.jit.ScriptFunction):
        raise TaskError(f"{what} is a TorchScript function, which has no layers to work with: {_FROM_PYTHON}")
    if not isinstance(module, nn.Module):
        raise TaskError(f"{what} is {type(module).__name__}: give an nn.Module")
    for name, layer in module.named_modules():
        where = f"layer {name!r} of {what}" if name else what
        kind = type(layer)
        if isinstance(layer, torch.jit.ScriptModule):
            raise TaskError(f"{where} is a TorchScript module, whose layers cannot be changed: {_FROM_PYTHON}")
        if isinstance(layer, torch.fx.GraphModule) and {"eval", "train"} <= vars(layer).keys():
            raise TaskError(f"{where} is the module of a torch.export program, whose graph is fixed: {_FROM_PYTHON}")
        if kind.__name__ == "FullyShardedDataParallel":
            raise TaskError(f"{where} is sharded (FSDP): give the module inside, with all of its weights gathered")
        if kind.__module__.startswith(_QUANTIZED):
            raise TaskError(
                f"{where} is {kind.__module__}.{kind.__name__}, which is quantized already or prepared for it: "
                "give the float network, which is quantized here"
            )
        _check_weights(layer, where)


def _check_weights(layer: nn.Module, where: str) -> None:
    """Raise TaskError for weights that are no plain tensors of numbers."""
    for name, tensor in layer.named_parameters(recurse=False):
        if is_traceable_wrapper_subclass(tensor) or is_traceable_wrapper_subclass(tensor.data):
            raise TaskError(
                f"weight {name!r} of {where} is a {type(tensor.data).__name__}, not a plain tensor: give the network "
                "with its whole weights, neither sharded nor quantized"
            )
    weight = getattr(layer, "weight", None)
    if not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd) or not isinstance(weight, torch.Tensor):
        return
    if weight.is_quantized or not (weight.is_floating_point() or weight.is_complex()):
        raise TaskError(
            f"{where} has weights of {str(weight.dtype).removeprefix('torch.')}, it is quantized already: give the "
            "float network, which is quantized here"
        )

"""Counting: carried here."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from compress.networks.running import as_inputs, forward
from compress.networks.running import repeatable as evaluating


def macs_and_parameters(module: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]) -> tuple[int, int]:
    """(multiply-accumulates for one sample, parameters) of ``module``, in eval mode.

    Counted at batch 1 by torch's own counter (convolutions, matrix products, attention; recurrent layers
    included); from the shapes of convolutions and linear layers alone where that counter fails.
    """
    inputs = as_inputs(example_inputs)
    one = tuple(t[:1] if t.ndim else t for t in inputs)
    parameters = sum(p.numel() for p in module.parameters())
    # Fused kernels (oneDNN's LSTM, flash attention, the encoder's fast path) are unknown to the counter.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        counter = FlopCounterMode(display=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of its own switch
            with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH), evaluating(module), counter:
                module(*one)
        return int(counter.get_total_flops()) // 2, parameters
    except Exception:
        return _count_by_shapes(module, inputs), parameters
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _count_by_shapes(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Multiply-accumulates per sample of convolutions and linear layers, from the shapes that pass through."""
    total = 0

    def add(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        weight = layer.get_parameter("weight")
        # Each output element (each input element, for a transposed convolution) is one slice of the weights.
        turned = getattr(layer, "transposed", False)
        total += (args[0] if turned else output).numel() * weight[0].numel()

    layers = [m for m in module.modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)]
    handles = [m.register_forward_hook(add) for m in layers]
    try:
        forward(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return total // max(inputs[0].shape[0] if inputs[0].ndim else 1, 1)

"""What a network costs in numbers: multiply-accumulates of one sample, and parameters."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compress.networks.running import as_inputs, copies, forward, repeatable, unfused


def macs_and_parameters(module: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]) -> tuple[int, int]:
    """(multiply-accumulates for one sample, number of parameters) of ``module`` in eval mode.

    ``example_inputs``: a tensor or a tuple of tensors, batch first. Counted at batch 1 by torch's own counter of
    floating-point operations, two of which are one multiply-accumulate (convolutions, matrix products, attention;
    recurrent layers included); from the shapes of convolutions and linear layers alone where that counter fails.

    Raises TaskError if ``example_inputs`` are no tensors, and what the module raises where it does not run.
    """
    inputs = as_inputs(example_inputs)
    one = tuple(t[:1] if t.ndim else t for t in inputs)
    parameters = sum(p.numel() for p in module.parameters())
    counter = FlopCounterMode(display=False)
    try:
        with unfused(), repeatable(module), counter:  # fused kernels are unknown to the counter
            module(*copies(one))
    except Exception:
        return _macs_by_shapes(module, inputs), parameters
    return int(counter.get_total_flops()) // 2, parameters


def _macs_by_shapes(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
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

"""Quantization that can be trained through: values rounded as the integer kernels will, gradients passed on.

y = s * (clip(round(x / s) + z, qmin, qmax) - z), with s = (high - low) / (qmax - qmin), z = round(qmin - low / s): what
QuantizeLinear and DequantizeLinear compute. Rounding is passed through by the gradient, which gives a range the
gradient of LSQ (Esser et al. 2020, LSQ+: Bhalgat et al. 2020). A range is learned as the logarithm of its two ends
(Jain et al. 2020): a step of Adam then changes it by a share, ten times the learning rate, since a range may have far
to go and a weight has not; and its signs, zeros included, stay, so that a ReLU folded into a quantizer stays folded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch import fx

    from compress.onnx_import.importer import Importer, Operator

DOMAIN, KIND = "paretopress", "FakeQuantize"
"""The ONNX node that becomes an ``ActivationQuantizer`` when a graph is imported."""
_SMALLEST = 1e-12
_HASTE = 10.0
"""How much faster than weights ranges are learned."""


class ActivationQuantizer(nn.Module):
    """Quantizes and dequantizes a tensor of activations as a whole, with a range that is learned."""

    low_start: Tensor
    high_start: Tensor

    def __init__(self, tensor: str, low: float, high: float, least: int, most: int) -> None:
        """``tensor``: what ONNX Runtime calls the range; integers are from ``least`` to ``most``."""
        super().__init__()
        self.tensor, self.least, self.most = tensor, least, most
        self.register_buffer("low_start", torch.tensor(low))
        self.register_buffer("high_start", torch.tensor(high))
        self.log_low = nn.Parameter(torch.zeros(()))
        self.log_high = nn.Parameter(torch.zeros(()))

    def limits(self) -> tuple[Tensor, Tensor]:
        """The range as it is now: (low, high), low <= 0 <= high."""
        low, high = ((_HASTE * x).exp() for x in (self.log_low, self.log_high))
        return self.low_start * low, self.high_start * high

    def forward(self, x: Tensor) -> Tensor:
        """``x`` as it is after quantizing and dequantizing it: of the same shape, in float32."""
        low, high = self.limits()
        scale = ((high - low) / (self.most - self.least)).clamp_min(_SMALLEST)
        zero = _rounded(self.least - low / scale)
        level = (_rounded(x.float() / scale) + zero).clamp(self.least, self.most)
        return (level - zero) * scale


class WeightQuantizer(nn.Module):
    """Quantizes and dequantizes a weight symmetrically, each output channel by its largest value, as the file will."""

    def __init__(self, axis: int, most: int) -> None:
        """``axis``: of the output channels; integers are from ``-most`` to ``most``."""
        super().__init__()
        self.axis, self.most = axis, most

    def forward(self, weight: Tensor) -> Tensor:
        """``weight`` as it is after quantizing and dequantizing it: of the same shape and type."""
        others = [i for i in range(weight.dim()) if i != self.axis]
        scale = (weight.detach().abs().amax(others, keepdim=True) / self.most).clamp_min(_SMALLEST)
        return _rounded(weight / scale) * scale


def build(to: Importer, op: Operator) -> fx.Node:
    """What the importer builds for a ``FakeQuantize`` node: a quantizer as a submodule, called on the node's input."""
    quantizer = ActivationQuantizer(op.get("tensor"), op.get("low"), op.get("high"), op.get("least"), op.get("most"))
    return to.layer(quantizer, "range", to.tensor(op.value(0)))


def _rounded(x: Tensor) -> Tensor:
    """``x`` rounded to the nearest integers, halves to even as ONNX does; gradients pass as if it were not."""
    return x + (x.round() - x).detach()

"""ResNets and vision transformers for images of 224 pixels, written by hand, with random weights.

The transformers are written as people write them: one layer for queries, keys and values, and
``reshape(B, N, 3, heads, C // heads)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Basic(nn.Module):
    """A residual block of two convolutions and a shortcut."""

    wider = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Takes x of (N, inputs, H, W) and gives the block's output."""
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class Bottleneck(nn.Module):
    """Three convolutions, the last four times as wide, and a shortcut."""

    wider = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.norm3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.shortcut = _shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Takes x of (N, inputs, H, W) and gives the block's output."""
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm3(self.conv3(self.norm2(self.conv2(y)).relu()))
        return (y + self.shortcut(x)).relu()


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def resnet(block: type[Basic | Bottleneck], depths: Sequence[int]) -> nn.Module:
    """A ResNet with ``depths`` blocks in its four stages."""
    stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    stages: list[nn.Module] = [stem]
    inputs = 64
    for number, depth in enumerate(depths):
        width, blocks = 64 * 2**number, []
        for k in range(depth):
            blocks.append(block(inputs, width, 2 if k == 0 and number else 1))
            inputs = width * block.wider
        stages.append(nn.Sequential(*blocks))
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


class Attention(nn.Module):
    """Self-attention, its three projections in one layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Takes x of (N, tokens, width) and gives the same shape."""
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, t, c))


class Layer(nn.Module):
    """Attention and a perceptron, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Takes x of (N, tokens, width) and gives the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Twelve layers over patches of 16 pixels and a class token."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 14 * 14 + 1, width))
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(12)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Takes images x of (N, 3, 224, 224) and gives class logits."""
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.layers(x))[:, 0])


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18": lambda: resnet(Basic, (2, 2, 2, 2)),
    "ResNet-50": lambda: resnet(Bottleneck, (3, 4, 6, 3)),
    "ResNet-152": lambda: resnet(Bottleneck, (3, 8, 36, 3)),
    "ViT-Ti/16": lambda: VisionTransformer(192, 3),
    "ViT-S/16": lambda: VisionTransformer(384, 6),
    "ViT-B/16": lambda: VisionTransformer(768, 12),
}

"""Transformers as people write them from scratch: the width of a head is the embedding's divided by their number."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_awkward import CausalAttention


class ReshapedAttention(nn.Module):
    """One product for queries, keys and values, taken apart by ``reshape(B, N, 3, heads, C // heads)``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C))


class SeparateAttention(nn.Module):
    """Three products, each taken apart by ``view(B, N, heads, C // heads)``; scaled by hand."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = (f(x).view(B, N, self.heads, C // self.heads).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = q @ k.transpose(-2, -1) * (C // self.heads) ** -0.5
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, N, C))


class ScaledByWidth(SeparateAttention):
    """Scaled by the width of the embedding: that cannot be cut without changing what is computed."""

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = (f(x).view(B, N, self.heads, C // self.heads).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = q @ k.transpose(-2, -1) * C**-0.5
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, N, C))


class Block(nn.Module):
    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.n1, self.attention, self.n2 = nn.LayerNorm(width), attention, nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.n1(x))
        return x + self.mlp(self.n2(x))


class FromScratch(nn.Module):
    """A vision transformer of two blocks of 4 heads, with a class token."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 5, 16))
        self.blocks = nn.Sequential(*(Block(16, kind(16, 4)) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class DeepGPT(nn.Module):
    """nanoGPT with three blocks, its embedding tied to its output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(20, 16), nn.Embedding(8, 16)
        self.h = nn.ModuleList([Block(16, CausalAttention(16, 4)) for _ in range(3)])
        self.ln_f, self.lm_head = nn.LayerNorm(16), nn.Linear(16, 20, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, idx: Tensor) -> Tensor:
        x = self.wte(idx) + self.wpe(torch.arange(idx.size(1), device=idx.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class OwnProduct(nn.Module):
    """A product as OpenAI's GPT-2 has it: weights of (inputs, outputs), and a shape made of a number that it keeps."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.outputs = layer.out_features
        self.weight, self.bias = nn.Parameter(layer.weight.detach().t().clone()), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.outputs)


class OwnGPT(DeepGPT):
    """Its layers are the user's own, so that nobody knows which axis of their weights reads and which makes."""

    def __init__(self) -> None:
        super().__init__()
        for name, layer in list(self.h.named_modules()):
            if isinstance(layer, nn.Linear):
                parent, _, leaf = name.rpartition(".")
                setattr(self.h.get_submodule(parent), leaf, OwnProduct(layer))


class ReducedAttention(nn.Module):
    """Keys and values of fewer places, as in PVT and SegFormer: as wide as what the convolution is given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.q, self.kv = heads, nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.reduce, self.norm, self.out = nn.Conv2d(width, width, 2, 2), nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        B, N, C = x.shape
        q = self.q(x).reshape(B, N, self.heads, -1).transpose(1, 2)
        less = self.reduce(x.transpose(1, 2).reshape(B, C, height, width)).reshape(B, C, -1).transpose(1, 2)
        kv = self.kv(self.norm(less)).reshape(B, -1, 2, self.heads, q.shape[-1])
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, -1))


class Pyramid(nn.Module):
    """Two blocks of attention over patches with fewer keys than queries."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 2, 2)
        self.norms = nn.ModuleList([nn.LayerNorm(16) for _ in range(2)])
        self.blocks = nn.ModuleList([ReducedAttention(16, 4) for _ in range(2)])
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x), height, width)
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))

"""Recurrent networks and attention in the ways people write them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LastStep(nn.Module):
    """LSTM, two layers, the last step is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 16, num_layers=2, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class GruMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.norm, self.head = nn.GRU(6, 16, batch_first=True), nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.gru(x)[0]).mean(1))


class BiLstm(nn.Module):
    """Final hidden states of both directions, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 12, batch_first=True, bidirectional=True)
        self.hidden, self.head = nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _) = self.lstm(x)
        return self.head(F.relu(self.hidden(torch.cat([h[-2], h[-1]], 1))))


class BiStacked(nn.Module):
    """Two bidirectional layers, a hidden state of the user's own making, every step is an output."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 12
        self.gru = nn.GRU(6, 12, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x, x.new_zeros(4, x.shape[0], self.size))[0])


class KeywordSpotter(nn.Module):
    """Convolutions over a spectrogram, then a GRU over time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 8, 3, (1, 2), 1), nn.BatchNorm2d(8), nn.ReLU())
        self.gru, self.head = nn.GRU(8 * 5, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.unsqueeze(1))
        x = x.permute(0, 2, 1, 3).flatten(2)
        _, h = self.gru(x)
        return self.head(h[-1])


class Attention(nn.Module):
    """``how``: separate, chunk, index, unbind, fused (scaled_dot_product_attention)."""

    def __init__(self, width: int, heads: int, how: str) -> None:
        super().__init__()
        self.num_heads, self.how, self.scale = heads, how, (width // heads) ** -0.5
        if how == "separate":
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        else:
            self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def parts(self, x: Tensor) -> Any:
        n, t, _ = x.shape
        if self.how in ("index", "unbind"):
            qkv = self.qkv(x).reshape(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
            return (qkv[0], qkv[1], qkv[2]) if self.how == "index" else qkv.unbind(0)
        three = (self.q(x), self.k(x), self.v(x)) if self.how == "separate" else self.qkv(x).chunk(3, dim=-1)
        return [p.view(n, t, self.num_heads, -1).transpose(1, 2) for p in three]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        if self.how == "fused":
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).flatten(2))


class ViTBlock(nn.Module):
    def __init__(self, width: int, heads: int, how: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, how)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class VisionTransformer(nn.Module):
    """With a class token, read at the end."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 5, 16))
        self.block, self.norm, self.head = ViTBlock(16, 4, how), nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.block(x))[:, 0])


class HeadWidth(nn.Module):
    """BERT's way of writing it: heads, head width and their product are three attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = 4, 6, 24
        self.query, self.key, self.value = (nn.Linear(16, 24) for _ in range(3))

    def divided(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.num_attention_heads, self.attention_head_size).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.divided(self.query(x)), self.divided(self.key(x)), self.divided(self.value(x))
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.attention_head_size) + mask
        context = (scores.softmax(-1) @ v).permute(0, 2, 1, 3).contiguous()
        return context.view(*context.shape[:-2], self.all_head_size)


class Bert(nn.Module):
    """Three embeddings, integer inputs and a mask, a pooled class token."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds, self.places = nn.Embedding(20, 16, 0), nn.Embedding(2, 16), nn.Embedding(8, 16)
        self.norm, self.attention, self.dense = nn.LayerNorm(16), HeadWidth(), nn.Linear(24, 16)
        self.norm1, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.norm2, self.pooler, self.head = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.register_buffer("ids", torch.arange(8)[None])

    def forward(self, words: Tensor, kinds: Tensor, mask: Tensor) -> Tensor:
        places = self.places(self.ids[:, : words.shape[1]])
        x = self.norm(self.words(words) + self.kinds(kinds) + places)
        hidden = (1.0 - mask[:, None, None, :].to(x.dtype)) * -1e4
        x = self.norm1(x + self.dense(self.attention(x, hidden)))
        x = self.norm2(x + self.down(F.gelu(self.up(x))))
        return self.head(torch.tanh(self.pooler(x[:, 0])))


class TorchAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(6, 16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(x.mean(1))


class CrossAttention(nn.Module):
    """Few queries look at a sequence of another width; time comes first, and the weights are an output."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.attention = nn.MultiheadAttention(16, 4, kdim=5, vdim=5)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x, weights = self.attention(self.queries(x).transpose(0, 1), y.transpose(0, 1), y.transpose(0, 1))
        return self.head(x.mean(0)), weights


class TorchEncoder(nn.Module):
    def __init__(self, *, norm_first: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=norm_first, activation="gelu")
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))

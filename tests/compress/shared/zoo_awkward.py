"""Networks written the way people really write them: functional calls, slices, odd norms, numbers in ``forward``."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_images import block


class Doubled(nn.Module):
    """The same tensor twice in one concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = block(3, 12), block(24, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.body(torch.cat([x, x], 1)).mean((2, 3)))


class Interleaved(nn.Module):
    """Even and odd channels go different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = block(3, 16), block(8, 8), block(8, 8), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.cat([self.a(x[:, ::2]), self.b(x[:, 1::2])], 1).mean((2, 3)))


class Scaled(nn.Module):
    """Bare parameters: one added to every pixel, one that scales channels, one for each of two."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = block(3, 16), block(16, 12), nn.Linear(12, 10)
        self.shift, self.scale = nn.Parameter(torch.randn(1, 16, 1, 1)), nn.Parameter(torch.rand(16) + 0.5)
        self.slope = nn.PReLU(12)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.stem(x) + self.shift) * self.scale[None, :, None, None]
        return self.head(self.slope(self.body(x)).mean((2, 3)))


class Functional(nn.Module):
    """No layers at all: parameters and buffers given to functions."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.offset = nn.Parameter(torch.randn(12, 3, 3, 3) * 0.3), nn.Parameter(torch.randn(12))
        self.weight, self.bias = nn.Parameter(torch.randn(5, 12)), nn.Parameter(torch.randn(5))
        self.gain, self.shift = nn.Parameter(torch.rand(12) + 0.5), nn.Parameter(torch.randn(12))
        self.register_buffer("mean", torch.randn(12) * 0.1)
        self.register_buffer("variance", torch.rand(12) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.kernel, self.offset, padding=1)
        x = F.batch_norm(x, self.mean, self.variance, self.gain, self.shift, self.training)
        return F.linear(F.relu(x).mean((2, 3)), self.weight, self.bias)


class TiedConvs(nn.Module):
    """The decoder uses the encoder's kernels, turned."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.offset = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x))))
        x = F.relu(F.conv_transpose2d(x, self.b.weight, self.offset, 2, 1, 1))
        return F.conv_transpose2d(x, self.a.weight, None, 2, 1, 1)


class StochasticDepth(nn.Module):
    """Whole blocks are skipped at random while training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = block(3, 8), nn.Linear(8, 10)
        self.blocks = nn.ModuleList(nn.Sequential(block(8, 16), nn.Conv2d(16, 8, 3, padding=1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for body in self.blocks:
            if self.training and random.random() < 0.2:
                continue
            x = F.relu(x + body(x))
        return self.head(x.mean((2, 3)))


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class GroupedQuery(nn.Module):
    """Rotary embeddings, and two heads of queries for each of keys and values."""

    def __init__(self, width: int, heads: int, kv: int) -> None:
        super().__init__()
        self.heads, self.kv, self.head_dim = heads, kv, width // heads
        self.wq, self.wo = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.wk, self.wv = (nn.Linear(width, kv * self.head_dim, bias=False) for _ in range(2))
        angles = torch.outer(torch.arange(8.0), 100.0 ** -torch.arange(0, 1, 2 / self.head_dim))
        self.register_buffer("cos", angles.cos().repeat(1, 2))
        self.register_buffer("sin", angles.sin().repeat(1, 2))

    def rotated(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        t = x.shape[2]
        return x * self.cos[:t] + torch.cat((-b, a), dim=-1) * self.sin[:t]

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q = self.rotated(self.wq(x).view(n, t, self.heads, self.head_dim).transpose(1, 2))
        k = self.rotated(self.wk(x).view(n, t, self.kv, self.head_dim).transpose(1, 2))
        v = self.wv(x).view(n, t, self.kv, self.head_dim).transpose(1, 2)
        k, v = (y.repeat_interleave(self.heads // self.kv, dim=1) for y in (k, v))
        return self.wo(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, -1))


class Llama(nn.Module):
    """A decoder of today: RMSNorm, rotary grouped-query attention, gated feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2, self.norm = nn.Embedding(20, 16), RMSNorm(16), RMSNorm(16), RMSNorm(16)
        self.attention = GroupedQuery(16, 4, 2)
        self.gate, self.up, self.down = (nn.Linear(a, b, bias=False) for a, b in ((16, 24), (16, 24), (24, 16)))
        self.head = nn.Linear(16, 20, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return self.head(self.norm(x + self.down(F.silu(self.gate(y)) * self.up(y))))


class CausalAttention(nn.Module):
    """As in nanoGPT: one product for all three, split by an attribute, widths read off the input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.n_head, self.n_embd = heads, width
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("bias", torch.tril(torch.ones(8, 8)).view(1, 1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * 0.5
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf")).softmax(dim=-1)
        return self.c_proj((att @ v).transpose(1, 2).contiguous().view(B, T, C))


class NanoGPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(20, 16), nn.Embedding(8, 16)
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(16), CausalAttention(16, 4), nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16), nn.Dropout(0.1))
        self.ln_f, self.lm_head = nn.LayerNorm(16), nn.Linear(16, 20, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, idx: Tensor) -> Tensor:
        x = self.wte(idx) + self.wpe(torch.arange(idx.size(1), device=idx.device))
        x = x + self.attn(self.ln_1(x))
        return self.lm_head(self.ln_f(x + self.mlp(self.ln_2(x))))


class Einsum(nn.Module):
    """Heads by ``unflatten`` and named sums; keys and values in one product, told apart by slices."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q, self.kv = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 32)
        self.out, self.head = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        kv = self.kv(x)
        k, v = kv[..., :16].unflatten(-1, (4, 4)), kv[..., 16:].unflatten(-1, (4, 4))
        q = self.q(x).unflatten(-1, (4, 4))
        weights = torch.einsum("bqhd,bkhd->bhqk", q * 0.5, k).softmax(-1)
        return self.head(x.mean(1) + self.out(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)).mean(1))


class Context(nn.Module):
    """Spatial and channel attention over means that keep their dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = block(3, 16), block(16, 12), nn.Linear(12, 10)
        self.squeeze, self.excite, self.where = nn.Linear(16, 8), nn.Linear(8, 16), nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, _, _ = x.size()
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean(-1).mean(-1)))))
        x = x * scale.view(n, c, 1, 1)
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        x = self.body(x * torch.sigmoid(self.where(seen)))
        return self.head(x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1))


class WideNorm(nn.Module):
    """LayerNorm over channels, height and width at once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.LayerNorm([8, 8, 8])
        self.body, self.head = block(8, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(F.relu(self.norm(self.stem(x)))).mean((2, 3)))


class TwoFactors(nn.Module):
    """nn.Bilinear over two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.both = nn.Linear(6, 12), nn.Linear(6, 8), nn.Bilinear(12, 8, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.both(F.relu(self.a(x)), F.relu(self.b(x)))))


class CellLoop(nn.Module):
    """A recurrent cell in a loop of the user's own, started from zeros of a width it knows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.head = nn.Linear(6, 12), nn.GRUCell(12, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.cell.hidden_size)
        for step in F.relu(self.embed(x)).unbind(1):
            h = self.cell(step, h)
        return self.head(h)


class Heads(nn.Module):
    """Lists and dicts of layers, walked in loops; a dict comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 12)
        self.towers = nn.ModuleList(nn.ModuleList([block(12, 8), block(8, 8)]) for _ in range(3))
        self.heads = nn.ModuleDict({name: nn.Linear(24, size) for name, size in (("age", 1), ("kind", 5))})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x, found = self.stem(x), []
        for tower in self.towers:
            y = x
            for layer in tower:
                y = layer(y)
            found.append(y.mean((2, 3)))
        return {name: head(torch.cat(found, -1)) for name, head in self.heads.items()}


class FlatConcat(nn.Module):
    """Two branches are flattened together, and the length is written down."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = block(3, 8, stride=2), block(3, 12, 5, 2)
        self.hidden, self.head = nn.Linear(320, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.a(x), self.b(x)], 1).view(-1, 20 * 4 * 4)
        return self.head(F.relu(self.hidden(x)))


class Bottlenecks(nn.Module):
    """As in YOLO: half goes on, every stage is kept, all are put side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.cv1, self.cv2 = block(8, 16, 1), block(32, 12, 1)
        self.m = nn.ModuleList(nn.Sequential(block(8, 8), block(8, 8)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        for m in self.m:
            y.append(y[-1] + m(y[-1]))
        return self.cv2(torch.cat(y, 1))


class Yolo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.c2f, self.out = block(3, 8, stride=2), Bottlenecks(), nn.Conv2d(36, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c2f(self.stem(x))
        y = F.max_pool2d(x, 3, 1, 1)
        x = self.out(torch.cat([x, y, F.max_pool2d(y, 3, 1, 1)], 1))
        return x.view(x.shape[0], 2, 3, -1).permute(0, 3, 1, 2)


class Conditioned(nn.Module):
    """One input shifts and scales the channels of another (FiLM)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.film, self.body = block(3, 12), nn.Linear(5, 24), block(12, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        gamma, beta = self.film(z).chunk(2, dim=-1)
        x = self.stem(x) * (1 + gamma[..., None, None]) + beta[:, :, None, None]
        return self.head(self.body(x).mean((2, 3)))


class WaveNet(nn.Module):
    """Gates of two convolutions, a residual and a sum of skips."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(2, 12, 1), nn.Conv1d(8, 4, 1)
        self.both = nn.ModuleList(nn.Conv1d(12, 24, 2, dilation=d) for d in (1, 2))
        self.residual, self.skip = (nn.ModuleList(nn.Conv1d(12, n, 1) for _ in range(2)) for n in (12, 8))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.stem(x), 0.0
        for both, residual, skip, d in zip(self.both, self.residual, self.skip, (1, 2), strict=True):
            a, b = torch.chunk(both(F.pad(x, (d, 0))), 2, dim=1)
            y = torch.tanh(a) * torch.sigmoid(b)
            x, total = x + residual(y), total + skip(y)
        return self.head(F.relu(total))


class EncoderDecoder(nn.Module):
    """The state of one recurrent network starts another; additive attention over the first."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(6, 12, batch_first=True), nn.LSTM(5, 12, batch_first=True)
        self.score, self.mix, self.head = nn.Linear(12, 12, bias=False), nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        seen, state = self.encoder(x)
        out, _ = self.decoder(y, state)
        weights = torch.bmm(self.score(out), seen.transpose(1, 2)).softmax(-1)
        return self.head(torch.tanh(self.mix(torch.cat([torch.bmm(weights, seen), out], -1))))


class Cosine(nn.Module):
    """Features of length one against learned directions of length one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.feature = nn.Sequential(block(3, 12), block(12, 16)), nn.Linear(16, 12)
        self.directions = nn.Parameter(torch.randn(5, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.feature(self.body(x).mean((2, 3)))
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.directions, dim=-1))


class Windows(nn.Module):
    """Swin: attention within windows, then four patches are merged into one."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.qkv = nn.Conv2d(3, 16, 2, 2), nn.LayerNorm(16), nn.Linear(16, 48)
        self.proj, self.reduction, self.head = nn.Linear(16, 16), nn.Linear(64, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        y = self.norm(x).view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(y).reshape(y.shape[0], 4, 3, 4, -1).permute(2, 0, 3, 1, 4)
        y = ((q @ k.transpose(-2, -1)) * 0.5).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).reshape(y.shape[0], 4, -1))
        x = x + y.view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        merged = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        return self.head(F.gelu(self.reduction(merged)).mean((1, 2)))

"""Tiny networks of every kind that pruning must either get right or leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo_awkward as awkward
import zoo_images as images
import zoo_joint as joint
import zoo_sequences as sequences
from compress.pruning.permutation_check import randomise
from zoo_images import block


def plain() -> nn.Module:
    return nn.Sequential(block(3, 8), block(8, 12), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 10))


class Residual(nn.Module):
    def __init__(self, a: int, b: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b)
        self.conv2, self.bn2 = nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b)
        self.shortcut = nn.Sequential() if a == b else nn.Sequential(nn.Conv2d(a, b, 1, stride), nn.BatchNorm2d(b))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


def resnet() -> nn.Module:
    body = [block(3, 8), Residual(8, 8), Residual(8, 16, 2)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(12), nn.Conv2d(12, 8, 3, padding=1)
        self.bn3, self.head = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return self.head(F.relu(self.bn3(x)).mean((2, 3)))


class InvertedResidual(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.same = a == b
        self.body = nn.Sequential(
            block(a, 3 * a, 1),
            block(3 * a, 3 * a, groups=3 * a),
            nn.Conv2d(3 * a, b, 1, bias=False),
            nn.BatchNorm2d(b),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.same else self.body(x)


def mobilenet() -> nn.Module:
    body = [block(3, 8, stride=2), InvertedResidual(8, 8), InvertedResidual(8, 12)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))


def dscnn() -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(1, 64, (10, 4), stride=2, padding=(5, 1), bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Dropout(0.2),
    ]
    for _ in range(4):
        layers += [block(64, 64, groups=64), block(64, 64, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 12))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = block(3, 16), nn.Linear(16, 10)
        self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(x.mean((2, 3)))


def resnext() -> nn.Module:
    body = [block(3, 16, 1), block(16, 32, groups=4), nn.Conv2d(32, 12, 1)]
    return nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = block(3, 8), block(8, 6), block(14, 6)
        self.norm, self.head = nn.BatchNorm2d(20), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.a(x)], 1)
        x = torch.cat([x, self.b(x)], 1)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = block(3, 8), block(8, 16), block(16, 8)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        return self.out(self.c(torch.cat([self.up(b), a], 1)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def autoencoder() -> nn.Module:
    down = [nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4), nn.ReLU()]
    return nn.Sequential(*down, nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12))


def groupnorm() -> nn.Module:
    body = [nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 12, 3), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = block(3, 16), block(8, 8), block(8, 8), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.stem(x), 8, dim=1)
        return self.head(torch.cat([self.a(a), self.b(b)], 1).mean((2, 3)))


class Chunk(nn.Module):
    """Gated: one half scales the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = block(3, 16), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        return self.head(self.mix(a * torch.sigmoid(b)).mean((2, 3)))


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = block(3, 16), block(16, 16, groups=2), nn.Linear(16, 10)
        self.last = block(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.stem(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.last(x).mean((2, 3)))


class Pad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = block(3, 8), block(8, 16, stride=2), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((self.body(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.lstm(F.relu(self.embed(x)))
        return self.head(F.relu(self.hidden(x.mean(1))))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (f(x).view(n, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-1, -2)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, t, -1))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 4, 16))
        self.norm1, self.attention = nn.LayerNorm(16), Attention(16, 4)
        self.norm2, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        x = x + self.attention(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


class Encoder(nn.Module):
    """Embedding and torch's own transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)).mean(1))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector, self.head = block(3, 8), nn.Linear(4, 8), nn.Linear(16, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.cat([self.image(x).mean((2, 3)), F.relu(self.vector(y))], 1))


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.box, self.label = block(3, 12), nn.Conv2d(12, 4, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.body(x)
        return {"box": self.box(x), "scores": (self.label(x.mean((2, 3))),)}


class Tied(nn.Module):
    """A language model whose embedding is also its head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(20, 16), nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.down(F.relu(self.up(x))))


class WeightNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.weight_norm(nn.Linear(6, 8))
        self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(x)))))


def image(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randn(2, *shape),)


IMAGE: Callable[[], tuple[Tensor, ...]] = lambda: image(3, 8, 8)  # noqa: E731
WORDS: Callable[[], tuple[Tensor, ...]] = lambda: (torch.randint(0, 20, (2, 6)),)  # noqa: E731
ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "plain": (plain, IMAGE),
    "resnet": (resnet, IMAGE),
    "preactivation": (PreActivation, IMAGE),
    "mobilenet": (mobilenet, IMAGE),
    "dscnn": (dscnn, lambda: image(1, 49, 10)),
    "squeeze-excite": (SqueezeExcite, IMAGE),
    "resnext": (resnext, IMAGE),
    "densenet": (DenseNet, IMAGE),
    "unet": (UNet, IMAGE),
    "mlp": (mlp, lambda: image(6)),
    "autoencoder": (autoencoder, lambda: image(12)),
    "groupnorm": (groupnorm, IMAGE),
    "split": (Split, IMAGE),
    "chunk": (Chunk, IMAGE),
    "shuffle": (Shuffle, IMAGE),
    "pad": (Pad, IMAGE),
    "lstm": (Recurrent, lambda: image(5, 6)),
    "vit": (ViT, IMAGE),
    "encoder": (Encoder, WORDS),
    "two-inputs": (TwoInputs, lambda: (*image(3, 8, 8), *image(4))),
    "two-outputs": (TwoOutputs, IMAGE),
    "tied": (Tied, WORDS),
    "weight-norm": (WeightNormed, lambda: image(6)),
    "mobilenet-v3": (images.mobilenet_v3, IMAGE),
    "efficientnet": (images.efficientnet, IMAGE),
    "shufflenet": (images.shufflenet, IMAGE),
    "resnext-blocks": (images.resnext_blocks, IMAGE),
    "inception": (images.Inception, IMAGE),
    "unet-bilinear": (images.UNetBilinear, IMAGE),
    "conv-autoencoder": (images.ConvAutoencoder, IMAGE),
    "cnn-1d": (images.cnn_1d, lambda: image(2, 30)),
    "tcn": (images.TCN, lambda: image(2, 12)),
    "layernorm": (images.LayerNormed, lambda: image(6, 12)),
    "convnext": (images.convnext, IMAGE),
    "pixel-shuffle": (images.SuperResolution, IMAGE),
    "uneven-split": (images.UnevenSplit, IMAGE),
    "known-split": (images.KnownSplit, IMAGE),
    "hard-view": (images.HardView, IMAGE),
    "shared-conv": (images.SharedConv, IMAGE),
    "lstm-last": (sequences.LastStep, lambda: image(5, 6)),
    "gru-mean": (sequences.GruMean, lambda: image(5, 6)),
    "bi-lstm": (sequences.BiLstm, lambda: image(5, 6)),
    "bi-gru-stacked": (sequences.BiStacked, lambda: image(4, 6)),
    "conv-gru": (sequences.KeywordSpotter, lambda: image(7, 10)),
    "vit-separate": (lambda: sequences.VisionTransformer("separate"), IMAGE),
    "vit-chunk": (lambda: sequences.VisionTransformer("chunk"), IMAGE),
    "vit-index": (lambda: sequences.VisionTransformer("index"), IMAGE),
    "vit-unbind": (lambda: sequences.VisionTransformer("unbind"), IMAGE),
    "vit-fused": (lambda: sequences.VisionTransformer("fused"), IMAGE),
    "multihead": (sequences.TorchAttention, lambda: image(5, 6)),
    "cross-attention": (sequences.CrossAttention, lambda: (*image(3, 6), *image(5, 5))),
    "transformer": (lambda: sequences.TorchEncoder(norm_first=False), WORDS),
    "transformer-norm-first": (lambda: sequences.TorchEncoder(norm_first=True), WORDS),
    "bert": (
        sequences.Bert,
        lambda: (*WORDS(), torch.randint(0, 2, (2, 6)), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])),
    ),
    "doubled": (awkward.Doubled, IMAGE),
    "interleaved": (awkward.Interleaved, IMAGE),
    "bare-parameters": (awkward.Scaled, IMAGE),
    "functional": (awkward.Functional, IMAGE),
    "tied-convs": (awkward.TiedConvs, IMAGE),
    "stochastic-depth": (awkward.StochasticDepth, IMAGE),
    "llama": (awkward.Llama, WORDS),
    "nanogpt": (awkward.NanoGPT, WORDS),
    "gpt-deep": (joint.DeepGPT, WORDS),
    "gpt-own-layers": (joint.OwnGPT, WORDS),
    "vit-from-scratch": (lambda: joint.FromScratch(joint.ReshapedAttention), IMAGE),
    "vit-own-products": (lambda: joint.FromScratch(joint.SeparateAttention), IMAGE),
    "vit-scaled-by-width": (lambda: joint.FromScratch(joint.ScaledByWidth), IMAGE),
    "spatial-reduction": (joint.Pyramid, IMAGE),
    "einsum-heads": (awkward.Einsum, lambda: image(5, 6)),
    "context": (awkward.Context, IMAGE),
    "layernorm-chw": (awkward.WideNorm, IMAGE),
    "bilinear": (awkward.TwoFactors, lambda: image(6)),
    "cell-loop": (awkward.CellLoop, lambda: image(5, 6)),
    "dict-of-heads": (awkward.Heads, IMAGE),
    "flat-concat": (awkward.FlatConcat, IMAGE),
    "yolo": (awkward.Yolo, IMAGE),
    "film": (awkward.Conditioned, lambda: (*image(3, 8, 8), *image(5))),
    "wavenet": (awkward.WaveNet, lambda: image(2, 12)),
    "encoder-decoder": (awkward.EncoderDecoder, lambda: (*image(5, 6), *image(4, 5))),
    "cosine": (awkward.Cosine, IMAGE),
    "swin": (awkward.Windows, IMAGE),
}
AWKWARD = list(ZOO)[list(ZOO).index("doubled") :]


def made(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network of the zoo with lively norms, and inputs for it; the same each time."""
    torch.manual_seed(0)
    make, inputs = ZOO[name]
    module = make()
    randomise(module, 0)
    return module.train(), inputs()


FIRST = list(ZOO)[: list(ZOO).index("weight-norm") + 1]
"""Those written here, one for each thing that can go wrong."""

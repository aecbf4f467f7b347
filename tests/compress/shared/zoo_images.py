"""Networks over images and one-dimensional signals, the kinds people bring."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def block(
    a: int, b: int, k: int = 3, stride: int = 1, groups: int = 1, act: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(b), act())


class Excite(nn.Module):
    def __init__(self, width: int, inner: int, gate: type[nn.Module] = nn.Hardsigmoid) -> None:
        super().__init__()
        self.pool, self.gate = nn.AdaptiveAvgPool2d(1), gate()
        self.down, self.up = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(F.relu(self.down(self.pool(x)))))


class Inverted(nn.Module):
    """Inverted residual with squeeze-excite, as in MobileNetV3 and EfficientNet."""

    def __init__(self, a: int, b: int, k: int, act: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.same = a == b
        self.body = nn.Sequential(
            block(a, 3 * a, 1, act=act),
            block(3 * a, 3 * a, k, groups=3 * a, act=act),
            Excite(3 * a, a, gate),
            nn.Conv2d(3 * a, b, 1, bias=False),
            nn.BatchNorm2d(b),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.same else self.body(x)


def mobilenet_v3() -> nn.Module:
    body = [Inverted(8, 8, 3, nn.Hardswish, nn.Hardsigmoid), Inverted(8, 12, 5, nn.Hardswish, nn.Hardsigmoid)]
    return nn.Sequential(
        block(3, 8, stride=2, act=nn.Hardswish), *body, block(12, 24, 1, act=nn.Hardswish),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 16), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(16, 10),
    )  # fmt: skip


def efficientnet() -> nn.Module:
    body = [Inverted(8, 8, 3, nn.SiLU, nn.Sigmoid), Inverted(8, 12, 5, nn.SiLU, nn.Sigmoid)]
    return nn.Sequential(
        block(3, 8, stride=2, act=nn.SiLU), *body, block(12, 24, 1, act=nn.SiLU),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(24, 10),
    )  # fmt: skip


class ShuffleUnit(nn.Module):
    """ShuffleNetV2: half of the channels pass, the other half is worked on, then both are interleaved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.body = nn.Sequential(
            block(half, half, 1),
            nn.Conv2d(half, half, 3, 1, 1, groups=half),
            nn.BatchNorm2d(half),
            block(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        x = torch.cat([a, self.body(b)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet() -> nn.Module:
    body = [block(3, 16), ShuffleUnit(16), ShuffleUnit(16), block(16, 24, 1)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))


class ResNeXtBlock(nn.Module):
    def __init__(self, width: int, inner: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            block(width, inner, 1),
            block(inner, inner, groups=groups),
            nn.Conv2d(inner, width, 1),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


def resnext_blocks() -> nn.Module:
    body = [block(3, 16), ResNeXtBlock(16, 32, 4), ResNeXtBlock(16, 32, 4)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.three = block(3, 12), block(12, 8, 1), block(12, 10)
        self.five, self.pooled = nn.Sequential(block(12, 6, 1), block(6, 6, 5)), block(12, 4, 1)
        self.last, self.head = block(28, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = self.pooled(F.max_pool2d(x, 3, 1, 1))
        x = torch.cat([self.one(x), self.three(x), self.five(x), pooled], 1)
        return self.head(self.last(x).mean((2, 3)))


class UNetBilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = block(3, 8), block(8, 16), block(16, 16), block(32, 12)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.e, self.out = block(20, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        d = self.d(torch.cat([self.up(c), b], 1))
        return self.out(self.e(torch.cat([F.interpolate(d, scale_factor=2.0, mode="nearest"), a], 1)))


class ConvAutoencoder(nn.Module):
    """With a narrow middle of fixed size, unflattened again."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten()
        )
        self.middle = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 64), nn.Unflatten(1, (16, 2, 2)))
        self.up = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 2, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 3, 2, 2), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.middle(self.down(x)))


def cnn_1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 12, 5, 2), nn.BatchNorm1d(12), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(12, 16, 3, padding=1), nn.BatchNorm1d(16), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(),
        nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, 4),
    )  # fmt: skip


class Temporal(nn.Module):
    """One block of a temporal convolutional network: causal by cutting the end off."""

    def __init__(self, a: int, b: int, dilation: int) -> None:
        super().__init__()
        self.cut = 2 * dilation
        self.conv1 = nn.Conv1d(a, b, 3, padding=self.cut, dilation=dilation)
        self.conv2 = nn.Conv1d(b, b, 3, padding=self.cut, dilation=dilation)
        self.same = nn.Conv1d(a, b, 1) if a != b else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x)[:, :, : -self.cut])
        return F.relu(F.relu(self.conv2(y)[:, :, : -self.cut]) + self.same(x))


class TCN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(Temporal(2, 12, 1), Temporal(12, 12, 2)), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[:, :, -1])


class LayerNormed(nn.Module):
    """A mixer over tokens and channels with LayerNorm between."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Linear(12, 16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.tokens = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
        self.channels = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(1))


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.filter, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.filter(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    body = [nn.Conv2d(3, 8, 2, 2), ConvNeXtBlock(8), nn.Conv2d(8, 12, 2, 2), ConvNeXtBlock(12)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 10))


class SuperResolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.wide = nn.Sequential(block(3, 8), block(8, 12)), nn.Conv2d(12, 32, 3, padding=1)
        self.shuffle, self.out = nn.PixelShuffle(2), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.shuffle(self.wide(self.body(x)))))


class UnevenSplit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = block(3, 16), block(6, 8), block(10, 8), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.stem(x), [6, 10], dim=1)
        return self.head(torch.cat([self.a(a), self.b(b)], 1).mean((2, 3)))


class KnownSplit(nn.Module):
    """The size of a part stands in an attribute, so it can be found and changed."""

    def __init__(self) -> None:
        super().__init__()
        self.half = 8
        self.stem, self.a, self.b, self.head = block(3, 16), block(8, 8), block(8, 8), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.stem(x), self.half, dim=1)
        return self.head(torch.cat([self.a(a), self.b(b)], 1).mean((2, 3)))


class HardView(nn.Module):
    """The flat size is a literal in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = block(3, 8), block(8, 12, stride=2), nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x)).view(-1, 192))


class SharedConv(nn.Module):
    """One convolution used twice in a row, one head on two scales."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.norm = block(3, 12), nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.again(F.relu(self.again(self.stem(x)))))
        return self.head(x), self.head(F.max_pool2d(self.norm(x), 2))

"""Trained ``.onnx`` files that come in Python wheels, and samples for them, made here without labels.

Images are crops of scikit-learn's two photographs and lines of printed text, sounds are a few harmonics with noise:
no real task, but inputs of the right kind, so that ranges and outputs are not those of noise.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Samples = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Subject:
    """One file: the wheel it is in, where, and what makes ``count`` samples of it by input name."""

    name: str
    wheel: str
    path: str
    make: Callable[[np.random.Generator, int], Samples]
    count: int


def _photographs(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Crops at any scale, (count, 3, height, width), in [0, 1]."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    pictures = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    found = []
    for index in range(count):
        picture = pictures[index % 2]
        share = rng.uniform(0.3, 0.95)
        size = (int(share * picture.width), int(share * picture.height))
        left, top = (int(rng.integers(0, whole - part + 1)) for whole, part in zip(picture.size, size, strict=True))
        cut = picture.crop((left, top, left + size[0], top + size[1])).resize((width, height))
        found.append(np.asarray(cut, np.float32).transpose(2, 0, 1) / 255.0)
    return np.stack(found)


def _printed(rng: np.random.Generator, count: int, height: int, width: int, lines: int) -> np.ndarray:
    """Pictures with ``lines`` lines of text each, (count, 3, height, width), in [0, 1]."""
    from PIL import Image, ImageDraw, ImageFont

    letters = list(string.ascii_letters + string.digits)
    found = []
    for _ in range(count):
        paper, ink = (tuple(int(x) for x in rng.integers(*ends, 3)) for ends in ((170, 256), (0, 90)))
        picture = Image.new("RGB", (width, height), paper)
        draw = ImageDraw.Draw(picture)
        for line in range(lines):
            size = int(rng.uniform(0.45, 0.75) * height / lines)
            text = "".join(rng.choice(letters, int(rng.integers(4, 12))))
            place = (float(rng.uniform(0, 0.2 * width)), (line + float(rng.uniform(0, 0.2))) * height / lines)
            draw.text(place, text, ink, font=ImageFont.load_default(size))
        noise = rng.normal(0, 6, (height, width, 3))
        found.append(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.float32).transpose(2, 0, 1) / 255.0)
    return np.stack(found)


def _sounds(rng: np.random.Generator, count: int, length: int, rate: int) -> np.ndarray:
    """A voiced sound with pauses and noise, (count, length)."""
    time = np.arange(length) / rate
    found = np.zeros((count, length), np.float32)
    for row in found:
        base = rng.uniform(90, 400)
        for harmonic in range(1, 9):
            strength = rng.uniform(0.2, 1.0) / harmonic
            row += strength * np.sin(2 * np.pi * harmonic * base * time * (1 + 0.01 * np.sin(5 * time)))
        row *= np.clip(np.sin(2 * np.pi * rng.uniform(0.5, 4) * time + rng.uniform(0, 6)), 0, 1)
        row += rng.normal(0, rng.uniform(0.002, 0.2), length)
        row *= rng.uniform(0.05, 0.5) / np.abs(row).max()
    return found


def _spectra(sounds: np.ndarray, frames: int, size: int, bins: int) -> np.ndarray:
    """Logarithms of short spectra, (count, frames, bins)."""
    step = (sounds.shape[1] - size) // frames
    cut = np.stack([sounds[:, i * step : i * step + size] for i in range(frames)], axis=1) * np.hanning(size)
    return np.log10(np.abs(np.fft.rfft(cut, axis=2))[..., :bins] ** 2 + 1e-10).astype(np.float32)


def _bytes_of_files(rng: np.random.Generator, count: int) -> Samples:
    """Beginnings of source text, numbers and noise: (count, 2048), 256 where a file has ended."""
    found = np.full((count, 2048), 256, np.int32)
    words = ["def", "return", "import", "class", "int", "void", "<div>", "{", "}", ";", "=", "0", ",", "SELECT", "\n"]
    for index, row in enumerate(found):
        text = " ".join(rng.choice(words, 500)).encode()
        content = (text, bytes(rng.integers(0, 256, 2048, dtype=np.uint8)), str(list(rng.random(100))).encode())
        data = np.frombuffer(content[index % 3], np.uint8)[: int(rng.integers(200, 1024))]
        row[: len(data)] = data
        row[1024 : 1024 + len(data)] = data[::-1]
    return {"bytes": found}


def _standardized(images: np.ndarray) -> np.ndarray:
    means, deviations = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return ((images - means[:, None, None]) / deviations[:, None, None]).astype(np.float32)


def _voices(rng: np.random.Generator, count: int) -> Samples:
    return {
        "input": _sounds(rng, count, 576, 16000),
        "state": (0.1 * rng.standard_normal((2, count, 128))).astype(np.float32),
        "sr": np.array(16000),
    }


SUBJECTS = (
    Subject("magika", "magika", "magika/models/standard_v3_3/model.onnx", _bytes_of_files, 300),
    Subject(
        "nudenet", "nudenet", "nudenet/320n.onnx",
        lambda rng, n: {"images": _photographs(rng, n, 320, 320)}, 60,
    ),
    Subject(
        "ocr-detector", "rapidocr-onnxruntime", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        lambda rng, n: {"x": _standardized(_printed(rng, n, 320, 320, 5))}, 60,
    ),
    Subject(
        "ocr-recognizer", "rapidocr-onnxruntime", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        lambda rng, n: {"x": 2 * _printed(rng, n, 48, 320, 1) - 1}, 100,
    ),
    Subject(
        "ocr-direction", "rapidocr-onnxruntime", "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        lambda rng, n: {"x": 2 * _turned(_printed(rng, n, 48, 192, 1)) - 1}, 200,
    ),
    Subject(
        "basic-pitch", "basic-pitch", "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        lambda rng, n: {"serving_default_input_2:0": _sounds(rng, n, 43844, 22050)[:, :, None]}, 60,
    ),
    Subject(
        "dnsmos", "speechmos", "speechmos/dnsmos_models/sig_bak_ovr.onnx",
        lambda rng, n: {"input_1": _sounds(rng, n, 144160, 16000)}, 100,
    ),
    Subject(
        "dnsmos-v8", "speechmos", "speechmos/dnsmos_models/model_v8.onnx",
        lambda rng, n: {"input_1": _spectra(_sounds(rng, n, 144160, 16000), 900, 320, 120)}, 100,
    ),
    Subject(
        "plcmos", "speechmos", "speechmos/plcmos_models/plcmos_v2.onnx",
        lambda rng, n: {
            "degraded_audio": _spectra(_sounds(rng, n, 80000, 16000), 300, 512, 257)[:, None],
            "rater_embed": rng.standard_normal((n, 64)).astype(np.float32),
        }, 100,
    ),
    Subject("silero-vad", "silero-vad", "silero_vad/data/silero_vad_16k_op15.onnx", _voices, 300),
    Subject(
        "captcha", "ddddocr", "ddddocr/common_old.onnx",
        lambda rng, n: {"input1": (_printed(rng, n, 64, 160, 1).mean(1, keepdims=True) - 0.456) / 0.224}, 200,
    ),
    Subject(
        "captcha-detector", "ddddocr", "ddddocr/common_det.onnx",
        lambda rng, n: {"images": 255 * _printed(rng, n, 416, 416, 3)}, 60,
    ),
)  # fmt: skip


def _turned(images: np.ndarray) -> np.ndarray:
    """Every other image upside down, so that there is something to decide."""
    turned = images.copy()
    turned[::2] = images[::2, :, ::-1, ::-1]
    return turned

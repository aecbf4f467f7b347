"""Spoken digits with MLPerf Tiny's DS-CNN on the Free Spoken Digit Dataset; needs --data (a folder or a zip).

The network is the 64-channel depthwise-separable CNN of the MLPerf Tiny keyword-spotting benchmark (Zhang et al.
2017, "Hello Edge"; Banbury et al. 2021), on MFCCs of the same 49 x 10 shape. The data are recordings of ten digits
by six speakers at 8 kHz (CC BY-SA 4.0), split by the index in a file's name: 0-4 is test (the dataset's own
convention), 5-9 is val, the rest is train. So every speaker is heard in training: what is measured is how well
*new recordings of known speakers* are understood, and test is reported per speaker.

2,100 recordings are few, and a pruned network, too, fits them by heart. So the train split holds each recording four
times: as it is, and three times with its speed, its position and the noise changed (seeded).
"""

from __future__ import annotations

import io
import re
import warnings
import wave
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import compress
from targets.errors import TaskError

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import TensorDataset

SOURCE = "https://github.com/Jakobovski/free-spoken-digit-dataset"
RATE = 8000
"""Samples a second; a clip is one second long."""
WINDOW, HOP = 320, 160
"""40 ms windows every 20 ms: (8000 - 320) / 160 + 1 = 49 frames."""
MELS, COEFFICIENTS = 20, 10
VERSIONS = 4
"""How often each train recording is in the train split, the unchanged one included."""
SPLITS = ("train", "val", "test")

SPACE = compress.SearchSpace(
    # From 64 channels the runtime's blocks of 16 are reached at 0.25, 0.5 and 0.75.
    prune_ratio=compress.Float(0.0, 0.8),
    # Of all that was tried one at a time (benchmarks/README.md), these two bought most.
    importance="taylor",
    label_smoothing=0.1,
    epochs=compress.Int(8, 24),
    lr=compress.Float(2e-3, 1e-2, log=True),
    weight_decay=compress.Float(1e-4, 1e-2, log=True),
    l1=0.0,
    # A network this small has nothing to spare: what regularises it is the augmented data and the teacher.
    dropout=0.0,
    distill_weight=compress.Float(0.4, 1.0),
    temperature=compress.Float(1.5, 5.0),
)

_NAME = re.compile(r"(\d)_([A-Za-z]+)_(\d+)\.wav")


@dataclass(frozen=True)
class Recording:
    """One spoken digit; ``samples`` float32 in [-1, 1], of any length."""

    samples: np.ndarray
    digit: int
    speaker: str
    index: int

    @property
    def split(self) -> str:
        """The split it belongs to, by its index alone."""
        return "test" if self.index < 5 else "val" if self.index < 10 else "train"


def task(data: str | None = None) -> compress.Task:
    """The recipe's task; ``data`` is a folder or a zip with the dataset's wav files.

    Raises TaskError if there is no data, or nothing in it that can be trained and tested on.
    """
    if data is None:
        raise TaskError(f"keyword-spotting needs its data: get {SOURCE} (CC BY-SA 4.0) and pass --data FOLDER_OR_ZIP")
    recordings = read_recordings(Path(data))
    parts = {split: [r for r in recordings if r.split == split] for split in SPLITS}
    for split, part in parts.items():
        digits = {r.digit for r in part}
        if len(digits) < 2:
            raise TaskError(
                f"{data}: {split} has {len(part)} recordings of {len(digits)} digits; at least two digits are needed "
                f"(test is index 0-4, val 5-9, train the rest; the whole dataset: {SOURCE})"
            )
    sets = datasets(parts)

    def baseline(trained: bool = True) -> nn.Module:
        return train_baseline(sets["train"]) if trained else network()

    return compress.Task(
        name="keyword-spotting",
        model=baseline,
        train=sets["train"],
        val=sets["val"],
        test=sets["test"],
        slices={"speaker": [r.speaker for r in parts["test"]]},
    )


def read_recordings(path: Path) -> list[Recording]:
    """All recordings below a folder or in a zip, in the order of their names.

    Files named otherwise than ``{digit}_{speaker}_{index}.wav`` are left out, with a warning that counts them.
    Raises TaskError if the path is neither, if nothing in it fits, or if a file is not 8 kHz mono 16-bit PCM.
    """
    found, skipped = [], 0
    for name, content in _wav_files(path):
        match = _NAME.fullmatch(name.rsplit("/", 1)[-1])
        if match is None:
            skipped += 1
            continue
        digit, speaker, index = match.groups()
        found.append(Recording(_decode(name, content), int(digit), speaker, int(index)))
    if not found:
        raise TaskError(
            f"{path}: none of its {skipped} wav files is named DIGIT_SPEAKER_INDEX.wav, such as 7_jackson_32.wav; "
            f"pass a folder or a zip of {SOURCE}"
        )
    if skipped:
        warnings.warn(f"{path}: left out {skipped} wav files not named DIGIT_SPEAKER_INDEX.wav", stacklevel=2)
    return found


def datasets(parts: dict[str, list[Recording]]) -> dict[str, TensorDataset]:
    """(1, 49, 10) float32 features and digits per split, standardised with the mean and deviation of train."""
    import torch
    from torch.utils.data import TensorDataset

    features = {split: mfcc(np.stack([clip(r.samples) for r in part])) for split, part in parts.items()}
    labels = {split: np.array([r.digit for r in part]) for split, part in parts.items()}
    rng = np.random.default_rng(0)
    extra = [mfcc(np.stack([augment(r.samples, rng) for r in parts["train"]])) for _ in range(VERSIONS - 1)]
    features["train"] = np.concatenate([features["train"], *extra])
    labels["train"] = np.tile(labels["train"], VERSIONS)
    # One mean and deviation per coefficient: they differ tenfold in spread.
    mean = features["train"].mean((0, 1, 2))
    deviation = features["train"].std((0, 1, 2)) + 1e-6
    return {
        split: TensorDataset(torch.from_numpy((features[split] - mean) / deviation), torch.from_numpy(labels[split]))
        for split in SPLITS
    }


def clip(samples: np.ndarray, position: float = 0.5) -> np.ndarray:
    """One second of sound, (8000,): padded with silence, of which the share ``position`` stands in front."""
    samples = samples[:RATE]
    padded = np.zeros(RATE, dtype=np.float32)
    start = int(position * (RATE - len(samples)))
    padded[start : start + len(samples)] = samples
    return padded


def augment(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One second of the same digit, (8000,): faster or slower by up to 18 %, moved, with noise 10 to 30 dB below."""
    speed = rng.uniform(0.85, 1.18)
    positions = np.arange(max(1, round(len(samples) / speed))) * speed
    stretched = np.interp(positions, np.arange(len(samples)), samples).astype(np.float32)
    sound = clip(stretched, position=rng.uniform())
    noise = rng.standard_normal(RATE, dtype=np.float32)
    level = np.sqrt(np.mean(sound**2)) * 10 ** rng.uniform(-1.5, -0.5)
    return np.asarray(sound + np.float32(level) * noise)


def mfcc(clips: np.ndarray) -> np.ndarray:
    """Mel-frequency cepstral coefficients (Davis and Mermelstein 1980): (n, 8000) -> (n, 1, 49, 10) float32.

    Every clip is first brought to the same power, because loudness says nothing about the digit.
    """
    power = np.sqrt(np.mean(clips**2, axis=1, keepdims=True)) + 1e-6
    window = np.hanning(WINDOW).astype(np.float32)
    filters, cosines = _mel_filters(), _cosines()
    out = np.empty((len(clips), 1, (RATE - WINDOW) // HOP + 1, COEFFICIENTS), dtype=np.float32)
    for start in range(0, len(clips), 256):  # a few megabytes of frames at a time
        chunk = slice(start, start + 256)
        frames = np.lib.stride_tricks.sliding_window_view(clips[chunk] / power[chunk], WINDOW, axis=1)[:, ::HOP]
        spectrum = np.abs(np.fft.rfft(frames * window, 512)) ** 2 / WINDOW
        # The floor is 30 dB below the clip's power: beneath it lies noise, which differs between speakers' rooms.
        out[chunk, 0] = np.log(spectrum @ filters.T + 1e-3) @ cosines.T
    return out


def network(width: int = 64, dropout: float = 0.2) -> nn.Sequential:
    """The DS-CNN: (batch, 1, 49, 10) -> (batch, 10) logits."""
    from torch import nn

    def normalised(convolution: nn.Conv2d) -> list[nn.Module]:
        return [convolution, nn.BatchNorm2d(width), nn.ReLU()]

    layers = normalised(nn.Conv2d(1, width, (10, 4), stride=2, padding=(5, 1), bias=False))
    for _ in range(4):
        layers += normalised(nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False))
        layers += normalised(nn.Conv2d(width, width, 1, bias=False))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(width, 10))


def train_baseline(train: TensorDataset, epochs: int = 10, width: int = 64) -> nn.Module:
    """Train the network from scratch: AdamW, cosine from 3e-3, batches of 64; under a minute on one core."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.utils import convert_conv2d_weight_memory_format

    inputs, labels = train.tensors
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network(width).train()
        # Channels last, weights and inputs: a step takes two thirds of the time on a CPU.
        convert_conv2d_weight_memory_format(model, torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            order = torch.randperm(len(inputs))
            for start in range(0, len(order) - 1, 64):  # a last batch of one is left out: BatchNorm needs two
                chosen = order[start : start + 64]
                batch = inputs[chosen].contiguous(memory_format=torch.channels_last)
                optimizer.zero_grad()
                torch.autograd.backward(cross_entropy(model(batch), labels[chosen]))
                optimizer.step()
            schedule.step()
    convert_conv2d_weight_memory_format(model, torch.contiguous_format)
    return model.eval()


def _wav_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every wav file below a folder or in a zip, sorted by name."""
    if path.is_dir():
        for file in sorted(path.rglob("*.wav")):
            yield file.relative_to(path).as_posix(), file.read_bytes()
        return
    if not path.exists():
        raise TaskError(f"--data {str(path)!r} does not exist; pass a folder or a zip of {SOURCE}")
    try:
        with zipfile.ZipFile(path) as archive:
            for name in _sounds(archive.namelist()):
                yield name, archive.read(name)
    except (zipfile.BadZipFile, OSError) as error:
        raise TaskError(f"--data {str(path)!r} is neither a folder nor a readable zip file ({error})") from None


def _sounds(names: Sequence[str]) -> list[str]:
    """The wav files, without the resource forks that macOS puts into archives."""
    return sorted(name for name in names if name.endswith(".wav") and not name.startswith("__MACOSX/"))


def _decode(name: str, content: bytes) -> np.ndarray:
    """PCM samples as float32 in [-1, 1]."""
    try:
        with wave.open(io.BytesIO(content)) as sound:
            form = (sound.getframerate(), sound.getnchannels(), 8 * sound.getsampwidth())
            samples = sound.readframes(sound.getnframes())
    except (wave.Error, EOFError) as error:
        raise TaskError(f"{name} is not a readable wav file ({error or 'it ends early'})") from None
    if form != (RATE, 1, 16):
        raise TaskError(
            f"{name} is {form[0]} Hz, {form[1]} channels, {form[2]} bit; it must be {RATE} Hz, mono, 16 bit"
        )
    if len(samples) < 2:
        raise TaskError(f"{name} holds no sound; delete it or fetch it again from {SOURCE}")
    return np.frombuffer(samples, dtype="<i2").astype(np.float32) / 32768


def _mel_filters() -> np.ndarray:
    """Triangular filters, evenly spaced in mel from 60 to 3900 Hz: (20, 257)."""
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (60, 3900))
    edges = 700 * (10 ** (np.linspace(low, high, MELS + 2) / 2595) - 1)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    hertz = np.fft.rfftfreq(512, 1 / RATE)[None]
    return np.maximum(0, np.minimum((hertz - left) / (centre - left), (right - hertz) / (right - centre)))


def _cosines() -> np.ndarray:
    """The first rows of the orthogonal DCT-II, up to the scale of row 0: (10, 20)."""
    k, n = np.arange(COEFFICIENTS)[:, None], np.arange(MELS)[None]
    return np.asarray(np.sqrt(2 / MELS) * np.cos(np.pi * k * (2 * n + 1) / (2 * MELS)))

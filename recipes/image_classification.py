"""CIFAR-10 with MLPerf Tiny's ResNet-8; needs --data (a folder or a zip of images) and pillow.

The network is the ResNet-8 of the MLPerf Tiny image-classification benchmark (Banbury et al. 2021). The data are
images in folders, ``train/CLASS/*`` and ``test/CLASS/*``, as most tools write CIFAR-10 (Krizhevsky 2009). A tenth of
train, seeded and each class in the same proportion, is val; test is what the folder says. Images of another size are
brought to 32 x 32, and any number of classes will do.

The baseline is trained on images mirrored and shifted at random (He et al. 2016). The train split for the search holds
each image four times, as it is and three times mirrored or not and shifted (seeded): fresh ones every time would have
to be shown to the teacher, too, which takes longer than training a small network on them. They take 2.2 GB of memory.

A baseline trained on CIFAR-10 comes with the recipe and is used where the train images are the very same files;
otherwise one is trained on the spot. ``python -m recipes.image_classification --data cifar10.zip --out baseline.pt``
trains one anew.
"""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import compress
from targets.errors import TaskError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.data import TensorDataset

SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"
SIDE = 32
"""Pixels; images are square."""
SHIFT = 4
"""Most pixels by which a train image is shifted; what comes in is its mirror image."""
VERSIONS = 4
"""Of each train image in the search."""
CHECKPOINT = Path(__file__).with_suffix(".pt")
SUFFIXES = (".jpg", ".jpeg", ".png")

SPACE = compress.SearchSpace(
    # Two fifths of the time are the first block's. Where it goes, the runtime's blocks of 8 leave little to cut beside.
    depth=compress.Choice(0.0, 1.0),
    prune_ratio=compress.Float(0.0, 0.5),
    prune_skew=compress.Float(0.0, 0.6),
    # An epoch is 180,000 images, two to three minutes on one core: few of them, with a teacher that makes the most of
    # each, and only for networks that a short training has left near enough.
    epochs=compress.Int(6, 10),
    short_share=0.2,
    # Trainings are too few here to search what matters less than the widths.
    batch_size=128,
    lr=1e-2,
    weight_decay=1e-3,
    l1=0.0,
    # So small a network does not learn its train images by heart: what would keep it from that only costs accuracy.
    dropout=0.0,
    label_smoothing=0.0,
    distill_weight=0.7,
    temperature=4.0,
)


@dataclass(frozen=True)
class Images:
    """One split: uint8 pixels (n, 32, 32, 3), class numbers (n,), class names, and the hash of the files."""

    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    digest: str


class Augmented:
    """The train images: float32 (3, 32, 32), mirrored and shifted at random; torch's generator decides."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> None:
        import torch

        self.labels, self.mean, self.deviation = (torch.from_numpy(x) for x in (labels, mean, deviation))
        # A pixel is one number of four bytes: taking those by their place is several times faster than three of one.
        padded = torch.nn.functional.pad(torch.from_numpy(pixels), (0, 1))
        self.pixels = padded.view(torch.int32).flatten()

    def __len__(self) -> int:
        return len(self.labels)

    def whole(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, 3, 32, 32) as they are, channels last in memory, and labels."""
        import torch

        chosen = self.pixels.view(len(self), -1)[indices].view(torch.uint8).view(-1, SIDE, SIDE, 4)
        return _standardised(chosen[..., :3], self.mean, self.deviation), self.labels[indices]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The same, mirrored and shifted."""
        import torch

        n = len(indices)
        rows = _reflected(torch.arange(SIDE) + torch.randint(-SHIFT, SHIFT + 1, (n, 1)))
        columns = _reflected(torch.arange(SIDE) + torch.randint(-SHIFT, SHIFT + 1, (n, 1)))
        columns = torch.where(torch.rand(n, 1) < 0.5, SIDE - 1 - columns, columns)
        places = SIDE * (SIDE * indices[:, None] + rows)[:, :, None] + columns[:, None, :]
        chosen = torch.index_select(self.pixels, 0, places.flatten()).view(torch.uint8).view(n, SIDE, SIDE, 4)
        return _standardised(chosen[..., :3], self.mean, self.deviation), self.labels[indices]


def task(data: str | None = None) -> compress.Task:
    """The recipe's task; ``data`` is a folder or a zip with ``train/CLASS/*`` and ``test/CLASS/*`` images.

    Raises TaskError if there is no data, no pillow, or nothing in the data that can be trained and tested on.
    """
    if data is None:
        raise TaskError(
            f"image-classification needs its data: images of CIFAR-10 ({SOURCE}) or your own in folders train/CLASS "
            "and test/CLASS; pass --data FOLDER_OR_ZIP"
        )
    images = read_images(Path(data))
    sets = datasets(images)
    classes = len(images["train"].classes)

    def baseline(trained: bool = True) -> nn.Module:
        if not trained:
            return network(classes)
        return load_baseline(images["train"].digest) or train_baseline(sets["train"], classes)

    return compress.Task(
        name="image-classification",
        model=baseline,
        train=versions(sets["train"]),
        val=sets["val"],
        test=sets["test"],
        slices={"class": [images["test"].classes[i] for i in images["test"].labels]},
    )


def read_images(path: Path) -> dict[str, Images]:
    """Train and test, in the order of the files' names, decoded.

    Raises TaskError if the path is neither a folder nor a zip, if train or test is not there or of one class, if
    they differ in classes, or if a file is no image.
    """
    found: dict[str, list[tuple[str, str, bytes]]] = {"train": [], "test": []}
    for name, content in _image_files(path):
        parts = name.split("/")
        if len(parts) >= 3 and parts[-3] in found:
            found[parts[-3]].append((parts[-2], parts[-1], content))
    classes = {split: sorted({kind for kind, _, _ in files}) for split, files in found.items()}
    for split, names in classes.items():
        if len(names) < 2:
            raise TaskError(
                f"{path}: {split} has {len(found[split])} images ({', '.join(SUFFIXES)}) of {len(names)} classes; at "
                "least two are needed (folders train/CLASS and test/CLASS)"
            )
    if classes["train"] != classes["test"]:
        odd = sorted(set(classes["train"]) ^ set(classes["test"]))[0]
        raise TaskError(f"{path}: class {odd!r} is in only one of train and test; give both the same folders")
    return {split: _images(split, files, classes["train"]) for split, files in found.items()}


def datasets(images: dict[str, Images]) -> dict[str, Any]:
    """Train (``Augmented``), val and test (``TensorDataset``): float32 (3, 32, 32), standardised as train is.

    Val is a tenth of the train images; raises TaskError where a class is too small for that.
    """
    from sklearn.model_selection import train_test_split

    whole = images["train"]
    few = int(np.bincount(whole.labels).argmin())
    if np.bincount(whole.labels)[few] < 10:
        raise TaskError(f"class {whole.classes[few]!r} has fewer than 10 train images; a tenth of them becomes val")
    kept, held = train_test_split(np.arange(len(whole.labels)), test_size=0.1, random_state=0, stratify=whole.labels)
    pixels = whole.pixels[kept]
    mean, deviation = _statistics(pixels)
    return {
        "train": Augmented(pixels, whole.labels[kept], mean, deviation),
        "val": _tensors(whole.pixels[held], whole.labels[held], mean, deviation),
        "test": _tensors(images["test"].pixels, images["test"].labels, mean, deviation),
    }


def versions(train: Augmented) -> TensorDataset:
    """The train split for the search: each image as it is, and ``VERSIONS`` - 1 times mirrored and shifted (seeded)."""
    import torch
    from torch.utils.data import TensorDataset

    n = len(train)
    images = torch.empty(VERSIONS * n, 3, SIDE, SIDE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for indices in torch.split(torch.arange(n), 256):  # a few megabytes at a time
            images[indices] = train.whole(indices)[0]
            for k in range(1, VERSIONS):
                images[k * n + indices] = train.batch(indices)[0]
    return TensorDataset(images, train.labels.repeat(VERSIONS))


def network(classes: int = 10, width: int = 16) -> nn.Module:
    """ResNet-8, 78,000 parameters at width 16: (batch, 3, 32, 32) -> (batch, classes) logits."""
    from torch import nn

    stages = [_block(width, width, 1), _block(width, 2 * width, 2), _block(2 * width, 4 * width, 2)]
    stem = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes))


def load_baseline(digest: str, path: Path = CHECKPOINT) -> nn.Module | None:
    """The network that comes with the recipe, None where it was trained on other files than those of ``digest``."""
    import torch

    if not path.is_file():
        return None
    stored = torch.load(path, weights_only=True)
    if stored["digest"] != digest:
        return None
    model = network(len(stored["state"]["8.bias"]))
    model.load_state_dict(stored["state"])
    return model.eval()


def train_baseline(train: Augmented, classes: int = 10, epochs: int = 16, width: int = 16) -> nn.Module:
    """Train the network from scratch: SGD, a warm-up to 0.1 and cosine, batches of 128; a minute an epoch."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.utils import convert_conv2d_weight_memory_format

    size = 128
    steps = epochs * ((len(train) - 2) // size + 1)  # a last batch of one is left out: BatchNorm needs two
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network(classes, width).train()
        convert_conv2d_weight_memory_format(model, torch.channels_last)  # two thirds of the time on a CPU
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps, pct_start=0.15)
        for epoch in range(epochs):
            total, order = 0.0, torch.randperm(len(train))
            for start in range(0, len(order) - 1, size):
                images, labels = train.batch(order[start : start + size])
                optimizer.zero_grad()
                loss = cross_entropy(model(images), labels)
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                total += float(loss.detach()) * len(labels)
            print(f"baseline: epoch {epoch + 1} of {epochs}, loss {total / len(train):.3f}", file=sys.stderr)
    convert_conv2d_weight_memory_format(model, torch.contiguous_format)
    return model.eval()


def accuracy(model: nn.Module, split: TensorDataset) -> float:
    """Share of a split that the network gets right."""
    import torch

    images, labels = split.tensors
    with torch.no_grad():
        right = [
            (model(x).argmax(1) == y).sum()
            for x, y in zip(torch.split(images, 256), torch.split(labels, 256), strict=True)
        ]
    return float(sum(right)) / len(labels)


def main() -> None:
    """Train a baseline and store it as the one that comes with the recipe is stored."""
    import argparse

    import torch

    parser = argparse.ArgumentParser(description="train the baseline of image-classification")
    parser.add_argument("--data", type=Path, required=True, help="folder or zip with train/CLASS and test/CLASS")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--epochs", type=int, default=16)
    arguments = parser.parse_args()
    try:
        images = read_images(arguments.data)
        sets = datasets(images)
    except TaskError as error:
        parser.error(str(error))
    model = train_baseline(sets["train"], len(images["train"].classes), arguments.epochs)
    torch.save({"digest": images["train"].digest, "state": model.state_dict()}, arguments.out)
    print(f"{arguments.out}: {accuracy(model, sets['val']):.2%} on val, {accuracy(model, sets['test']):.2%} on test")


def __getattr__(name: str) -> Any:
    """``Block``: made when it is first asked for, since importing a recipe must not load torch."""
    if name != "Block":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from torch import nn

    class Block(nn.Module):
        """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
            second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
            self.body = nn.Sequential(first, nn.BatchNorm2d(outputs), nn.ReLU(), second, nn.BatchNorm2d(outputs))
            same = inputs == outputs and stride == 1
            self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride=stride)

        def forward(self, x: Tensor) -> Tensor:
            """(batch, inputs, h, w) -> (batch, outputs, h / stride, w / stride)."""
            return nn.functional.relu(self.body(x) + self.shortcut(x))

    # Where pickle looks for it.
    Block.__qualname__ = "Block"
    globals()["Block"] = Block
    return Block


def _block(inputs: int, outputs: int, stride: int) -> nn.Module:
    block: nn.Module = getattr(sys.modules[__name__], "Block")(inputs, outputs, stride)  # noqa: B009
    return block


def _image_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every image file below a folder or in a zip, sorted by name."""
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES]
        for file in sorted(files):
            yield file.relative_to(path).as_posix(), file.read_bytes()
        return
    if not path.exists():
        raise TaskError(f"--data {str(path)!r} does not exist; pass a folder or a zip with train/CLASS and test/CLASS")
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                # macOS puts a resource fork beside every file.
                if name.lower().endswith(SUFFIXES) and not name.startswith("__MACOSX/"):
                    yield name, archive.read(name)
    except (zipfile.BadZipFile, OSError) as error:
        raise TaskError(f"--data {str(path)!r} is neither a folder nor a readable zip file ({error})") from None


def _images(split: str, files: Sequence[tuple[str, str, bytes]], classes: Sequence[str]) -> Images:
    pixels = np.empty((len(files), SIDE, SIDE, 3), dtype=np.uint8)
    digest = hashlib.sha256()
    for i, (kind, name, content) in enumerate(files):
        pixels[i] = _decode(f"{split}/{kind}/{name}", content)
        digest.update(f"{kind}/{name} {len(content)} ".encode())
        digest.update(content)
    labels = np.array([classes.index(kind) for kind, _, _ in files], dtype=np.int64)
    return Images(pixels, labels, tuple(classes), digest.hexdigest())


def _decode(name: str, content: bytes) -> np.ndarray:
    """Red, green and blue pixels: (32, 32, 3) uint8."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError:
        raise TaskError(
            "image-classification reads images with pillow, which is not installed; run pip install "
            "'paretopress[images]'"
        ) from None
    try:
        with Image.open(io.BytesIO(content)) as image:
            colours = image.convert("RGB")
            return np.asarray(colours if colours.size == (SIDE, SIDE) else colours.resize((SIDE, SIDE)))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise TaskError(f"{name} is not a readable image ({error or 'it ends early'})") from None


def _reflected(positions: Tensor) -> Tensor:
    """Positions beyond an edge mirrored at it."""
    return (SIDE - 1) - ((SIDE - 1) - positions.abs()).abs()


def _statistics(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of every channel, of values in [0, 1]: float32 (3,) each."""
    values = np.arange(256) / 255
    shares = np.stack([np.bincount(pixels[..., k].ravel(), minlength=256) for k in range(3)]) / pixels[..., 0].size
    mean = shares @ values
    deviation = np.sqrt(shares @ values**2 - mean**2) + 1e-6
    return mean.astype(np.float32), deviation.astype(np.float32)


def _standardised(pixels: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """uint8 (n, 32, 32, 3) -> float32 (n, 3, 32, 32)."""
    return pixels.float().div_(255).sub_(mean).div_(deviation).permute(0, 3, 1, 2)


def _tensors(pixels: np.ndarray, labels: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> TensorDataset:
    import torch
    from torch.utils.data import TensorDataset

    images = _standardised(*(torch.from_numpy(x) for x in (pixels, mean, deviation)))
    return TensorDataset(images.contiguous(), torch.from_numpy(labels))


if __name__ == "__main__":
    main()

"""The image-classification recipe: images, augmentation, checkpoint, and what it says about bad data."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import recipes.image_classification as images
from compress.baseline import modules
from compress.tasks.datasets import Split, read_train
from targets.errors import TaskError

REPOSITORY = Path(__file__).resolve().parents[2]


def write_image(path: Path, colour: tuple[int, int, int], seed: int, side: int = 32) -> None:
    noise = np.random.default_rng(seed).integers(-40, 40, (side, side, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Blue and red images: 20 of each to train, 5 to test."""
    for kind, colour in (("blue", (60, 60, 200)), ("red", (200, 60, 60))):
        for split, count in (("train", 20), ("test", 5)):
            for i in range(count):
                write_image(
                    tmp_path / "cifar" / split / kind / f"{i:04}.png", colour, seed=1000 * len(kind + split) + i
                )
    return tmp_path


def as_zip(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*.png"):
            archive.write(file, file.relative_to(folder).as_posix())
        archive.writestr("__MACOSX/cifar/train/red/._0000.png", b"fork")
    return path


def augmented(n: int = 6) -> images.Augmented:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    return images.Augmented(pixels, np.arange(n), np.zeros(3, np.float32), np.full(3, 1 / 255, np.float32))


def test_task_splits_train_in_two_and_slices_by_class(folder: Path) -> None:
    task = images.task(str(folder))
    assert [len(split) for split in (task.train, task.val, task.test)] == [144, 4, 10]
    for split in (task.train, task.val, task.test):
        image, label = split[0]
        assert image.shape == (3, 32, 32)
        assert image.dtype == torch.float32
        assert int(label) in (0, 1)
    assert np.bincount(task.val.tensors[1]).tolist() == [2, 2]
    assert task.slices["class"] == ["blue"] * 5 + ["red"] * 5
    assert task.test.tensors[1].tolist() == [0] * 5 + [1] * 5


def test_splits_are_reproducible_and_share_no_image(folder: Path) -> None:
    first, second = (images.datasets(images.read_images(folder)) for _ in range(2))
    assert torch.equal(first["val"].tensors[0], second["val"].tensors[0])
    assert torch.equal(first["train"].pixels, second["train"].pixels)
    every = images.read_images(folder)["train"].pixels
    kept = {x.numpy().tobytes() for x in first["train"].pixels.view(torch.uint8).view(-1, 32, 32, 4)[..., :3]}
    held = {x.tobytes() for x in every} - kept
    assert len(kept) == 36
    assert len(held) == 4


def test_folder_and_zip_give_the_same_data(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    archive = as_zip(folder, tmp_path_factory.mktemp("zip") / "images.zip")
    one, other = images.read_images(folder), images.read_images(archive)
    for split in ("train", "test"):
        assert one[split].digest == other[split].digest
        np.testing.assert_array_equal(one[split].pixels, other[split].pixels)
        np.testing.assert_array_equal(one[split].labels, other[split].labels)


def test_digest_is_of_the_files(folder: Path) -> None:
    before = images.read_images(folder)["train"].digest
    file = folder / "cifar" / "train" / "red" / "0003.png"
    file.write_bytes(file.read_bytes()[:-1] + b"?")  # of the last checksum, which no reader looks at
    assert images.read_images(folder)["train"].digest != before


def test_val_is_standardised_by_train_and_colours_stay_in_order(folder: Path) -> None:
    sets = images.datasets(images.read_images(folder))
    val, labels = sets["val"].tensors
    assert val[labels == 0][:, 2].mean() > 0.5 > val[labels == 0][:, 0].mean(), "blue has more blue than red"
    pixels = sets["train"].pixels.view(torch.uint8).view(-1, 4)[:, :3].double() / 255
    torch.testing.assert_close(sets["train"].mean.double(), pixels.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(sets["train"].deviation.double(), pixels.std(0), atol=1e-4, rtol=0)


def test_augmentation_mirrors_and_shifts_and_nothing_else() -> None:
    train = augmented()
    torch.manual_seed(0)
    seen = set()
    for i, (image, label) in enumerate(zip(*train.batch(torch.arange(6).repeat(40)), strict=True)):
        index = i % 6
        assert int(label) == index
        whole = train.pixels.view(torch.uint8).view(-1, 32, 32, 4)[index, ..., :3].numpy()
        padded = np.pad(whole, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        found = [
            (mirrored, top, left)
            for mirrored in (False, True)
            for top in range(9)
            for left in range(9)
            if np.array_equal((padded[top : top + 32, left : left + 32][:, :: -1 if mirrored else 1]), _shown(image))
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert {mirrored for mirrored, _, _ in seen} == {False, True}
    assert {top for _, top, _ in seen} == {left for _, _, left in seen} == set(range(9))


def _shown(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).round().numpy().astype(np.uint8)


def test_augmentation_follows_torchs_seed() -> None:
    train = augmented()
    torch.manual_seed(1)
    one, again = (train.batch(torch.tensor([2]))[0] for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(one, train.batch(torch.tensor([2]))[0])
    assert not torch.equal(one, again)


def test_the_search_sees_every_image_as_it_is_and_changed() -> None:
    train = augmented()
    state = torch.random.get_rng_state()
    pixels, labels = images.versions(train).tensors
    assert torch.equal(state, torch.random.get_rng_state())
    assert labels.tolist() == [*range(6)] * 4
    whole = train.pixels.view(torch.uint8).view(-1, 32, 32, 4)[..., :3]
    for i in range(6):
        assert np.array_equal(_shown(pixels[i]), whole[i].numpy())
        assert all(not torch.equal(pixels[i], pixels[6 * k + i]) for k in (1, 2, 3))
    assert torch.equal(pixels, images.versions(train).tensors[0])
    assert isinstance(read_train(images.versions(train)), Split), "held in memory, so that the teacher is looked up"


def test_other_sizes_are_brought_to_32(folder: Path) -> None:
    write_image(folder / "cifar" / "test" / "red" / "0001.png", (200, 60, 60), seed=0, side=64)
    assert images.read_images(folder)["test"].pixels.shape == (10, 32, 32, 3)


def test_network_is_mlperf_tinys() -> None:
    model = images.network().eval()
    assert sum(p.numel() for p in model.parameters()) == 77_946
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        assert images.network(classes=4, width=8)(torch.zeros(2, 3, 32, 32)).shape == (2, 4)


def test_network_can_be_kept_in_a_run(tmp_path: Path) -> None:
    model = images.network(width=4).eval()
    modules.save(model, tmp_path, whole=True)
    kept = modules._load_module(tmp_path / "module.pt")
    assert kept is not None
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(kept(x), model(x))


def test_baseline_learns_and_leaves_the_random_state_alone(folder: Path) -> None:
    sets = images.datasets(images.read_images(folder))
    state = torch.random.get_rng_state()
    model = images.train_baseline(sets["train"], classes=2, epochs=8, width=8)
    assert torch.equal(state, torch.random.get_rng_state())
    assert images.accuracy(model, sets["test"]) > 0.9


def test_checkpoint_is_for_its_own_files_only(tmp_path: Path) -> None:
    model = images.network(classes=3)
    torch.save({"digest": "abc", "state": model.state_dict()}, tmp_path / "mine.pt")
    assert images.load_baseline("other", tmp_path / "mine.pt") is None
    assert images.load_baseline("abc", tmp_path / "none.pt") is None
    found = images.load_baseline("abc", tmp_path / "mine.pt")
    assert found is not None
    assert not found.training
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(found(x), model.eval()(x))


def test_task_takes_the_checkpoint_where_it_fits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = images.network(classes=2).eval()
    path = folder / "kept.pt"
    torch.save({"digest": images.read_images(folder)["train"].digest, "state": kept.state_dict()}, path)
    monkeypatch.setattr(images, "train_baseline", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr(images.load_baseline, "__defaults__", (path,))
    found = modules.make_module(images.task(str(folder)))
    assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), kept.state_dict().values(), strict=True))


@pytest.mark.slow
def test_training_anew_writes_a_checkpoint(folder: Path) -> None:
    out = folder / "new.pt"
    done = subprocess.run(
        [sys.executable, "-m", "recipes.image_classification", "--data", folder, "--out", out, "--epochs", "1"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "on val" in done.stdout
    assert "epoch 1 of 1" in done.stderr
    assert images.load_baseline(images.read_images(folder)["train"].digest, out) is not None


@pytest.mark.slow
def test_the_checkpoint_in_the_repository_is_worth_compressing() -> None:
    path = Path(os.environ.get("PARETOPRESS_DATA") or REPOSITORY.parent / "shared" / "data") / "cifar10-jpeg.zip"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {path.parent}; set PARETOPRESS_DATA to the folder that holds it")
    found = images.read_images(path)
    model = images.load_baseline(found["train"].digest)
    assert model is not None, "it was trained on other files"
    assert 0.77 < images.accuracy(model, images.datasets(found)["val"]) < 0.9


def test_no_data_says_where_it_comes_from() -> None:
    with pytest.raises(TaskError, match=r"cs\.toronto\.edu.*--data"):
        images.task()


def test_missing_pillow_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(TaskError, match=r"pip install 'paretopress\[images\]'"):
        images.task(str(folder))


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="does not exist"):
        images.task(str(tmp_path / "nowhere"))


def test_file_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(TaskError, match="neither a folder nor a readable zip"):
        images.task(str(tmp_path / "notes.txt"))


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"train has 0 images .* of 0 classes"):
        images.task(str(tmp_path))


def test_one_class(folder: Path) -> None:
    for file in folder.rglob("test/blue/*.png"):
        file.unlink()
    with pytest.raises(TaskError, match=r"test has 5 images .* of 1 classes"):
        images.task(str(folder))


def test_classes_that_differ(folder: Path) -> None:
    write_image(folder / "cifar" / "test" / "green" / "0.png", (0, 200, 0), seed=0)
    with pytest.raises(TaskError, match="class 'green' is in only one of train and test"):
        images.task(str(folder))


def test_class_that_is_too_small_for_val(folder: Path) -> None:
    for i in range(11):
        (folder / "cifar" / "train" / "red" / f"{i:04}.png").unlink()
    with pytest.raises(TaskError, match="class 'red' has fewer than 10 train images"):
        images.task(str(folder))


@pytest.mark.parametrize("content", [b"not an image", b""])
def test_torn_image_is_named(folder: Path, content: bytes) -> None:
    (folder / "cifar" / "train" / "red" / "0003.png").write_bytes(content)
    with pytest.raises(TaskError, match=r"train/red/0003\.png is not a readable image"):
        images.task(str(folder))


def test_image_that_ends_early_is_named(folder: Path) -> None:
    file = folder / "cifar" / "train" / "red" / "0003.png"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(TaskError, match=r"train/red/0003\.png is not a readable image"):
        images.task(str(folder))

"""The keyword-spotting recipe: front end, split by index, and what it says about bad data."""

from __future__ import annotations

import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import recipes.keyword_spotting as kws
from targets.errors import TaskError


def write_wav(path: Path, seconds: float = 0.3, hertz: float = 440.0, rate: int = 8000, channels: int = 1) -> None:
    t = np.arange(int(seconds * rate) * channels) / rate
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes((8000 * np.sin(2 * np.pi * hertz * t)).astype("<i2").tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two digits (tones), two speakers, indices 0 to 14."""
    for digit in (3, 7):
        for speaker, offset in (("ann", 0), ("bob", 30)):
            for index in range(15):
                tone = 300 + 150 * digit + offset + index
                write_wav(tmp_path / "recordings" / f"{digit}_{speaker}_{index}.wav", hertz=tone)
    return tmp_path


def as_zip(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*.wav"):
            archive.write(file, f"fsdd/{file.relative_to(folder).as_posix()}")
    return path


def test_task_splits_by_index_and_slices_by_speaker(folder: Path) -> None:
    task = kws.task(str(folder))
    assert [len(split) for split in (task.train, task.val, task.test)] == [20 * kws.VERSIONS, 20, 20]
    feature, label = task.test[0]
    assert feature.shape == (1, 49, 10)
    assert feature.dtype == torch.float32
    assert int(label) in (3, 7)
    assert sorted(set(task.slices["speaker"])) == ["ann", "bob"]
    assert len(task.slices["speaker"]) == len(task.test)


def test_splits_share_no_example(folder: Path) -> None:
    task = kws.task(str(folder))
    seen = [{x.numpy().tobytes() for x in split.tensors[0]} for split in (task.train, task.val, task.test)]
    assert len(seen[0] | seen[1] | seen[2]) == sum(map(len, seen))


@given(st.integers(0, 10_000))
def test_split_depends_on_the_index_alone(index: int) -> None:
    splits = {kws.Recording(np.zeros(1, np.float32), digit, "x", index).split for digit in range(10)}
    assert splits == {"test" if index <= 4 else "val" if index <= 9 else "train"}


def test_folder_and_zip_give_the_same_data(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    archive = as_zip(folder, tmp_path_factory.mktemp("zip") / "fsdd.zip")
    one, other = kws.task(str(folder)), kws.task(str(archive))
    for a, b in ((one.train, other.train), (one.val, other.val), (one.test, other.test)):
        assert torch.equal(a.tensors[0], b.tensors[0])
        assert torch.equal(a.tensors[1], b.tensors[1])


def test_train_is_standardised_by_its_own_statistics(folder: Path) -> None:
    features = kws.task(str(folder)).train.tensors[0]
    assert torch.allclose(features.mean((0, 1, 2)), torch.zeros(10), atol=1e-3)
    assert torch.allclose(features.std((0, 1, 2)), torch.ones(10), atol=1e-2)


def test_mfcc_ignores_loudness_and_hears_pitch() -> None:
    t = np.arange(8000, dtype=np.float32) / 8000
    low, high = np.sin(2 * np.pi * 300 * t), np.sin(2 * np.pi * 2500 * t)
    features = kws.mfcc(np.stack([low, 0.1 * low, high]).astype(np.float32))
    assert features.shape == (3, 1, 49, 10)
    np.testing.assert_allclose(features[0], features[1], atol=1e-3)
    # Coefficient 1 is positive where the energy lies in the low filters, negative where it lies in the high ones.
    assert features[0, 0, :, 1].min() > 0 > features[2, 0, :, 1].max()


def test_mfcc_of_silence_is_finite() -> None:
    assert np.isfinite(kws.mfcc(np.zeros((1, 8000), np.float32))).all()


@given(length=st.integers(1, 20_000), position=st.floats(0, 1))
def test_clip_is_one_second_and_loses_only_what_is_beyond(length: int, position: float) -> None:
    samples = np.linspace(1, 2, length, dtype=np.float32)
    clipped = kws.clip(samples, position)
    assert clipped.shape == (8000,)
    np.testing.assert_array_equal(clipped[clipped != 0], samples[:8000])


@given(length=st.integers(1, 12_000), seed=st.integers(0, 2**32 - 1))
def test_augment_is_seeded_and_one_second(length: int, seed: int) -> None:
    samples = np.sin(np.arange(length, dtype=np.float32))
    one, same = (kws.augment(samples, np.random.default_rng(seed)) for _ in range(2))
    assert one.shape == (8000,)
    assert one.dtype == np.float32
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, same)


def test_network_takes_features_and_gives_ten_logits() -> None:
    model = kws.network(width=16).eval()
    with torch.no_grad():
        assert model(torch.zeros(3, 1, 49, 10)).shape == (3, 10)


def test_baseline_learns_and_leaves_the_random_state_alone(folder: Path) -> None:
    train = kws.task(str(folder)).train
    state = torch.random.get_rng_state()
    model = kws.train_baseline(train, epochs=40, width=16)
    assert torch.equal(state, torch.random.get_rng_state())
    features, labels = train.tensors
    with torch.no_grad():
        assert (model(features).argmax(1) == labels).float().mean() > 0.9


def test_no_data_says_where_it_comes_from() -> None:
    with pytest.raises(TaskError, match=r"free-spoken-digit-dataset.*--data"):
        kws.task()


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="does not exist"):
        kws.task(str(tmp_path / "nowhere"))


def test_file_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(TaskError, match="neither a folder nor a readable zip"):
        kws.task(str(tmp_path / "notes.txt"))


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="none of its 0 wav files"):
        kws.task(str(tmp_path))


def test_only_unexpected_names_are_counted(tmp_path: Path) -> None:
    for name in ("hello.wav", "12_ann_3.wav", "7-ann-3.wav"):
        write_wav(tmp_path / name)
    with pytest.raises(TaskError, match="none of its 3 wav files"):
        kws.task(str(tmp_path))


def test_some_unexpected_names_are_left_out_with_a_warning(folder: Path) -> None:
    write_wav(folder / "noise.wav")
    with pytest.warns(UserWarning, match="left out 1 wav files"):
        recordings = kws.read_recordings(folder)
    assert len(recordings) == 60


def test_one_class(folder: Path) -> None:
    for file in folder.rglob("3_*.wav"):
        file.unlink()
    with pytest.raises(TaskError, match="train has 10 recordings of 1 digits"):
        kws.task(str(folder))


def test_missing_split(folder: Path) -> None:
    for file in folder.rglob("*.wav"):
        if int(file.stem.rsplit("_", 1)[1]) < 5:
            file.unlink()
    with pytest.raises(TaskError, match="test has 0 recordings of 0 digits"):
        kws.task(str(folder))


def test_other_formats_name_the_file_and_the_format(folder: Path) -> None:
    write_wav(folder / "recordings" / "3_ann_2.wav", rate=16000, channels=2)
    with pytest.raises(TaskError, match=r"3_ann_2\.wav is 16000 Hz, 2 channels, 16 bit"):
        kws.task(str(folder))


def test_torn_wav_is_named(folder: Path) -> None:
    (folder / "recordings" / "3_ann_2.wav").write_bytes(b"RIFF")
    with pytest.raises(TaskError, match=r"3_ann_2\.wav is not a readable wav"):
        kws.task(str(folder))


def test_wav_without_sound_is_named(folder: Path) -> None:
    write_wav(folder / "recordings" / "3_ann_2.wav", seconds=0)
    with pytest.raises(TaskError, match=r"3_ann_2\.wav holds no sound"):
        kws.task(str(folder))

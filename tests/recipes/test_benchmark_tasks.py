"""The task files of ``benchmarks/tasks``: they load as a user's do, and what they are there to prune is prunable."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import torch

import compress
from compress.tasks.loading import LoadedTask, load_task
from targets.errors import TaskError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "tasks"
TASKS = {
    "gru-keywords": {"recurrent": 128},
    "lstm-keywords": {"recurrent": 128},
    "transformer-digits": {
        f"encoder.layers.{i}.{part}": width
        for i in range(4)
        for part, width in (("self_attn:heads", 8), ("linear1", 512))
    },
}
"""Task -> groups that a search must be able to cut, and their size."""


def path_of(name: str) -> str:
    return str(FOLDER / f"{name.replace('-', '_')}.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two digits (tones) by one speaker, indices 0 to 14."""
    folder = tmp_path_factory.mktemp("sounds")
    for digit in (3, 7):
        for index in range(15):
            samples = 8000 * np.sin(2 * np.pi * (300 + 150 * digit + index) * np.arange(2400) / 8000)
            with wave.open(str(folder / f"{digit}_ann_{index}.wav"), "wb") as sound:
                sound.setnchannels(1)
                sound.setsampwidth(2)
                sound.setframerate(8000)
                sound.writeframes(samples.astype("<i2").tobytes())
    return folder


@pytest.fixture(scope="module", params=sorted(TASKS))
def loaded(request: pytest.FixtureRequest, data: Path) -> LoadedTask:
    return load_task(path_of(request.param), str(data))


def test_every_task_file_is_tested() -> None:
    tasks = {file.stem.replace("_", "-") for file in FOLDER.glob("*.py") if "def task(" in file.read_text()}
    assert tasks == set(TASKS)


def test_data_are_sequences(loaded: LoadedTask) -> None:
    assert loaded.space is not None
    for split in (loaded.task.train, loaded.task.val, loaded.task.test):
        frames, label = split[0]
        assert frames.shape == (49, 10)
        assert int(label) in (3, 7)
    assert len(loaded.task.slices["speaker"]) == len(loaded.task.test)


def test_what_is_to_be_pruned_can_be(loaded: LoadedTask) -> None:
    model = loaded.task.model(trained=False).eval()
    example = torch.randn(2, 49, 10)
    pruned = compress.prune(model, example, ratio=0.5)
    cut = {name: (before, after) for name, before, after in pruned.pruned}
    wanted = TASKS[loaded.task.name]
    assert {name: cut.get(name) for name in wanted} == {name: (width, width // 2) for name, width in wanted.items()}
    with torch.no_grad():
        assert pruned.module(example).shape == model(example).shape == (2, 10)


def test_baseline_learns_and_leaves_the_random_state_alone(data: Path) -> None:
    task = load_task(path_of("gru-keywords"), str(data)).task
    state = torch.random.get_rng_state()
    model = task.model()
    assert torch.equal(state, torch.random.get_rng_state())
    frames, labels = task.train.tensors
    with torch.no_grad():
        assert (model(frames).argmax(1) == labels).float().mean() > 0.9


def test_no_data_says_where_it_comes_from() -> None:
    with pytest.raises(TaskError, match=r"free-spoken-digit-dataset.*--data"):
        load_task(path_of("lstm-keywords"))

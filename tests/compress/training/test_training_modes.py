"""Where and how to train."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.networks.running import threads
from compress.training import training_modes
from compress.training.training_modes import TrainingMode, default_mode, find_mode, resolve_device, suited
from targets.errors import RequestError


def test_the_default_is_one_thread_and_nothing_special() -> None:
    assert default_mode("cpu") == TrainingMode("cpu", 1, False, False)


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()

    def body() -> None:
        with threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise KeyError

    with pytest.raises(KeyError):
        body()
    assert torch.get_num_threads() == before


def test_channels_last_is_for_images() -> None:
    mode = TrainingMode(channels_last=True)
    assert mode.place(torch.zeros(2, 3, 4, 4)).is_contiguous(memory_format=torch.channels_last)
    assert mode.place(torch.zeros(2, 3)).shape == (2, 3)
    assert TrainingMode().place(torch.zeros(2, 3, 4, 4)).is_contiguous()


@pytest.mark.parametrize(("channels", "kernel", "stride", "kept"), [(4, 1, 2, False), (8, 1, 2, True), (4, 3, 2, True)])
def test_channels_last_is_left_where_it_corrupts_memory(channels: int, kernel: int, stride: int, kept: bool) -> None:
    mode, network = TrainingMode(channels_last=True), nn.Sequential(nn.Conv2d(channels, 16, kernel, stride=stride))
    assert suited(mode, network) == TrainingMode(channels_last=kept)


def test_autocast_follows_the_mode() -> None:
    x = torch.zeros(2, 2)
    with TrainingMode(bf16=True).autocast():
        assert (x @ x).dtype == torch.bfloat16
    with TrainingMode().autocast():
        assert (x @ x).dtype == torch.float32


def test_devices() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    for device in ("abacus", "cuda:99"):
        with pytest.raises(RequestError, match=rf"device '{device}' cannot be used: .*; use 'cpu' or 'auto'") as caught:
            resolve_device(device)
        assert "\n" not in str(caught.value)


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than there are free cores only wait for each other."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)


@pytest.mark.usefixtures("one_core")
def test_ways_to_train_are_tried_on_a_copy(cnn: nn.Module) -> None:
    state, labels = copy.deepcopy(cnn.state_dict()), torch.arange(16) % 10
    mode, seconds = find_mode(cnn, (torch.rand(16, 1, 8, 8),), lambda y: F.cross_entropy(y.float(), labels), "cpu")
    assert mode.device == "cpu"
    assert "1 threads" in seconds
    assert any("channels-last" in name for name in seconds)
    assert any("bf16" in name for name in seconds)
    assert all(value > 0 for value in seconds.values())
    assert not cnn.training
    for name, tensor in cnn.state_dict().items():
        assert torch.equal(tensor, state[name])


class NoBf16(nn.Module):
    """A network that knows no bf16, as some operators do not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if y.dtype != torch.float32:
            raise RuntimeError("not implemented for 'BFloat16'")
        return y


@pytest.mark.usefixtures("one_core")
def test_a_way_that_fails_is_left_out() -> None:
    mode, seconds = find_mode(NoBf16(), (torch.rand(4, 3),), lambda y: y.square().mean(), "cpu")  # type: ignore[attr-defined]
    assert not mode.bf16
    assert not any("bf16" in name for name in seconds)


def test_a_network_that_trains_in_no_way_raises() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        find_mode(NoBf16(), (torch.rand(4, 5),), lambda y: y.square().mean(), "cpu")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        # One thread channels-last is as fast as two threads without.
        ([0.060, 0.042, 0.039, 0.040, 0.5, 0.3], TrainingMode(threads=1, channels_last=True)),
        ([0.060, 0.050, 0.039, 0.025, 0.5, 0.3], TrainingMode(threads=2, channels_last=True)),
        ([0.060, 0.050, 0.058, 0.050, 0.5, 0.3], TrainingMode(threads=1)),
        ([0.060, 0.030, 0.059, 0.030, 0.5, 0.3], TrainingMode(threads=2)),
        ([0.060, 0.050, 0.058, 0.050, 0.02, 0.02], TrainingMode(threads=1, channels_last=True, bf16=True)),
    ],
)
def test_what_is_not_worth_it_is_left(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float], best: TrainingMode
) -> None:
    modes = [
        TrainingMode(threads=n, channels_last=bool(cl), bf16=bool(b))
        for cl, b in ((0, 0), (1, 0), (1, 1))
        for n in (1, 2)
    ]
    took = {mode: (value, 1.0) for mode, value in zip(modes, seconds, strict=True)}
    monkeypatch.setattr(training_modes, "_modes", lambda *_: modes)
    monkeypatch.setattr(training_modes, "_timed", lambda *_: took)
    found, _ = find_mode(nn.Conv2d(1, 2, 3), (torch.rand(4, 1, 8, 8),), lambda y: y.square().mean(), "cpu")
    assert found == best

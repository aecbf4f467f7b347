"""Running a network on few samples, and on one where that shows as much."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compress.networks.running import few_samples, main_output, one_sample, outputs_of
from compress.pruning import permutation_check
from compress.pruning.grouping import find_groups


class Squeezed(nn.Module):
    """Does something else for one sample: the axis of the batch is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu().squeeze())


class AcrossSamples(Squeezed):
    """Takes the mean of the batch from every sample."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x - x.mean(0)).relu())


def test_one_sample_is_taken_where_it_shows_as_much_as_two() -> None:
    x = (torch.randn(2, 6),)
    plain = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    assert one_sample(plain, x)[0].shape == (1, 6)
    assert one_sample(Squeezed(), x)[0].shape == (2, 6)
    assert one_sample(AcrossSamples(), x)[0].shape == (2, 6)


def test_two_samples_are_taken_of_more() -> None:
    plain = nn.Linear(6, 3)
    assert few_samples(plain, (torch.randn(5, 6),))[0].shape == (2, 6)
    assert few_samples(plain, (torch.randn(1, 6),))[0].shape == (1, 6)


def test_large_networks_have_the_groups_that_they_have_when_small(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 8, 8)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 3)
    )
    before = find_groups(network, x)
    monkeypatch.setattr(permutation_check, "_MANY", 10)
    assert find_groups(network, x) == before


@pytest.mark.parametrize("value", [None, 3.0, [], {"loss": None, "cache": (1, "a")}])
def test_what_holds_no_tensor_is_no_output(value: object) -> None:
    said = f"^it returns {type(value).__name__} without a tensor in it$"
    for take in (outputs_of, main_output):
        with pytest.raises(TypeError, match=said):
            take(value)


def test_the_output_that_is_scored_is_what_is_called_logits() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    assert main_output({"hidden": [a], "logits": b}) is b
    assert main_output(({"hidden": a}, b)) is a
    assert outputs_of({"hidden": [a], "logits": b}) == (a, b)

"""What a run says of its values is what the really cut network computes."""

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from compress.pruning.grouping import find_groups
from compress.pruning.groups import Groups
from compress.pruning.pruning import prune
from compress.scanning.traced_runs import traced_run
from compress.values.runs import Run, Terms


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class Branches(nn.Module):
    """A stem, three branches of one, two and three layers, and what they are put together for."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 8)
        self.a = convolution(8, 9, 1)
        self.b = nn.Sequential(convolution(8, 10, 1), convolution(10, 11))
        self.c = nn.Sequential(convolution(8, 12, 1), convolution(12, 13), convolution(13, 14))
        self.head = nn.Linear(34, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        joined: Tensor = torch.cat([self.a(x), self.b(x), self.c(x)], 1)
        return self.head(joined.mean((2, 3)))


class Residual(nn.Module):
    """A depthwise layer and a product over places, with a shortcut around both, at half the places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 8, stride=2)
        self.inner = nn.Sequential(convolution(8, 24, 1), convolution(24, 24, groups=24), nn.Conv2d(24, 8, 1))
        self.head = nn.Linear(8 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.relu(x + self.inner(x)).flatten(1))


def elements(terms: Terms, left: dict[str, float]) -> int:
    total = 0.0
    for count, groups in terms:
        for name in groups:
            count *= left[name]
        total += count
    return round(total)


def run_of(module: nn.Module, inputs: Tensor, groups: Groups) -> Run:
    found = traced_run(module, (inputs,), groups)
    assert found is not None
    return found


@pytest.mark.parametrize("make", [Branches, Residual])
@pytest.mark.parametrize("seed", range(3))
def test_values_of_a_cut_network_are_as_large_as_is_said(make: Callable[[], nn.Module], seed: int) -> None:
    module, inputs, rng = make().eval(), torch.randn(2, 3, 16, 16), random.Random(seed)
    groups = find_groups(module, inputs)
    widths = {group.name: rng.randint(1, group.channels) for group in groups.prunable}
    said = run_of(module, inputs, groups)
    small = run_of(prune(module, inputs, widths=widths, groups=groups).module.eval(), inputs, Groups((), ()))
    left = {group.name: widths[group.name] / group.channels for group in groups.prunable}
    assert len(said.values) == len(small.values)
    for mine, theirs in zip(said.values, small.values, strict=True):
        assert elements(mine, left) == elements(theirs, {})
    for step, cut in zip(said.steps, small.steps, strict=True):
        assert (step.name, step.reads, step.writes) == (cut.name, cut.reads, cut.writes)
        assert elements(step.padded, left) == elements(cut.padded, {})
        assert elements(step.window, left) == elements(cut.window, {})


def test_a_shortcut_is_live_until_it_is_added() -> None:
    run = run_of(Residual().eval(), torch.randn(2, 3, 16, 16), Groups((), ()))
    assert [step.name for step in run.steps] == ["convolution"] * 4 + ["add", "addmm"]
    image, stem, wide, narrow, back, total, output = run.buffers(copies=False)[:7]
    assert [elements(one.elements, {}) for one in (image, stem, wide, total)] == [768, 512, 1536, 512]
    assert (image.first, image.last) == (0, 0)
    assert (stem.first, stem.last) == (0, 4)
    assert (wide.first, wide.last, narrow.first, narrow.last) == (1, 2, 2, 3)
    assert (back.last, total.first, output.last) == (4, 4, 5)
    windows = run.buffers(copies=False)[7:]
    assert [(one.kind, one.first, elements(one.elements, {})) for one in windows] == [
        ("conv", 0, 27), ("depthwise", 2, 9 * 24),
    ]  # fmt: skip


def test_what_is_padded_more_than_it_must_be_is_copied_first() -> None:
    """Of 16 places a stride of 2 makes 8 with one place of border at one end; the module asks for one at both."""
    run = run_of(Residual().eval(), torch.randn(2, 3, 16, 16), Groups((), ()))
    image, copy, stem = run.buffers(copies=True)[:3]
    assert (image.first, image.last, copy.first, copy.last, stem.first) == (0, 0, 0, 1, 1)
    assert elements(copy.elements, {}) == 3 * 18 * 18
    assert sum(bool(step.padded) for step in run.steps) == 1


def test_branches_take_turns_as_converters_write_them() -> None:
    run = run_of(Branches().eval(), torch.randn(2, 3, 16, 16), Groups((), ()))
    made = [elements(run.values[step.writes[0]], {}) // 256 for step in run.steps[:7]]
    assert made == [8, 9, 10, 12, 11, 13, 14]


def test_what_follows_a_product_is_part_of_it_unless_something_else_reads_the_product() -> None:
    class Twice(nn.Module):
        """The product is read again after its activation."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return torch.relu(y) * y

    alone = run_of(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval(), torch.randn(2, 3, 4, 4), Groups((), ()))
    assert [step.name for step in alone.steps] == ["convolution"]
    again = run_of(Twice().eval(), torch.randn(2, 3, 4, 4), Groups((), ()))
    assert [step.name for step in again.steps] == ["convolution", "relu", "mul"]


def test_steps_read_only_what_was_made_before() -> None:
    run = run_of(Branches().eval(), torch.randn(2, 3, 16, 16), Groups((), ()))
    known = set(range(run.inputs))
    for step in run.steps:
        assert known.issuperset(step.reads)
        known |= set(step.writes)
    assert all(a.first <= b.first for a, b in pairwise(run.buffers(copies=False)[: len(known)]))


def test_a_network_whose_run_cannot_be_followed_has_none() -> None:
    class Broken(nn.Module):
        """It takes images of another size."""

        def forward(self, x: Tensor) -> Tensor:
            return x.view(1, 7)

    assert traced_run(Broken(), (torch.randn(2, 3, 4, 4),), Groups((), ())) is None

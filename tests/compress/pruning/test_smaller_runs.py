"""Groups are judged on less than the whole network; what is wrong on the whole is noticed all the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import compress
from compress.networks.running import forward
from compress.pruning.smaller_runs import container, cropped, part_of, within


class Stage(nn.Module):
    """A stem, a block with an inner width, and a head; ``large`` is what it does to large images in between."""

    def __init__(self, large: str = "") -> None:
        super().__init__()
        self.stem, self.large = nn.Conv2d(3, 12, 3, stride=2, padding=1), large
        self.block = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 12, 3, padding=1))
        self.norm, self.head = nn.InstanceNorm2d(12, affine=True), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        many = x.shape[-1] > 100
        x = self.stem(x)
        if many and self.large == "mixes":
            x = x + x.flip(1)
        x = x + self.block(x)
        if self.large == "normalises":
            x = self.norm(nn.functional.max_pool2d(x, 32)).relu()
        return self.head(x.mean((2, 3)))


class Counted(Stage):
    """Counts how many pixels it was given in all."""

    pixels = 0

    def forward(self, x: Tensor) -> Tensor:
        Counted.pixels += x[:, 0].numel()
        return super().forward(x)


def made(kind: Any, *args: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return kind(*args).eval(), torch.randn(2, 3, 192, 192)


def test_what_holds_for_small_images_only_is_not_pruned() -> None:
    groups = compress.find_groups(*made(Stage, "mixes"))
    assert [group.name for group in groups.prunable] == ["block.0"]
    assert dict(groups.kept)["stem"].startswith("removing channels is not the same")
    assert [group.name for group in compress.find_groups(*made(Stage)).prunable] == ["stem", "block.0"]


def test_what_small_images_do_not_show_is_pruned_all_the_same() -> None:
    """The norm of a single pixel is zero: there nothing has any influence."""
    groups = compress.find_groups(*made(Stage, "normalises"))
    assert [group.name for group in groups.prunable] == ["stem", "block.0"]


def test_most_of_the_work_is_done_on_few_pixels() -> None:
    network, images = made(Counted)
    Counted.pixels = 0
    compress.find_groups(network, images)
    assert Counted.pixels < 25 * images[:, 0].numel()


def test_a_group_lies_in_a_module_that_can_be_run_alone() -> None:
    network, images = made(Stage)
    stem, block = compress.find_groups(network, images).prunable
    assert container(stem) == ""
    assert container(block) == "block"
    found = part_of(network, (images,), "block")
    assert found is not None
    part, given = found
    assert torch.equal(given[0], network.stem(images))
    assert torch.equal(forward(part, given)[0], forward(network.block, given)[0])
    assert [slot.tensor for slot in within(block, "block").slots] == [
        slot.tensor.replace("block", "part", 1) for slot in block.slots
    ]


def test_images_are_cropped_where_the_network_takes_it() -> None:
    network, images = made(Stage)
    small = cropped(network, (images,))
    assert small is not None
    assert small[0].shape == (2, 3, 64, 64)
    assert cropped(network, small) is None, "small already"
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(3 * 192 * 192, 2))
    assert cropped(fixed, (images,)) is None

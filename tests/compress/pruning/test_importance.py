"""Which channels go first: every importance removes what it is meant to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.pruning.grouping import find_groups
from compress.pruning.groups import Groups
from compress.pruning.importance import taylor
from compress.pruning.pruning import prune
from targets.errors import SpaceError
from zoo import made


def test_the_least_important_channels_go_first() -> None:
    module, inputs = made("mlp")
    with torch.no_grad():
        module.get_submodule("0").weight[[1, 4, 9]] *= 1e-3
    pruned = prune(module, inputs, {"0": 3 / 16})
    assert pruned.removed == {"0": (1, 4, 9)}


def test_l1_and_l2_rank_differently() -> None:
    module, inputs = made("mlp")
    weight = torch.ones(16, 6)
    weight[0] = torch.tensor([2.6, 0, 0, 0, 0, 0])  # l2: 2.6 > 2.45, l1: 2.6 < 6
    module.get_submodule("0").weight = nn.Parameter(weight)
    groups = find_groups(module, inputs)
    assert prune(module, inputs, {"0": 1 / 16}, importance="l1", groups=groups).removed["0"] == (0,)
    assert prune(module, inputs, {"0": 1 / 16}, importance="l2", groups=groups).removed["0"] == (1,)


def test_fpgm_removes_what_another_channel_can_replace() -> None:
    module, inputs = made("mlp")
    weight = torch.randn(16, 6) * 3
    weight[[2, 5, 7, 11]] = 1.0  # large, but all alike
    module.get_submodule("0").weight = nn.Parameter(weight)
    assert set(prune(module, inputs, {"0": 0.25}, importance="fpgm").removed["0"]) <= {2, 5, 7, 11}


def test_bn_removes_the_smallest_scales(found: dict[str, Groups]) -> None:
    module, inputs = made("plain")
    with torch.no_grad():
        module.get_submodule("0.1").weight[[1, 6]] = -1e-3
    pruned = prune(module, inputs, {"0.0": 0.25, "1.0": 0.25}, importance="bn", groups=found["plain"])
    assert pruned.removed["0.0"] == (1, 6)


def test_taylor_keeps_what_the_loss_depends_on(found: dict[str, Groups]) -> None:
    module, inputs = made("mlp")
    with torch.no_grad():
        module.get_submodule("3").weight[:, [0, 3, 8]] = 0.0  # nothing reads them
    batches = [(torch.randn(8, 6), torch.randint(0, 3, (8,))) for _ in range(2)]
    scores = taylor(module, found["mlp"], batches, nn.functional.cross_entropy)
    assert [c for c, score in enumerate(scores["0"]) if score == 0.0] == [0, 3, 8]
    assert prune(module, inputs, {"0": 3 / 16}, importance=scores, groups=found["mlp"]).removed["0"] == (0, 3, 8)
    assert module.training
    assert all(p.grad is None for p in module.parameters())
    with pytest.raises(SpaceError, match="16 channels"):
        prune(module, inputs, importance={"0": [1.0]}, groups=found["mlp"])


def test_global_allocation_takes_from_the_groups_that_need_least(found: dict[str, Groups]) -> None:
    module, inputs = made("mlp")
    with torch.no_grad():  # half of the first layer hardly counts, all of the second does alike
        module.get_submodule("0").weight.copy_(torch.ones(16, 6) * torch.tensor([1.0, 1e-3] * 8)[:, None])
        module.get_submodule("3").weight.fill_(1.0)
    pruned = prune(module, inputs, 8 / 28, allocation="global", groups=found["mlp"])
    assert pruned.removed == {"0": tuple(range(1, 16, 2))}
    assert ("3", "pruning ratio 0") in pruned.kept
    most = prune(module, inputs, 0.95, allocation="global", groups=found["mlp"])
    assert [left for _, _, left in most.pruned] == [2, 2]

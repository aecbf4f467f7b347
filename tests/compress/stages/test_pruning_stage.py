"""From settings to a smaller network: allocations, cuts in steps, sparsity learning, depth; alone and in a search."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import compress
import zoo
from compress.networks.running import forward
from compress.pruning.grouping import find_groups
from compress.pruning.pruning import prune
from compress.pruning.widths import MOST_RATIO, evened
from compress.results import Result
from compress.stages import pruning
from compress.training import sparsity
from compress.values.configs import PruneSettings
from compress.values.domains import Choice, Float
from compress.values.search_spaces import SearchSpace
from targets.errors import SpaceError

# -- cuts in steps


@pytest.mark.parametrize("name", ["resnet", "dscnn", "chunk", "vit", "vit-chunk", "bi-lstm", "conv-autoencoder"])
def test_two_cuts_are_one_cut_of_both(name: str) -> None:
    network, inputs = zoo.made(name)
    groups = find_groups(network, inputs)
    first = prune(network, inputs, 0.3, groups=groups, importance="l1")
    second = prune(first.module, inputs, 0.4, groups=pruning.narrowed(groups, first.removed), importance="random")
    both = pruning.composed(groups, first.removed, second.removed)
    at_once = prune(network, inputs, removed=both, groups=groups)
    assert sum(map(len, both.values())) > sum(map(len, first.removed.values()))
    for key, x in second.module.state_dict().items():
        torch.testing.assert_close(x, at_once.module.state_dict()[key])
    for a, b in zip(forward(second.module, inputs), forward(at_once.module, inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_the_way_is_even_and_ends_where_it_should() -> None:
    groups = find_groups(*zoo.made("dscnn"))
    names = [group.name for group in groups.prunable]
    left = {names[0]: 16, names[1]: 40}
    plan = pruning._stops(groups, left, 3)
    assert plan == [{names[0]: 48, names[1]: 56}, {names[0]: 32, names[1]: 48}, left]
    assert pruning._stops(groups, left, 1) == [left]
    assert pruning._stops(groups, {}, 4) == [{}], "nothing to cut is one step"
    assert pruning._stops(groups, {names[0]: 63}, 3)[-1] == {names[0]: 63}


# -- allocation

_CURVES = st.dictionaries(
    st.sampled_from("abcd"), st.lists(st.floats(0, 5), min_size=3, max_size=3), min_size=1, max_size=4
)


@given(_CURVES, st.floats(0.0, 0.9))
def test_evened_shares_add_up_to_the_ratio_asked_for(losses: dict[str, list[float]], ratio: float) -> None:
    curves = {name: list(zip((0.25, 0.5, 0.75), values, strict=True)) for name, values in losses.items()}
    channels = {name: 16 * (i + 1) for i, name in enumerate(curves)}
    shares = evened(curves, channels, ratio)
    assert all(0 <= share <= MOST_RATIO for share in shares.values())
    total = sum(shares[name] * channels[name] for name in shares)
    assert total == pytest.approx(ratio * sum(channels.values()), abs=1e-3 * sum(channels.values()))


def test_what_is_hurt_less_loses_more_and_equals_lose_the_same() -> None:
    steep, flat = [(0.25, 1.0), (0.5, 2.0), (0.75, 3.0)], [(0.25, 0.1), (0.5, 0.2), (0.75, 0.3)]
    shares = evened({"a": steep, "b": flat, "c": steep}, {"a": 10, "b": 10, "c": 10}, 0.4)
    assert shares["b"] > 2 * shares["a"]
    assert shares["a"] == pytest.approx(shares["c"])
    free = evened({"a": steep, "b": [(0.25, 0.0), (0.5, 0.0), (0.75, 0.0)]}, {"a": 10, "b": 10}, 0.3)
    assert free["b"] > 10 * free["a"], "what costs nothing goes first"


# -- sparsity learning


@pytest.mark.parametrize("kind", ["bn", "group"])
def test_a_penalty_takes_the_asked_share_of_an_average_channel(kind: str) -> None:
    network, inputs = zoo.made("resnet")
    groups = find_groups(network, inputs)
    found = sparsity.penalties(network, groups, kind)
    assert len(found) == len(groups.prunable)
    before = [sparsity._norms(network, p.parts, p.channels) for p in found]
    weights = copy.deepcopy(network.state_dict())
    sparsity.shrink(network, found, 0.25)
    for penalty, old in zip(found, before, strict=True):
        new = sparsity._norms(network, penalty.parts, penalty.channels)
        if penalty.joint:
            expected = (old - 0.25 * penalty.mean).clamp_min(0)
            torch.testing.assert_close(new, expected, rtol=1e-4, atol=1e-6)
        assert bool((new < old).all())
    changed = {name for name, x in network.state_dict().items() if not torch.equal(x, weights[name])}
    scales = {f"{name}.weight" for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert changed == scales if kind == "bn" else scales < changed
    assert "5.weight" not in changed, "the output layer only reads channels"


def test_all_that_makes_a_channel_shrinks_together_and_to_exact_zeros() -> None:
    network, inputs = zoo.made("resnet")
    groups = find_groups(network, inputs)
    shared = next(g for g in groups.prunable if len([s for s in g.slots if sparsity._makes(network, s)]) > 1)
    [penalty] = sparsity.penalties(network, replace(groups, prunable=(shared,)), "group")
    with torch.no_grad():  # a weak channel
        for part in penalty.parts:
            network.get_parameter(part.tensor).select(part.dim, 0).mul_(0.01)
    for _ in range(4):
        sparsity.shrink(network, [penalty], 0.1)
    norms = [sparsity._norms(network, [part], penalty.channels) for part in penalty.parts]
    assert len(norms) > 1
    assert all(float(norm[0]) == 0.0 and bool((norm[1:] > 0).all()) for norm in norms)


def test_the_penalty_follows_the_steps_of_this_networks_optimizers_alone() -> None:
    network, inputs = zoo.made("resnet")
    other = nn.Linear(2, 2)
    groups = find_groups(network, inputs)
    mine, theirs = (torch.optim.SGD(m.parameters(), lr=0.0) for m in (network, other))
    with sparsity.penalised(network, groups, "bn", 0.5, 10) as count:
        for optimizer in (mine, theirs, mine):
            optimizer.step()
    assert count == [2]
    after = copy.deepcopy(network.state_dict())
    mine.step()
    assert all(torch.equal(x, after[name]) for name, x in network.state_dict().items()), "the hook is gone"


# -- in a search


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        self.body = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


@pytest.fixture(scope="module")
def residual(tiny: ModuleType) -> compress.Task:
    """The tiny task with a network of two residual blocks, about 90 % right."""
    data = tiny.datasets()
    images, labels = data["train"].tensors
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stem = [nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        model = nn.Sequential(*stem, Block(16), Block(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
        for _ in range(6):
            for chosen in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
                optimizer.step()
    return compress.Task(name="residual", model=model.eval(), **data)


EVERYTHING = SearchSpace(
    epochs=2, l1=0.0, precision=Choice("fp32", "mixed"), prune_ratio=0.5, prune_skew=Float(-0.2, 0.2),
    importance=Choice("taylor"), allocation=Choice("global", "sensitivity"), prune_steps=Choice(2), depth=Choice(0.5),
    sparsity=Choice(0.2), sparsity_kind=Choice("group", "bn"), sparsity_epochs=1,
)  # fmt: skip
"""Four points, walked as a grid."""
Search = Callable[..., Result]


def _same(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in ("wall_s", "stages", "environment")}


@pytest.mark.slow
def test_everything_at_once_is_repeatable_resumes_and_its_candidates_load(
    search: Search, residual: compress.Task, tmp_path: Path
) -> None:
    asked = {"task": residual, "space": EVERYTHING, "sampler": "grid"}
    whole = search(**asked, trials=4, out=tmp_path / "whole")
    search(**asked, trials=2, out=tmp_path / "parts")
    parts = search(**asked, trials=4, out=tmp_path / "parts")
    assert whole.report["trials"] == {"asked": 4, "finished": 4, "gated": 0, "failed": 0}
    assert _same(whole.report) == _same(parts.report)
    stages = whole.report["stages"]
    assert stages["sparsify"]["count"] == 2, "once for each kind"
    assert stages["finetune"]["count"] + stages["finetune"]["cached"] > 4, "trained in between as well"
    images = residual.val.tensors[0][:16]
    found = [c for c in whole.candidates() if c.config["precision"]["scheme"] == "fp32" and c.id != "baseline"]
    assert any(c.config.get("dropped") for c in found)
    assert any(c.config["widths"] for c in found)
    for candidate in found:
        session = onnxruntime.InferenceSession(candidate.path, providers=["CPUExecutionProvider"])
        [outputs] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(outputs, candidate.module()(images).numpy(), atol=1e-3)
        stored = json.loads((candidate.path.parent / "candidate.json").read_text())
        assert stored["dropped"] == list(candidate.config.get("dropped", []))
        for name, gone in stored["removed"].items():
            assert len(gone) == 16 - candidate.config["widths"][name], "counted in the baseline's channels"


@pytest.mark.slow
def test_each_setting_is_its_own_result(search: Search, residual: compress.Task, tmp_path: Path) -> None:
    """One run, one setting changed at a time: what it changes is computed anew, what it does not is not."""
    fixed = {
        "epochs": 2, "l1": 0.0, "prune_ratio": 0.5, "prune_skew": 0.0, "prune_delta": 0.0, "lr": 3e-3, "dropout": 0.0,
        "weight_decay": 0.0, "label_smoothing": 0.0, "distill_weight": 0.5, "temperature": 4.0, "precision": "fp32",
    }  # fmt: skip
    others = {"importance": "random", "prune_steps": 2, "sparsity": 0.3, "depth": 0.5}
    found: dict[str, Any] = {}
    for name, value in {"nothing": None, **others}.items():
        changed = {} if value is None else {name: value}
        space = SearchSpace(**{**fixed, **changed, "epochs": Choice(2)})
        result = search(task=residual, space=space, trials=len(found) + 1, out=tmp_path / "run", sampler="random")
        found[name] = result.report
    assert len(found["depth"]["candidates"]) == 1 + len(found), "every setting makes another network"
    stages = [report["stages"] for report in found.values()]
    assert "sparsify" not in stages[0]
    assert "importance" not in stages[-1]
    assert stages[-1]["sparsify"]["count"] == 1
    assert stages[-1]["finetune"]["count"] == len(found) + 1, "two cuts are trained twice"
    by_depth = [c for c in found["depth"]["candidates"] if c["config"].get("dropped")]
    assert len(by_depth) == 1
    whole = [c for c in found["depth"]["candidates"] if c["config"]["widths"] and not c["config"].get("dropped")]
    assert by_depth[0]["macs"] < min(c["macs"] for c in whole)


def test_settings_are_checked_and_absent_dimensions_left_out() -> None:
    with pytest.raises(SpaceError, match="importance='best': must be one of l2, l1, bn, fpgm, random, taylor"):
        SearchSpace(importance=Choice("l2", "best"))
    with pytest.raises(SpaceError, match="prune_steps=0: must be within"):
        SearchSpace(prune_steps=0)
    with pytest.raises(SpaceError, match=r"depth=1.5: must be within \[0.0, 1.0\]"):
        SearchSpace(depth=Float(0.0, 1.5))
    assert set(PruneSettings().__dict__) >= {"importance", "allocation", "steps", "depth", "sparsity"}
    names = set(EVERYTHING.dimensions(("a", "b"), blocks=2))
    searched = {"importance", "allocation", "prune_steps", "sparsity", "sparsity_kind"}
    assert {*searched, "depth"} <= names
    assert "depth" not in EVERYTHING.dimensions(("a", "b"))
    assert searched.isdisjoint(EVERYTHING.dimensions((), blocks=2))
    assert SearchSpace().config({}).prune == PruneSettings(), "neutral unless asked"

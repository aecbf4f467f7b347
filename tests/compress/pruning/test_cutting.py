"""A cut that is not as planned is never handed out: each check that is made of it is shown to say no."""

from __future__ import annotations

import copy
import importlib.util
import linecache
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.pruning import pruning
from compress.pruning.blocks import Blocks, find_blocks
from compress.pruning.cutting import cut, permute, take
from compress.pruning.grouping import find_groups
from compress.pruning.groups import Group, Groups, Knob, Slot, Unsupported
from compress.pruning.narrow_attention import NarrowAttention
from compress.pruning.patterns import network_pattern
from compress.pruning.pruning import prune
from compress.pruning.source_numbers import numbers, put
from targets.errors import PruneError, TaskError

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
Plan = Iterable[tuple[Group, Iterable[int]]]


class Moody(nn.Module):
    """Two layers; once ``mood`` is set, it minds that the first has become narrower."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.mood, self.number = nn.Linear(6, 8), nn.Linear(8, 3), "", 9

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.a(x))
        if hidden.shape[1] < 8 and self.mood == "raises":
            raise RuntimeError("eight or nothing")
        found: Tensor = self.b(hidden)
        if hidden.shape[1] < 8 and self.mood == "other shape":
            return found[:, :2]
        return found * float("inf") if hidden.shape[1] < 8 and self.mood == "not finite" else found


def _moody(mood: str = "") -> tuple[Moody, Groups]:
    module = Moody().eval()
    groups = find_groups(module, X)
    assert [group.name for group in groups.prunable] == ["a"]
    module.mood = mood
    return module, groups


@pytest.mark.parametrize(
    ("mood", "said"),
    [
        ("raises", r"the network does not run with a cut \(RuntimeError: eight or nothing\); keep some of them"),
        ("other shape", "the outputs' shapes changed with a cut; keep some of them"),
        ("not finite", "the outputs are not finite with a cut; keep some of them"),
    ],
)
def test_a_network_that_minds_being_narrower_is_refused(mood: str, said: str) -> None:
    module, groups = _moody(mood)
    with pytest.raises(PruneError, match=said):
        prune(module, X, 0.5, groups=groups)
    assert module(X).shape == (2, 3), "itself it is as it was"


def test_outputs_that_were_not_finite_before_are_no_reason() -> None:
    module, groups = _moody("not finite")
    with torch.no_grad():
        module.b.bias.fill_(float("nan"))
    assert prune(module, X, 0.5, groups=groups).pruned == [("a", 8, 4)]


def _nothing(_: nn.Module, __: Plan) -> None:
    """A cut that cuts nothing."""


def _grown(module: nn.Module, removed: Plan) -> None:
    """A cut that leaves more behind than it takes."""
    cut(module, [(group, tuple(gone)) for group, gone in removed])
    module.register_parameter("more", nn.Parameter(torch.zeros(1000)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (_nothing, r"'a\.(weight|bias)' has not lost the planned 4 channels after pruning"),
        (_grown, "the pruned network has 1043 parameters, not fewer than the 83 it had"),
    ],
)
def test_a_cut_that_does_not_cut_is_noticed(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., None], said: str
) -> None:
    module, groups = _moody()
    monkeypatch.setattr(pruning, "cut", wrong)
    with pytest.raises(PruneError, match=said):
        prune(module, X, 0.5, groups=groups)


def test_a_number_that_would_not_stay_whole_is_not_cut() -> None:
    module, groups = _moody()
    [group] = groups.prunable
    knob = replace(group, knobs=(Knob("", "number"),))
    said = r"could not be cut \(Unsupported: number of '' does not stay a whole number\): its groups must be found for"
    with pytest.raises(PruneError, match=said):
        prune(module, X, widths={"a": 4}, groups=Groups((knob,), ()))
    module.number = 10
    assert prune(module, X, widths={"a": 4}, groups=Groups((knob,), ())).module.number == 5  # type: ignore[comparison-overlap]


CONV = nn.Conv2d(8, 4, 1, groups=2)


def _claim(tensor: str, *, grouped: bool = False, root: tuple[int, ...] = (0, 1)) -> Group:
    slot = Slot(tensor, 0, "out", tuple(range(len(root))), root, grouped)
    return Group("claimed", 2, 1, ("claimed",), (slot,))


CLAIMS: dict[str, tuple[Callable[[Any], None], str]] = {
    "no tensor": (lambda module: cut(module, [(_claim("0.stride"), (0,))]), "'0.stride' is neither a parameter nor a"),
    "a group without groups": (
        lambda module: cut(module, [(_claim("1.weight", grouped=True), (0,))]),
        "'1.weight' is not the weight of a convolution layer: a grouped one cannot be cut",
    ),
    "unequal parts": (
        lambda module: permute(module, [(_claim("1.weight", root=(0, 0, 1)), (1, 0))]),
        "its channels have unequal parts in '1'",
    ),
    "a part of a group": (
        lambda module: take(module, {("0.weight", 1, True): range(5)}), "5 channels do not divide into 2 groups",
    ),
    "more of one group": (
        lambda module: take(module, {("0.weight", 1, True): [0, 1, 2, 4]}),
        "a grouped convolution must lose the same number of channels in each group",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CLAIMS)
def test_what_is_not_known_how_to_be_cut_is_refused(name: str) -> None:
    module = nn.Sequential(copy.deepcopy(CONV), nn.PReLU(4))
    do, said = CLAIMS[name]
    with pytest.raises(Unsupported, match=said):
        do(module)


def test_a_norm_of_each_channel_alone_keeps_its_width() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(8, 8), nn.Conv2d(8, 4, 1))
    groups = find_groups(module, torch.randn(2, 3, 4, 4))
    said = "its 8 channels must stay a multiple of 8 (grouped convolution or GroupNorm)"
    assert dict(groups.kept)["0"] == said


def test_attention_with_keys_of_its_own_cannot_lose_heads() -> None:
    for layer in (nn.MultiheadAttention(8, 2, add_bias_kv=True), nn.MultiheadAttention(8, 2, add_zero_attn=True)):
        with pytest.raises(Unsupported, match="bias_k, bias_v or add_zero_attn is not supported"):
            NarrowAttention(layer)
    x = torch.randn(1, 5, 8)
    with pytest.raises(ValueError, match="a mask for each head does not fit an attention layer"):
        NarrowAttention(nn.MultiheadAttention(8, 2, batch_first=True))(x, x, x, attn_mask=torch.zeros(2, 5, 5))


class Uncopied(nn.Linear):
    def __deepcopy__(self, _: object) -> nn.Module:
        raise RuntimeError("it holds a lock")


@pytest.mark.parametrize(
    ("module", "find", "said"),
    [
        (Uncopied(6, 3), find_groups, r"^the model cannot be copied \(RuntimeError: it holds a lock\): pruning needs"),
        # Weights that are computed are put in place in a copy.
        (nn.utils.parametrizations.weight_norm(Uncopied(6, 3)), find_groups, r"^the model cannot be copied \(Runtime"),
        (Uncopied(6, 3), find_blocks, r"cannot be copied or does not run on example_inputs \(RuntimeError: it holds"),
    ],
)
def test_a_module_that_cannot_be_copied_is_refused(module: nn.Module, find: Callable[..., Any], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        find(module, X)


def test_a_pattern_needs_a_network_that_runs() -> None:
    module, groups = _moody()
    said = r"the model does not run on example_inputs without anything dropped \(RuntimeError: "
    with pytest.raises(TaskError, match=said):
        network_pattern(module, torch.randn(2, 5), groups, Blocks((), ()), ())


def test_numbers_of_a_source_that_is_gone_are_not_changed(tmp_path: Path) -> None:
    source = tmp_path / "gone.py"
    source.write_text(
        "from torch import nn\n\n\nclass Gone(nn.Module):\n    def forward(self, x):\n        return x * 7\n"
    )
    spec = importlib.util.spec_from_file_location("gone", source)
    assert spec is not None
    assert spec.loader is not None
    found: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    assert numbers(found.Gone) == [("forward", 0, 7)]
    source.unlink()
    linecache.checkcache()
    with pytest.raises(RuntimeError, match=r"the source of Gone\.forward is not to be had: its numbers cannot be"):
        put(found.Gone(), "forward", 0, 5)

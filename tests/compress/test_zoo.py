"""Every kind of network that people bring: pruned right, or left alone and said why.

The oracle is the network it came from with the removed channels held at zero. Where something normalises over the
channels, zeros would count as channels: there the odd channels are made copies of the even ones that nothing reads,
and pruning them must not move the output.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compress
from compress.attention import NarrowAttention
from compress.cutting import Group, Groups, duplicate, tensor_named
from compress.permutation_gate import forward
from compress.pruning import count, find_groups, prune


def beside(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


zoo, zoo_table = beside("zoo"), beside("zoo_table")
NAMES = list(zoo.ZOO)
LEFT_ALONE = {"split": "stem.0", "uneven-split": "stem.0", "shufflenet": "0.0", "hard-view": "b.0", "weight-norm": "a"}
"""Networks of which a part stays, and the layer that the reason is given for."""
SLOWER = ("vit", "bert", "lstm", "gru", "transformer", "multihead", "attention", "encoder")
FAST = ("resnet", "conv-gru", "vit-chunk", "transformer")
"""Rows whose export is checked in the quick suite."""


@pytest.fixture(scope="module", autouse=True)
def quiet_torch() -> Iterator[None]:
    """One thread: a second one only waits. No fast path: it would pass by the hooks of the oracle."""
    threads, fast = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.set_num_threads(threads)
    torch.backends.mha.set_fastpath_enabled(fast)


@pytest.fixture(scope="module")
def found() -> dict[str, Groups]:
    return {name: find_groups(*zoo.made(name)) for name in NAMES}


HOOKED = nn.modules.conv._ConvNd | nn.Linear | nn.Embedding | nn.modules.batchnorm._NormBase | nn.PReLU


def masked(module: nn.Module, groups: Groups, removed: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of ``module`` whose removed channels are held at zero where a layer puts them out.

    Where a layer's own channels never come out of it as such (recurrent units, torch's attention) and for bare
    parameters, the weights that make them are zero instead: the units then stay at zero, too.
    """
    network = copy.deepcopy(module)
    inside = [name for name, m in network.named_modules() if isinstance(m, nn.MultiheadAttention | nn.RNNBase)]
    for group in groups.prunable:
        gone = set(removed.get(group.name, ()))
        for slot in group.slots:
            at = torch.tensor([i for i, root in zip(slot.index, slot.root, strict=True) if root in gone])
            if slot.side == "in" or not len(at):
                continue
            layer = network.get_submodule(slot.layer)
            if not isinstance(layer, HOOKED) or any(slot.tensor.startswith(f"{name}.") for name in inside):
                tensor_named(network, slot.tensor).data.index_fill_(slot.dim, at, 0.0)
                continue
            dim = -1 if isinstance(layer, nn.Linear | nn.Embedding) else 1

            def hold(_: nn.Module, __: Any, out: Tensor, dim: int = dim, at: Tensor = at) -> Tensor:
                return out.index_fill(dim, at, 0.0)

            layer.register_forward_hook(hold)
    return network


def difference(first: list[Tensor], second: list[Tensor]) -> float:
    """Largest, relative to the output's largest value."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_pruned_network_equals_the_masked_one(name: str, ratio: float, found: dict[str, Groups]) -> None:
    module, inputs = zoo.made(name)
    ratios = {group.name: ratio for group in found[name].prunable if not group.mixed}
    pruned = prune(module, inputs, ratios, groups=found[name])
    expected = forward(masked(module, found[name], pruned.removed), inputs)
    assert difference(forward(pruned.module, inputs), expected) < 1e-4


def odd(group: Group) -> dict[int, int]:
    """{odd channel: the even one before it}, in every block."""
    return {block[k]: block[k - 1] for block in group.blocks() for k in range(1, len(block), 2)}


def even_sized(groups: Groups) -> list[Group]:
    return [group for group in groups.prunable if group.channels // group.multiple % 2 == 0]


@pytest.mark.parametrize("name", NAMES)
def test_odd_channels_that_nothing_needs_can_go(name: str, found: dict[str, Groups]) -> None:
    module, inputs = zoo.made(name)
    chosen = [group for group in even_sized(found[name]) if group.mixed]
    if not chosen:
        return
    before = forward(module, inputs)
    duplicate(module, [(group, odd(group)) for group in chosen])
    full = forward(module, inputs)
    pruned = prune(module, inputs, removed={group.name: tuple(odd(group)) for group in chosen}, groups=found[name])
    assert difference(forward(pruned.module, inputs), full) < 1e-4
    assert difference(full, before) > 1e-2  # the copies do differ from what was there


@pytest.mark.parametrize("name", NAMES)
def test_it_is_really_pruned(name: str, found: dict[str, Groups]) -> None:
    module, inputs = zoo.made(name)
    pruned = prune(module, inputs, 0.6, groups=found[name])
    assert all(why for _, why in pruned.kept)
    if name in LEFT_ALONE:
        assert dict(found[name].kept)[LEFT_ALONE[name]]
        assert "kept" not in dict(found[name].kept)[LEFT_ALONE[name]]
        return
    left = pruned.macs / count(module, inputs)[0]
    assert left <= (0.6 if any(word in name for word in SLOWER) else 0.5)
    outputs = [layer for layer, why in found[name].kept if why == "output layer"]
    assert outputs


ATTENTION = {
    "vit-separate": ("block.attention", "num_heads"),
    "vit-chunk": ("block.attention", "num_heads"),
    "vit-index": ("block.attention", "num_heads"),
    "vit-unbind": ("block.attention", "num_heads"),
    "vit-fused": ("block.attention", "num_heads"),
    "multihead": ("attention", "num_heads"),
    "cross-attention": ("attention", "num_heads"),
    "transformer": ("encoder.layers.1.self_attn", "num_heads"),
    "bert": ("attention", "num_attention_heads"),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_whole_heads_are_removed(name: str, found: dict[str, Groups]) -> None:
    module, inputs = zoo.made(name)
    heads = [group for group in found[name].prunable if group.name.endswith(":heads")]
    assert heads
    pruned = prune(module, inputs, {group.name: 0.25 for group in heads}, groups=found[name])
    place, attribute = ATTENTION[name]
    assert getattr(pruned.module.get_submodule(place), attribute) == 3
    assert getattr(module.get_submodule(place), attribute) == 4


def test_recurrent_layers_stay_torchs_own(found: dict[str, Groups]) -> None:
    module, inputs = zoo.made("bi-gru-stacked")
    small = prune(module, inputs, 0.5, groups=found["bi-gru-stacked"]).module
    gru = small.get_submodule("gru")
    assert isinstance(gru, nn.GRU)
    assert (gru.hidden_size, gru.input_size, small.size) == (6, 6, 6)
    assert gru.weight_ih_l1_reverse.shape == (18, 12)
    small.train()(*inputs).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


def test_an_attention_that_may_lose_heads_computes_what_torchs_does() -> None:
    torch.manual_seed(0)
    for kdim, first in ((None, True), (5, False)):
        whole = nn.MultiheadAttention(8, 2, kdim=kdim, vdim=kdim, batch_first=first).eval()
        narrow = NarrowAttention(whole)
        x, y = torch.randn(3, 4, 8), torch.randn(3, 4, kdim or 8)
        hidden = torch.zeros((3, 4) if first else (4, 3), dtype=torch.bool)
        hidden[0, 2:] = True
        mask = torch.triu(torch.ones(4 if first else 3, 4 if first else 3, dtype=torch.bool), 1)
        for average in (True, False):
            settings = {"key_padding_mask": hidden, "attn_mask": mask, "average_attn_weights": average}
            for a, b in zip(narrow(x, y, y, **settings), whole(x, y, y, **settings), strict=True):
                torch.testing.assert_close(a, b)
        if kdim is None:
            torch.testing.assert_close(narrow(x, x, x)[0], whole(x, x, x)[0])
            torch.testing.assert_close(narrow(x[0], x[0], x[0])[0], whole(x[0], x[0], x[0])[0])


def exported(name: str, groups: Groups, folder: Path) -> None:
    """Prune, export, and compare with torch at two batch sizes (export does) and once more here."""
    import onnxruntime

    module, inputs = zoo.made(name)
    small = prune(module, inputs, 0.6, groups=groups).module
    compress.export(small, inputs, folder / "small.onnx")
    session = onnxruntime.InferenceSession(folder / "small.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 2):
        few = tuple(t[:batch] for t in inputs)
        fed = {i.name: t.numpy() for i, t in zip(session.get_inputs(), few, strict=True)}
        for got, wanted in zip(session.run(None, fed), forward(small, few), strict=True):
            assert np.abs(got - wanted.numpy()).max() <= 1e-4 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("name", FAST)
def test_pruned_network_exports(name: str, found: dict[str, Groups], tmp_path: Path) -> None:
    exported(name, found[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in FAST])
def test_every_pruned_network_exports(name: str, found: dict[str, Groups], tmp_path: Path) -> None:
    exported(name, found[name], tmp_path)


def test_the_table_in_the_docs_is_current(found: dict[str, Groups]) -> None:
    assert zoo_table.PATH.read_text() == zoo_table.table(zoo, found), "run: python tests/compress/zoo_table.py"

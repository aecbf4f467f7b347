"""Memory of networks that were not measured, held against what TensorFlow Lite Micro has said of them."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress.pruning.blocks import find_blocks, groups_without
from compress.pruning.grouping import find_groups
from compress.pruning.patterns import network_patterns
from compress.sampling import cost_model
from compress.sampling.network_arrays import Patterns, patterns_by_dropped, whole
from compress.sampling.pool import relieved
from compress.scanning.arenas import ALIGNMENT, ArenaTable, arena
from compress.scanning.traced_runs import with_runs
from compress.values.networks import Network
from recipes.digits import network as digits
from recipes.image_classification import network as resnet

# (Blocks dropped, widths in the order of the names of groups, bytes that int8 takes on `tflm` and on `cortex-m`, bytes
# that fp32 takes on `tflm`), as both targets measured them.
DIGITS = [
    ((), (1, 1, 1), 2576, 3436, 2896), ((), (1, 1, 28), 3152, 4060, 4624), ((), (4, 1, 25), 3104, 4028, 4432),
    ((), (1, 20, 1), 5808, 6668, 15488), ((), (1, 26, 2), 6864, 7724, 19488), ((), (3, 7, 20), 3712, 4700, 6992),
    ((), (12, 7, 2), 3712, 5004, 7200), ((), (5, 20, 5), 5872, 6732, 15552), ((), (20, 6, 16), 4320, 5900, 9152),
    ((), (2, 30, 26), 7744, 8604, 22336), ((), (1, 29, 42), 7712, 8572, 21808), ((), (10, 42, 1), 9680, 10540, 30176),
    ((), (10, 28, 39), 7536, 8396, 21152), ((), (19, 26, 31), 7216, 8076, 19840), ((), (32, 23, 18), 6688, 8700, 17840),
    ((), (4, 64, 50), 13760, 14620, 45088), ((), (24, 35, 56), 8976, 9836, 26032),
    ((), (32, 36, 45), 9136, 9996, 26688), ((), (27, 45, 46), 10688, 11548, 32656),
    ((), (20, 60, 61), 13296, 14156, 42656), ((), (22, 64, 64), 14016, 14876, 45344),
    ((), (32, 64, 64), 14080, 14940, 45408),
]  # fmt: skip
# Residual blocks, of which the first can be dropped; in the others a convolution stands in the shortcut.
RESNET = [
    (("3",), (1, 1, 11, 1, 13), 13520, 13936, 40944), ((), (2, 2, 1, 10, 8, 18), 13488, 13712, 38400),
    (("3",), (6, 6, 7, 4, 14), 18944, 19584, 62624), (("3",), (6, 11, 2, 8, 25), 20416, 21056, 67936),
    ((), (3, 2, 11, 10, 18, 3), 16944, 17168, 52528), (("3",), (2, 11, 22, 7, 20), 23072, 23488, 78080),
    (("3",), (9, 6, 21, 31, 8), 31248, 31664, 110672), ((), (4, 5, 8, 10, 51, 18), 22448, 22672, 73024),
    (("3",), (4, 22, 21, 13, 40), 28096, 28512, 96720), ((), (5, 4, 10, 15, 34, 47), 23296, 23520, 75024),
    (("3",), (8, 16, 7, 64, 49), 26976, 27680, 91424), (("3",), (10, 14, 19, 54, 39), 35664, 36080, 126240),
    ((), (8, 15, 24, 7, 10, 44), 39616, 39840, 140928), (("3",), (9, 19, 28, 42, 61), 37520, 37936, 132304),
    (("3",), (10, 32, 20, 61, 41), 40784, 41200, 145952), (("3",), (10, 18, 32, 64, 53), 40560, 40976, 144192),
    ((), (10, 14, 19, 27, 30, 55), 48784, 49008, 175456), (("3",), (16, 29, 30, 64, 52), 56000, 56416, 205792),
    ((), (9, 12, 32, 32, 63, 38), 44688, 44912, 158672), ((), (14, 12, 24, 27, 64, 64), 51808, 52032, 186208),
    ((), (16, 16, 32, 32, 64, 64), 58368, 58592, 212000),
]  # fmt: skip
WHAT = {"tflm int8": (2, 8), "cortex-m int8": (3, 8), "tflm fp32": (4, 32)}
"""Column of the tables, and bits of an element."""


def patterns_of(module: torch.nn.Module, inputs: torch.Tensor) -> Patterns:
    module = module.eval()
    groups, blocks = find_groups(module, inputs), find_blocks(module, inputs)
    without = partial(groups_without, module, inputs, groups, blocks)
    found = network_patterns(module, inputs, groups, blocks)
    return patterns_by_dropped(with_runs(found, module, (inputs,), blocks, without))


@pytest.fixture(scope="module")
def spaces() -> dict[str, tuple[Patterns, list[tuple]]]:
    return {
        "digits": (patterns_of(digits(), torch.randn(2, 1, 8, 8)), DIGITS),
        "resnet": (patterns_of(resnet(), torch.randn(2, 3, 32, 32)), RESNET),
    }


def networks_in(patterns: Patterns, rows: list[tuple]) -> list[Network]:
    names = {dropped: sorted(pattern.full) for dropped, pattern in patterns.items()}
    return [Network(dropped, tuple(zip(names[dropped], widths, strict=True))) for dropped, widths, *_ in rows]


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("name", ["digits", "resnet"])
def test_memory_of_a_network_that_was_not_measured_is_known(spaces: dict, name: str, what: str) -> None:
    patterns, rows = spaces[name]
    column, bits = WHAT[what]
    found = np.array([row[column] for row in rows], dtype=np.float64)
    table = ArenaTable(patterns, ALIGNMENT // bits)
    model = cost_model.fit(patterns, networks_in(patterns, rows), found / found.max(), 1, table=table)
    assert model.median_error < 0.005
    assert model.worst_error < 0.015


@pytest.mark.parametrize("count", [5, 8])
@pytest.mark.parametrize("name", ["digits", "resnet"])
def test_a_few_networks_are_enough(spaces: dict, name: str, count: int) -> None:
    patterns, rows = spaces[name]
    networks, found = networks_in(patterns, rows), np.array([row[2] for row in rows], dtype=np.float64)
    some = np.linspace(0, len(rows) - 1, count).round().astype(int)
    model = cost_model.fit(
        patterns, [networks[i] for i in some], found[some] / found.max(), 1, table=ArenaTable(patterns)
    )
    errors = np.abs(model.predict(networks) * found.max() / found - 1)
    assert np.median(errors) < 0.02
    assert errors.max() < 0.06


@pytest.mark.parametrize("name", ["digits", "resnet"])
def test_to_cut_the_groups_at_the_peak_needs_less_memory_and_to_cut_the_others_does_not(
    spaces: dict, name: str
) -> None:
    patterns, rows = spaces[name]
    found = np.array([row[2] for row in rows], dtype=np.float64)
    table = ArenaTable(patterns)
    networks = networks_in(patterns, rows)
    model = cost_model.fit(patterns, networks, found / found.max(), 1, table=table)
    path = [whole(patterns[()]), *relieved(patterns, [whole(patterns[()])], table.at_peak)]
    costs = model.predict(path)
    assert len(path) == 9
    # Where the largest tensors come first, a smaller one may now and then leave a gap.
    assert (np.diff(costs) < 0).sum() >= 7
    assert costs[-1] < 0.55
    at_peak = set(table.at_peak(path[0]))
    assert at_peak < set(patterns[()].full), "not all groups make the peak"
    others = {group: max(1, width - 1) if group not in at_peak else width for group, width in path[0].widths}
    narrower = Network((), tuple(sorted(others.items())))
    assert model.predict([narrower])[0] > 0.98 * costs[0]


def test_tensors_that_are_never_needed_together_share_their_place() -> None:
    assert arena([100, 100, 100], [[1], [0, 2], [1]]) == 200
    assert arena([100, 100, 100], [[], [], []]) == 100
    assert arena([], []) == 0


def test_equal_tensors_are_laid_out_the_last_one_first_which_may_leave_gaps() -> None:
    """Layers of 41, 41, 64, 64, 51, 51 and 64 channels at 125 places: 20,768 bytes, though 16,000 are live at most."""
    sizes = [16.0 * -(-channels * 125 // 16) for channels in (41, 41, 64, 64, 51, 51, 64)]
    chain = [[j for j in (i - 1, i + 1) if 0 <= j < len(sizes)] for i in range(len(sizes))]
    assert arena(sizes, chain) == 20768


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=9))
def test_an_arena_holds_what_is_live_and_no_more_than_everything(tensors: list[tuple[int, int, int]]) -> None:
    spans = [(first, first + length) for _, first, length in tensors]
    together = [
        [j for j, (a, b) in enumerate(spans) if j != i and a <= last and first <= b]
        for i, (first, last) in enumerate(spans)
    ]
    sizes = [float(size) for size, _, _ in tensors]
    found = arena(sizes, together)
    moments = itertools.chain.from_iterable(spans)
    live = max(sum(s for s, (a, b) in zip(sizes, spans, strict=True) if a <= t <= b) for t in moments)
    assert live <= found <= sum(sizes)

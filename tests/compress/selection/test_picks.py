"""Picks as a pure function of what is known: who is read on test next, and when it is enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.selection import picks, rankings
from compress.selection.fronts import front, with_feasibility
from compress.selection.nearest_misses import nearest_miss
from compress.selection.questions import Question
from compress.values.candidates import Candidate, Drop, QualitySplits
from compress.values.constraints import parse_constraint

Make = Callable[..., Candidate]


def question(make: Make, *constraints: str, **changes: Any) -> Question:
    asked = tuple(parse_constraint(text) for text in constraints or ("quality_drop<=0.01",))
    return replace(Question(make("baseline"), ("quality", "latency"), asked, True, True, {}), **changes)


def test_an_unread_pick_is_open_and_is_the_next_to_be_read(candidate: Make) -> None:
    fast = candidate("0001-int8", drop=0.005, ratio=0.5)
    pick, unread = picks.choose("fastest", [candidate("baseline"), fast], question(candidate), "fake")
    assert pick is not None
    assert (pick.id, pick.verdict, pick.read, pick.refuted) == ("0001-int8", "open", 0, ())
    assert unread == fast


def test_a_refuted_pick_gives_way_to_the_next_in_line_three_at_most(candidate: Make) -> None:
    drops = {"0001-a": 0.009, "0002-b": 0.006, "0003-c": 0.003, "0004-d": 0.001}
    ratios = {"0001-a": 0.2, "0002-b": 0.4, "0003-c": 0.6, "0004-d": 0.8}
    tests: dict[str, float] = {}
    asked = question(candidate)
    seen = []
    for _ in range(5):
        made = [candidate(name, drops[name], ratios[name], test=tests.get(name)) for name in drops]
        pick, unread = picks.choose("fastest", made, asked, "fake")
        assert pick is not None
        seen.append((pick.id, pick.verdict, pick.read, pick.refuted))
        if unread is None:
            break
        tests[unread.id] = 0.05
    assert seen == [
        ("0001-a", "open", 0, ()),
        ("0002-b", "open", 1, ("0001-a",)),
        ("0003-c", "open", 2, ("0001-a", "0002-b")),
        ("0003-c", "refuted", 3, ("0001-a", "0002-b")),
    ]
    assert "0004-d" not in tests


def test_the_second_in_line_can_be_confirmed(candidate: Make) -> None:
    made = [candidate("0001-a", 0.009, 0.2, test=0.05), candidate("0002-b", 0.006, 0.4, test=0.004)]
    pick, unread = picks.choose("fastest", made, question(candidate), "fake")
    assert pick is not None
    assert (pick.id, pick.verdict, pick.read, pick.refuted) == ("0002-b", "confirmed", 2, ("0001-a",))
    assert unread is None


def test_an_interval_beyond_the_limit_is_open_and_says_how_many_would_settle_it(candidate: Make) -> None:
    made = [candidate("0001-a", 0.005, 0.5, test=0.009, half=0.005)]
    counts = {("fake", "0001-a"): (12, 3, 1000)}
    pick, unread = picks.choose("fastest", made, question(candidate, disagreements=counts), "fake")
    assert pick is not None
    assert (pick.verdict, pick.read, unread) == ("open", 1, None)
    assert pick.needed is not None
    assert pick.needed > 1000


def test_nothing_feasible_is_no_pick(candidate: Make) -> None:
    made = [candidate("baseline"), candidate("0001-a", 0.5, 0.1)]
    assert picks.choose("fastest", made, question(candidate, "size<=1B"), "fake") == (None, None)


def test_the_baseline_is_measured_by_itself_and_never_refuted(candidate: Make) -> None:
    noisy = candidate("baseline", test=0.0)
    splits = noisy.measured["fake"]
    worse = replace(splits, quality_drop=replace(splits.quality_drop, test=Drop(0.0, -0.05, 0.05)))
    baseline = noisy.on("fake", worse)
    pick, unread = picks.choose("fastest", [baseline], question(candidate, baseline=baseline), "fake")
    assert pick is not None
    assert (pick.id, pick.verdict, unread) == ("baseline", "confirmed", None)


def test_feasibility_is_judged_anew_by_todays_constraints(candidate: Make) -> None:
    made = [candidate("0001-a", 0.03, 0.5)]
    strict, loose = question(candidate), question(candidate, "quality_drop<=0.05")
    assert [c.measured["fake"].feasible for c in with_feasibility(made, strict, "fake")] == [False]
    assert [c.measured["fake"].feasible for c in with_feasibility(made, loose, "fake")] == [True]
    assert front(made, strict, "fake") == []


def test_what_was_not_measured_on_a_target_is_not_judged_there(candidate: Make) -> None:
    made = [candidate("0001-a"), candidate("0002-b", target="other")]
    assert [c.id for c in with_feasibility(made, question(candidate), "fake")] == ["0001-a"]


def test_the_nearest_miss_is_named_with_what_it_is_beyond_by(candidate: Make) -> None:
    made = [candidate("baseline"), candidate("0001-a", 0.03, 0.5), candidate("0002-b", 0.02, 0.5)]
    miss = nearest_miss(made, question(candidate), "fake")
    assert miss is not None
    assert miss.id == "0002-b"
    assert miss.by == pytest.approx({"quality_drop<=0.01": 0.01})
    assert nearest_miss([*made, candidate("0003-c", 0.001)], question(candidate), "fake") is None


def test_where_everything_was_gated_the_baseline_is_the_nearest_miss(candidate: Make) -> None:
    asked = question(candidate, "size<=400B", "quality_drop<=0.01")
    miss = nearest_miss([candidate("baseline", size=1000)], asked, "fake")
    assert miss is not None
    assert (miss.id, miss.by) == ("baseline", {"size<=400B": 600.0})
    assert nearest_miss([candidate("baseline")], question(candidate), "fake") is None


@given(
    rows=st.lists(
        st.tuples(st.floats(-0.02, 0.02), st.floats(0.1, 1.2), st.sampled_from([None, 0.0, 0.009, 0.05])),
        min_size=1, max_size=8,
    ),
    which=st.sampled_from(rankings.PICKS),
)  # fmt: skip
def test_reading_ends_and_numbers_agree(candidate: Make, rows: list[Any], which: str) -> None:
    made = {f"{i:04d}-x": candidate(f"{i:04d}-x", d, r, test=t) for i, (d, r, t) in enumerate(rows)}
    asked = question(candidate)
    for _ in range(picks.MOST_READ + 1):
        pick, unread = picks.choose(which, list(made.values()), asked, "fake")
        if pick is None or unread is None:
            break
        before = unread.measured["fake"]
        splits = QualitySplits(before.quality.val, before.quality.val)
        drops = replace(before.quality_drop, test=Drop(0.05, 0.04, 0.06))
        made[unread.id] = unread.on("fake", replace(before, quality=splits, quality_drop=drops))
    assert unread is None
    if pick is not None:
        # One that was read for another pick may stand in for all three that were refuted.
        assert pick.read == min(picks.MOST_READ, len(pick.refuted) + 1)
        assert pick.id not in pick.refuted
        assert len(set(pick.refuted)) == len(pick.refuted)


def test_past_the_front_what_it_dominated_is_read_but_not_the_refuted_network_in_another_precision(
    candidate: Make,
) -> None:
    best = replace(candidate("0001-fp32", 0.001, 0.3), trial=1)
    sibling = replace(candidate("0001-int8", 0.002, 0.35), trial=1)
    other = replace(candidate("0002-fp32", 0.003, 0.5), trial=2)
    order = picks.reading_order("fastest", [best, sibling, other], question(candidate), "fake")
    assert [one.id for one in order] == ["0001-fp32", "0002-fp32"]


def test_of_networks_of_one_shape_one_is_read_before_others_are(candidate: Make) -> None:
    def made(name: str, drop: float, ratio: float, width: int) -> Candidate:
        one = candidate(name, drop, ratio)
        return replace(one, config={**one.config, "widths": {"conv": width}})

    narrow = [
        made("0001-fp32", 0.003, 0.30, 16),
        made("0002-fp32", 0.002, 0.31, 16),
        made("0003-fp32", 0.001, 0.32, 16),
    ]
    wide = [made("0004-fp32", 0.0, 0.50, 32), made("0005-fp32", 0.004, 0.60, 48)]
    order = [one.id for one in picks.reading_order("fastest", [*narrow, *wide], question(candidate), "fake")]
    assert len(order) == picks.MOST_READ
    assert len({name for name in order if name in {one.id for one in narrow}}) == 1
    assert order[1:] == ["0004-fp32", "0005-fp32"]
    alone = picks.reading_order("fastest", narrow, question(candidate), "fake")
    assert len(alone) == len(narrow), "nothing else is left to read"


def _shaped(one: Candidate, width: int) -> Candidate:
    return replace(one, config={**one.config, "widths": {"a": width}})


def test_what_is_unlikely_to_hold_on_test_is_the_fastest_only_where_nothing_else_is_left(candidate: Make) -> None:
    lucky = _shaped(candidate("0001-fp32", 0.009, 0.3), 16)
    sure = _shaped(candidate("0002-fp32", 0.004, 0.5), 32)
    asked = question(candidate, certainties={"0001-fp32": 0.4, "0002-fp32": 0.9})
    order = picks.reading_order("fastest", [lucky, sure], asked, "fake")
    assert [one.id for one in order] == ["0002-fp32", "0001-fp32"]
    pick, _ = picks.choose("fastest", [lucky, sure], asked, "fake")
    assert pick is not None
    assert pick.certainty == 0.9
    blind = question(candidate)
    assert next(one.id for one in picks.reading_order("fastest", [lucky, sure], blind, "fake")) == "0001-fp32"


@pytest.mark.parametrize(
    ("which", "test", "expected"),
    [("fastest", 0.006, "0001-fp32"), ("smallest", 0.006, "0001-fp32"), ("fastest", 0.05, "0002-fp32")],
)
def test_what_was_read_for_another_pick_and_holds_counts_for_this_one(
    candidate: Make, which: str, test: float, expected: str
) -> None:
    """A candidate that nobody expected to hold was read as the knee: the fastest is not a slower one beside it."""
    doubted = replace(_shaped(candidate("0001-fp32", 0.0, 0.26, test=test), 16), size=100)
    sure = replace(_shaped(candidate("0002-fp32", 0.006, 0.3, test=0.006), 32), size=120)
    unread = replace(_shaped(candidate("0003-fp32", 0.002, 0.2), 8), size=80)
    asked = question(candidate, certainties={"0001-fp32": 0.4, "0002-fp32": 0.84, "0003-fp32": 0.1})
    first = picks.reading_order(which, [doubted, sure, unread], asked, "fake")[0]
    if which == "fastest":
        assert first.id == "0002-fp32"
    pick, to_read = picks.choose(which, [doubted, sure, *([unread] if which == "fastest" else [])], asked, "fake")
    assert to_read is None
    assert pick is not None
    assert pick.id == expected


@pytest.mark.parametrize("which", ["fastest", "knee", "smallest"])
def test_where_all_that_may_be_read_are_refuted_another_pick_that_holds_stands_in(candidate: Make, which: str) -> None:
    refuted = [
        replace(_shaped(candidate(f"000{i}-fp32", 0.001 * i, 0.1 * i, test=0.05), i), size=10 * i) for i in (1, 2, 3)
    ]
    holds = replace(_shaped(candidate("0009-fp32", 0.004, 0.9, test=0.004), 9), size=90)
    zero = candidate("baseline", test=0.0)
    pick, unread = picks.choose(which, [zero, *refuted, holds], question(candidate), "fake")
    assert pick is not None
    assert unread is None
    assert (pick.id, pick.verdict, set(pick.refuted)) == ("0009-fp32", "confirmed", {one.id for one in refuted})
    alone, _ = picks.choose(which, [zero, *refuted], question(candidate), "fake")
    assert alone is not None
    assert (alone.verdict, alone.read) == ("refuted", 3), "the baseline is not what stands in"


def test_of_trainings_of_one_network_the_more_certain_is_read_first(candidate: Make) -> None:
    short, long = (_shaped(candidate(name, 0.004, 0.3), 16) for name in ("0001-fp32", "0002-fp32"))
    asked = question(candidate, certainties={"0001-fp32": 0.75, "0002-fp32": 0.95})
    assert picks.reading_order("fastest", [short, long], asked, "fake")[0].id == "0002-fp32"
    assert picks.reading_order("smallest", [short, long], asked, "fake")[0].id == "0001-fp32"


def test_what_was_dominated_by_a_refuted_candidate_is_next_in_line(candidate: Make) -> None:
    first = _shaped(candidate("0001-fp32", 0.002, 0.2, test=0.05), 16)
    behind = _shaped(candidate("0002-fp32", 0.005, 0.3), 32)
    slow = _shaped(candidate("0003-fp32", 0.001, 0.8), 48)
    pick, unread = picks.choose("fastest", [first, behind, slow], question(candidate), "fake")
    assert pick is not None
    assert (pick.id, pick.refuted) == ("0002-fp32", ("0001-fp32",))
    assert unread is not None
    assert unread.id == "0002-fp32"


def test_the_fastest_of_a_search_for_memory_is_that_which_is_timed_fastest(candidate: Make) -> None:
    """A front in quality and memory may leave the fastest out; memory stands for speed only where nothing else does."""
    small = _with_memory(candidate("0001-int8", drop=0.001, ratio=0.9), 100)
    fast = _with_memory(candidate("0002-int8", drop=0.002, ratio=0.3), 500)
    zero = _with_memory(candidate("baseline"), 1000)
    asked = question(candidate, objectives=("quality", "memory"), baseline=zero)
    pick, _ = picks.choose("fastest", [zero, small, fast], asked, "fake")
    assert pick is not None
    assert pick.id == "0002-int8"
    untimed = [_untimed(one) for one in (zero, small, fast)]
    pick, _ = picks.choose("fastest", untimed, replace(asked, baseline=untimed[0]), "fake")
    assert pick is not None
    assert pick.id == "0001-int8"


def _with_memory(candidate: Candidate, memory: int) -> Candidate:
    return candidate.on("fake", replace(candidate.measured["fake"], memory=memory))


def _untimed(candidate: Candidate) -> Candidate:
    return candidate.on("fake", replace(candidate.measured["fake"], latency=None))

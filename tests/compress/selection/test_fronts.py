"""The front against brute force, the picks against their definition, verdicts against the limits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compress.metrics.intervals import tango, wilson
from compress.selection.costs import costs_of
from compress.selection.fronts import dominates, front, front_hypervolume
from compress.selection.nearest_misses import nearest_miss
from compress.selection.questions import Question
from compress.selection.rankings import PICKS, ranked, tied_with
from compress.selection.verdicts import Verdict, judge
from compress.values.candidates import (
    Candidate,
    Drop,
    DropSplits,
    LatencyResult,
    Measured,
    NearestMiss,
    Parity,
    Quality,
    QualitySplits,
)
from compress.values.constraints import parse_constraint
from targets.errors import RequestError

TARGET = "fake"
OBJECTIVES = ("quality", "latency", "size")


def make(
    name: str,
    quality: float,
    ratio: float | None,
    size: int = 1000,
    *,
    noise: float = 0.0,
    feasible: bool = True,
    memory: int | None = None,
    instructions: int | None = None,
    cycles: int | None = None,
) -> Candidate:
    """A candidate on TARGET; the baseline's quality is 0.9; ``noise``: half-width of the ratio's interval.

    Unless ``memory`` is given, it is 1 byte of a feasible candidate and 2 of another: ``ask`` allows 1.
    """
    latency = None if ratio is None else LatencyResult(ratio, ratio, ratio, ratio - noise, ratio + noise, 10)
    drop = 0.9 - quality
    memory = memory if memory is not None else 1 if feasible else 2
    measured = Measured(
        QualitySplits(Quality("accuracy", quality, quality - 0.01, quality + 0.01, 1000)),
        DropSplits(Drop(drop, drop - 0.004, drop + 0.004)),
        latency,
        memory,
        instructions,
        cycles=cycles,
    )
    return Candidate(name, None, {}, size, 10, 10, Parity(0.0, 1.0), {TARGET: measured})


BASELINE = make("baseline", 0.9, 1.0)


def ask(
    *constraints: str, baseline: Candidate = BASELINE, objectives: tuple[str, ...] = OBJECTIVES, higher: bool = True,
    bounded: bool = True,
) -> Question:  # fmt: skip
    """A question; without constraints, candidates are feasible as ``make`` was told."""
    asked = tuple(parse_constraint(text) for text in constraints or ("memory<=1B",))
    return Question(baseline, objectives, asked, higher, bounded, {})


@st.composite
def candidate_sets(draw: st.DrawFn, least: int = 0) -> list[Candidate]:
    """Candidates on a coarse grid of values, so that ties, duplicates and dominance all happen; some infeasible."""
    rows = draw(
        st.lists(
            st.tuples(st.integers(80, 92), st.integers(1, 12), st.integers(1, 10), st.booleans(), st.integers(0, 3)),
            min_size=least,
            max_size=12,
        )
    )
    return [
        make(f"c{i:02}", quality / 100, speed / 10, size * 100, feasible=feasible or i < least, noise=noise / 50)
        for i, (quality, speed, size, feasible, noise) in enumerate(rows)
    ]


def ids(candidates: list[Candidate]) -> list[str]:
    return [candidate.id for candidate in candidates]


vectors = st.lists(st.tuples(*[st.integers(0, 3).map(float)] * 3), min_size=3, max_size=3)


@settings(deadline=None)
@given(vectors)
def test_dominance_is_a_strict_order(points: list[tuple[float, ...]]) -> None:
    a, b, c = points
    assert not dominates(a, a)
    assert not (dominates(a, b) and dominates(b, a))
    if dominates(a, b) and dominates(b, c):
        assert dominates(a, c)
    assert dominates(a, b) == (a != b and all(x <= y for x, y in zip(a, b, strict=True)))


def test_costs_are_minimised_and_relative() -> None:
    zero = make("baseline", 0.9, 1.0, 1000, memory=4000, instructions=80)
    candidate = make("c", 0.88, 0.5, 250, memory=1000, instructions=20)
    names = ("quality", "latency", "size", "memory", "instructions")
    assert costs_of(candidate, zero, TARGET, names) == pytest.approx((-0.88, 0.5, 0.25, 0.25, 0.25))
    assert costs_of(candidate, zero, TARGET, names, higher_is_better=False)[0] == 0.88


def test_counted_cost_stands_in_for_latency() -> None:
    zero, candidate = make("b", 0.9, None, instructions=80), make("c", 0.9, None, instructions=20)
    assert costs_of(candidate, zero, TARGET, ("latency", "instructions")) == (0.25, 0.25)


def test_what_is_not_measured_costs_infinitely_much() -> None:
    nothing = BASELINE.on(TARGET, replace(BASELINE.measured[TARGET], memory=None))
    assert costs_of(nothing, nothing, TARGET, ("memory", "instructions")) == (math.inf, math.inf)


def test_a_baseline_without_memory_of_its_own_is_no_division_by_zero() -> None:
    zero, candidate = make("b", 0.9, 1.0, memory=0), make("c", 0.9, 1.0, memory=50)
    assert costs_of(zero, zero, TARGET, ("memory",)) == (0.0,)
    assert costs_of(candidate, zero, TARGET, ("memory",)) == (50.0,)


@settings(deadline=None)
@given(candidate_sets(), st.booleans())
def test_front_is_what_brute_force_finds(candidates: list[Candidate], higher: bool) -> None:
    sign = -1 if higher else 1
    rows = {
        c.id: (sign * c.measured[TARGET].quality.val.value, c.measured[TARGET].latency.ratio, c.size)  # type: ignore[union-attr]
        for c in candidates
        if c.measured[TARGET].memory == 1
    }
    expected = {
        name
        for name, own in rows.items()
        if not any(other != own and all(x <= y for x, y in zip(other, own, strict=True)) for other in rows.values())
    }
    found = front(candidates, ask(higher=higher), TARGET)
    assert set(ids(found)) == expected
    assert len(found) == len(expected)
    losses = [sign * c.measured[TARGET].quality.val.value for c in found]
    assert losses == sorted(losses)


@settings(deadline=None)
@given(candidate_sets(), st.randoms(use_true_random=False))
def test_front_does_not_depend_on_the_order(candidates: list[Candidate], random: Any) -> None:
    shuffled = list(candidates)
    random.shuffle(shuffled)
    expected = front(candidates, ask(), TARGET)
    assert front(shuffled, ask(), TARGET) == expected
    assert front(expected, ask(), TARGET) == expected
    for which in PICKS:
        assert ranked(which, shuffled, TARGET) == ranked(which, candidates, TARGET)


def test_equal_candidates_both_stay_and_the_baseline_stands_among_them() -> None:
    twin = make("twin", 0.9, 1.0)
    assert ids(front([twin, BASELINE], ask(), TARGET)) == ["baseline", "twin"]


def test_front_leaves_out_what_is_not_measured_there() -> None:
    elsewhere = replace(make("other", 0.99, 0.1), measured={"board": BASELINE.measured[TARGET]})
    assert ids(front([BASELINE, elsewhere], ask(), TARGET)) == ["baseline"]


def test_an_infeasible_candidate_neither_stands_on_the_front_nor_dominates() -> None:
    cheat = make("cheat", 0.95, 0.1, 10, feasible=False)
    assert ids(front([BASELINE, cheat], ask(), TARGET)) == ["baseline"]


def test_hypervolume_of_the_baseline_alone() -> None:
    asked = ask(objectives=("quality", "latency"))
    assert front_hypervolume([BASELINE], asked, TARGET) == pytest.approx(0.1 * 0.1)
    assert front_hypervolume([], asked, TARGET) == 0.0


def test_hypervolume_of_a_better_candidate() -> None:
    small = make("small", 0.85, 0.4, 500)
    found = front_hypervolume([BASELINE, small], ask(objectives=("quality", "latency")), TARGET)
    assert found == pytest.approx(0.05 * 0.7 + 0.05 * 0.1)


def test_hypervolume_of_an_unbounded_metric_takes_ten_percent() -> None:
    zero = make("baseline", 5.0, 1.0)
    asked = ask(baseline=zero, objectives=("quality", "size"), higher=False, bounded=False)
    assert front_hypervolume([zero], asked, TARGET) == pytest.approx(0.5 * 0.1)


@settings(deadline=None)
@given(candidate_sets(), candidate_sets())
def test_hypervolume_never_falls_as_candidates_come(some: list[Candidate], more: list[Candidate]) -> None:
    def volume(candidates: list[Candidate]) -> float:
        return front_hypervolume(candidates, ask(), TARGET)

    assert volume([*some, *more]) >= volume(some) - 1e-12


@settings(deadline=None)
@given(candidate_sets(least=1), st.sampled_from(PICKS), st.booleans())
def test_a_ranking_is_the_whole_front_in_some_order(candidates: list[Candidate], which: str, higher: bool) -> None:
    whole = front(candidates, ask(higher=higher), TARGET)
    assert sorted(ids(ranked(which, whole, TARGET, higher_is_better=higher))) == sorted(ids(whole))


@settings(deadline=None)
@given(candidate_sets(least=1))
def test_the_next_in_line_is_the_pick_of_the_rest(candidates: list[Candidate]) -> None:
    for which in ("fastest", "smallest", "most_accurate"):
        order = ranked(which, candidates, TARGET)
        assert ranked(which, order[1:], TARGET) == order[1:]


@settings(deadline=None)
@given(candidate_sets(least=1))
def test_picks_are_the_best_at_what_they_are_for(candidates: list[Candidate]) -> None:
    assert ranked("smallest", candidates, TARGET)[0].size == min(c.size for c in candidates)
    best = max(c.measured[TARGET].quality.val.value for c in candidates)
    assert ranked("most_accurate", candidates, TARGET)[0].measured[TARGET].quality.val.value == best
    pick = ranked("fastest", candidates, TARGET)[0]
    quickest = min(candidates, key=lambda c: (c.measured[TARGET].latency.ratio, c.size, c.id))  # type: ignore[union-attr]
    assert pick is quickest or pick.id in tied_with(quickest, candidates, TARGET)


def test_fastest_takes_the_simpler_of_those_tied() -> None:
    quick, small, slow = make("quick", 0.9, 0.500, 900), make("small", 0.89, 0.514, 300), make("slow", 0.9, 0.6, 100)
    assert ids(ranked("fastest", [quick, small, slow], TARGET)) == ["small", "quick", "slow"]
    assert tied_with(small, [quick, small, slow], TARGET) == ("quick",)


def test_fastest_takes_the_better_of_those_equally_simple() -> None:
    worse, better = make("worse", 0.88, 0.50, 1000), make("better", 0.90, 0.51, 1010)
    assert ids(ranked("fastest", [worse, better], TARGET)) == ["better", "worse"]


def test_noise_ties_latencies() -> None:
    quick, small = make("quick", 0.9, 0.50, 900), make("small", 0.9, 0.58, 300)
    assert ids(ranked("fastest", [quick, small], TARGET)) == ["quick", "small"]
    quick, small = make("quick", 0.9, 0.50, 900, noise=0.05), make("small", 0.9, 0.58, 300, noise=0.04)
    assert ids(ranked("fastest", [quick, small], TARGET)) == ["small", "quick"]


@pytest.mark.parametrize("count", ["instructions", "cycles"])
def test_fewest_of_what_is_counted(count: str) -> None:
    def counted(name: str, size: int, number: int) -> Candidate:
        made: dict[str, Any] = {count: number}
        return make(name, 0.9, None, size, **made)

    few, more = counted("few", 900, 1_000_000), counted("more", 300, 1_010_000)
    assert ids(ranked("fastest", [more, few], TARGET)) == ["few", "more"]
    assert tied_with(few, [few, more], TARGET) == ()
    same = counted("same", 300, 1_000_100)
    assert costs_of(more, few, TARGET, (count,)) == (1.01,)
    # Instructions move a little with the input, a compiler's cycles do not.
    assert ids(ranked("fastest", [few, same], TARGET)) == (["few", "same"] if count == "cycles" else ["same", "few"])


def test_most_accurate_of_equal_quality_is_the_faster() -> None:
    slow, quick, poor = make("slow", 0.9, 1.0, 10), make("quick", 0.9, 0.6), make("poor", 0.8, 0.1)
    assert ids(ranked("most_accurate", [poor, slow, quick], TARGET)) == ["quick", "slow", "poor"]
    assert ids(ranked("most_accurate", [poor, slow, quick], TARGET, higher_is_better=False))[0] == "poor"


def test_smallest_of_equal_size_is_the_faster() -> None:
    slow, quick = make("slow", 0.9, 1.0, 10), make("quick", 0.9, 0.6, 10)
    assert ids(ranked("smallest", [slow, quick], TARGET)) == ["quick", "slow"]
    assert tied_with(quick, [slow, quick], TARGET, "smallest") == ("slow",)


def test_knee_is_furthest_below_the_chord() -> None:
    ends = [make("accurate", 0.90, 1.0), make("fast", 0.80, 0.2)]
    knee, other = make("knee", 0.89, 0.35), make("other", 0.84, 0.30)
    assert ids(ranked("knee", [*ends, other, knee], TARGET))[:2] == ["knee", "other"]


def test_knee_does_not_depend_on_units() -> None:
    values = [(0.90, 1.0), (0.88, 0.4), (0.85, 0.35), (0.80, 0.2)]
    plain = [make(f"c{i}", quality, ratio) for i, (quality, ratio) in enumerate(values)]
    scaled = [make(f"c{i}", 1000 * quality - 7, 50 * ratio) for i, (quality, ratio) in enumerate(values)]
    assert ids(ranked("knee", plain, TARGET)) == ids(ranked("knee", scaled, TARGET))


@pytest.mark.parametrize(
    "others",
    [[], [make("above", 0.82, 0.9)], [make("on", 0.85, 0.6)]],
    ids=["two candidates", "one above the chord", "one on the chord"],
)
def test_without_a_knee_it_is_the_faster_end(others: list[Candidate]) -> None:
    ends = [make("accurate", 0.90, 1.0), make("fast", 0.80, 0.2)]
    assert ids(ranked("knee", [*ends, *others], TARGET))[0] == "fast"


def test_knee_of_a_single_candidate() -> None:
    assert ids(ranked("knee", [BASELINE], TARGET)) == ["baseline"]
    assert [ranked(which, [], TARGET) for which in PICKS] == [[], [], [], []]


def test_ties_of_quality_go_by_the_paired_drop() -> None:
    # Their own intervals (± 0.01) overlap; those of the drops (± 0.004) do not.
    good, fair, near = make("good", 0.900, 1.0), make("fair", 0.885, 1.0), make("near", 0.897, 0.5)
    whole = [good, fair, near]
    assert tied_with(good, whole, TARGET, "most_accurate") == ("near",)
    assert tied_with(good, whole, TARGET, "knee") == ()
    assert tied_with(good, whole, TARGET, "fastest") == ("fair",)


@settings(deadline=None, max_examples=50)
@given(candidate_sets(least=2), st.sampled_from(PICKS))
def test_being_tied_is_mutual(candidates: list[Candidate], which: str) -> None:
    a, b = candidates[:2]
    assert (b.id in tied_with(a, candidates, TARGET, which)) == (a.id in tied_with(b, candidates, TARGET, which))
    assert a.id not in tied_with(a, candidates, TARGET, which)


def test_an_unknown_pick_is_refused() -> None:
    with pytest.raises(RequestError, match=r"'best'; use one of fastest, knee"):
        ranked("best", [BASELINE], TARGET)


def test_what_does_not_run_itself_is_no_choice_and_no_miss() -> None:
    def standing_in(one: Candidate) -> Candidate:
        return one.on(TARGET, replace(one.measured[TARGET], stand_in=True))

    zero, int8 = standing_in(make("baseline", 0.9, 1.0)), make("int8", 0.89, 1.0)
    asked = ask("quality_drop<=0.05", baseline=zero)
    assert ids(front([zero, int8], asked, TARGET)) == ["int8"]
    assert nearest_miss([zero], asked, TARGET) is None


def test_nearest_miss_by_the_worst_violation() -> None:
    asked = ask("quality_drop<=0.01", "size<=500B")
    # Twice the drop allowed; then 60 % too large and otherwise fine; then hardly worse in both.
    candidates = [BASELINE, make("a", 0.87, 1.0, 400), make("b", 0.9, 1.0, 800), make("c", 0.885, 1.0, 700)]
    found = nearest_miss(candidates, asked, TARGET)
    assert found is not None
    assert found.id == "c"
    assert found.by == pytest.approx({"quality_drop<=0.01": 0.005, "size<=500B": 200.0})
    found = nearest_miss(candidates[:3], asked, TARGET)
    assert found == NearestMiss("b", {"size<=500B": 300.0})


def test_nearest_miss_is_neither_the_baseline_nor_unknown_and_there_is_none_where_one_is_feasible() -> None:
    fine = make("fine", 0.9, 1.0, 400, memory=500)
    unmeasured = make("unknown", 0.9, 1.0, 501)
    unknown = unmeasured.on(TARGET, replace(unmeasured.measured[TARGET], memory=None))
    zero, miss = make("baseline", 0.9, 1.0, memory=1500), make("miss", 0.9, 1.0, 2000, memory=1500)
    asked = ask("size<=500B", "memory<=1kB", baseline=zero)
    assert nearest_miss([zero, unknown], asked, TARGET) is None
    assert nearest_miss([zero, unknown, miss], asked, TARGET) == NearestMiss(
        "miss", {"size<=500B": 1500.0, "memory<=1kB": 500.0}
    )
    assert nearest_miss([zero, unknown, miss, fine], asked, TARGET) is None


LIMIT = (parse_constraint("quality_drop<=0.01"),)


def drop_of(lost: int, gained: int, n: int) -> Drop:
    return Drop((lost - gained) / n, *tango(lost, gained, n))


@st.composite
def paired_counts(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(50, 3000))
    return draw(st.integers(0, n // 20)), draw(st.integers(0, n // 20)), n


@settings(deadline=None)
@given(paired_counts())
def test_verdicts_go_by_the_value_and_the_whole_interval(counts: tuple[int, int, int]) -> None:
    drop = drop_of(*counts)
    assume(abs(drop.value - 0.01) > 1e-6)
    found = judge(drop, None, LIMIT, counts)
    if drop.value > 0.01:
        assert found == Verdict("refuted")
    elif drop.high <= 0.01:
        assert found == Verdict("confirmed")
    else:
        assert found.verdict == "open"
        assert found.needed is not None
        assert found.needed > counts[2]


def test_three_hundred_examples_cannot_confirm_one_percent() -> None:
    assert judge(drop_of(0, 0, 300), None, LIMIT, (0, 0, 300)) == Verdict("open", 381)
    assert judge(drop_of(0, 0, 381), None, LIMIT, (0, 0, 381)) == Verdict("confirmed")


def test_a_drop_at_the_limit_stays_open_for_good() -> None:
    assert judge(drop_of(3, 0, 300), None, LIMIT, (3, 0, 300)) == Verdict("open", None)


def test_without_a_test_split_it_is_open() -> None:
    assert judge(None, None, LIMIT) == Verdict("open")
    assert judge(None, None, ()) == Verdict("open")


def test_where_nothing_limits_quality_there_is_nothing_to_refute() -> None:
    assert judge(drop_of(90, 0, 100), None, (parse_constraint("size<=1kB"),)) == Verdict("confirmed")


def quality_of(right: int, n: int) -> Quality:
    return Quality("accuracy", right / n, *wilson(right, n), n)


@pytest.mark.parametrize(("right", "verdict"), [(99, "confirmed"), (93, "open"), (89, "refuted")])
def test_a_limit_on_quality_itself(right: int, verdict: str) -> None:
    limits = (parse_constraint("quality>=0.9"),)
    found = judge(Drop(0.0, 0.0, 0.0), quality_of(right, 100), limits, (0, 0, 100))
    assert found.verdict == verdict
    if verdict == "open":
        assert found.needed is not None
        low = [wilson(93 * k, 100 * k)[0] for k in (found.needed // 200, found.needed // 50)]
        assert low[0] < 0.9 <= low[1]


def test_the_worst_verdict_wins_and_the_larger_number_is_needed() -> None:
    limits = (*LIMIT, parse_constraint("quality>=0.9"))
    counts = (0, 0, 300)
    assert judge(drop_of(*counts), quality_of(260, 300), limits, counts).verdict == "refuted"
    assert judge(drop_of(*counts), quality_of(300, 300), limits, counts) == Verdict("open", 381)
    both = judge(drop_of(*counts), quality_of(273, 300), limits, counts)
    assert both.verdict == "open"
    assert both.needed is not None
    assert both.needed > 381


def test_a_bootstrapped_interval_narrows_with_the_root_of_n() -> None:
    limits = (parse_constraint("quality_drop<=0.5"),)
    quality = Quality("mse", 3.0, 2.5, 3.5, 100)
    # The upper end is 0.4 away, the limit 0.2: four times the examples.
    assert judge(Drop(0.3, -0.1, 0.7), quality, limits) == Verdict("open", 400)
    assert judge(Drop(0.3, 0.2, 0.4), quality, limits) == Verdict("confirmed")
    assert judge(Drop(0.6, 0.2, 0.9), quality, limits) == Verdict("refuted")


def test_at_least_mirrors_at_most() -> None:
    least = (parse_constraint("quality_drop>=-0.01"),)
    for lost, gained in ((0, 0), (2, 1), (9, 1), (1, 9)):
        most = judge(drop_of(lost, gained, 300), None, LIMIT, (lost, gained, 300))
        assert judge(drop_of(gained, lost, 300), None, least, (gained, lost, 300)) == most

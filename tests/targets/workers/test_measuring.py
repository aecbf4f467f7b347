"""The loop and its statistics, driven by a fake clock: no test here takes time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets import intervals
from targets.target import Protocol, Samples
from targets.workers import measuring
from targets.workers.runtime import Block

POSITIVE = st.floats(1e-6, 1e3)
RATIOS = st.lists(st.floats(0.1, 10), min_size=1, max_size=60)


class FakeClock:
    """Time passes only when a model runs; ``away`` is what somebody else takes of it."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0

    def now(self) -> int:
        return self.wall

    def ran(self) -> int:
        return self.cpu

    def model(self, nanoseconds: Callable[[], float], away: Callable[[], float] = lambda: 0.0) -> Callable[[], None]:
        def run() -> None:
            own, other = round(nanoseconds()), round(away())
            self.cpu += own
            self.wall += own + other

        return run


PROTOCOL = Protocol(width=0.02, seconds=4.0, rounds=10, block=0.001, warmup=0.01)


def test_the_ratio_of_steady_models_is_exact():
    clock = FakeClock()
    calls = [clock.model(lambda: 100_000), clock.model(lambda: 25_000)]
    reference, other = (measuring.latency([one]) for one in measuring.take_samples(calls, PROTOCOL, clock))
    assert (reference.ratio, reference.low, reference.high) == (1.0, 1.0, 1.0)
    assert (other.ratio, other.low, other.high) == (0.25, 0.25, 0.25)
    assert other.p50 == other.p95 == pytest.approx(25e-6)
    assert other.load == 0.0


def test_it_stops_after_the_fewest_rounds_when_settled():
    clock = FakeClock()
    calls = [clock.model(lambda: 100_000), clock.model(lambda: 50_000)]
    taken = measuring.take_samples(calls, PROTOCOL, clock)
    assert [len(one.blocks) for one in taken] == [10, 10]


def test_every_model_is_warmed_up():
    clock, runs = FakeClock(), [0, 0]

    def counting(index: int) -> Callable[[], None]:
        run = clock.model(lambda: 1_000_000)

        def call() -> None:
            runs[index] += 1
            run()

        return call

    taken = measuring.take_samples([counting(0), counting(1)], PROTOCOL, clock)
    for index in (0, 1):
        assert runs[index] - taken[index].count >= PROTOCOL.warmup / 1e-3


def test_it_goes_on_until_the_time_is_spent_when_it_does_not_settle():
    clock, draw = FakeClock(), random.Random(0)
    calls = [clock.model(lambda: 100_000), clock.model(lambda: draw.uniform(10_000, 900_000))]
    protocol = replace(PROTOCOL, width=1e-9, seconds=0.2)
    taken = measuring.take_samples(calls, protocol, clock)
    assert len(taken[1].blocks) > 10
    assert clock.wall / 1e9 == pytest.approx(0.2 + 2 * 0.01, abs=0.01)
    assert measuring.paired_ratio([taken[1]]).half_width > 1e-9


def test_a_slow_model_is_not_run_for_ever():
    clock = FakeClock()
    taken = measuring.take_samples([clock.model(lambda: 3e9)] * 2, PROTOCOL, clock)
    assert clock.wall / 1e9 <= 30
    assert len(taken[0].blocks) == 3


def test_outliers_do_not_move_the_ratio():
    clock, draw = FakeClock(), random.Random(1)

    def spiky(base: float) -> Callable[[], float]:
        return lambda: base * (20 if draw.random() < 0.2 else draw.uniform(1.0, 1.01))

    calls = [clock.model(spiky(100_000)), clock.model(spiky(50_000))]
    found = measuring.latency([measuring.take_samples(calls, PROTOCOL, clock)[1]])
    assert found.ratio == pytest.approx(0.5, rel=0.02)
    assert found.p95 > 5 * found.p50


def test_contaminated_rounds_are_made_up_for_and_left_out():
    clock, draw = FakeClock(), random.Random(2)
    taken_away = {"now": False}
    moves = []

    def away() -> float:
        return 900_000 if taken_away["now"] else 0

    def disturbed() -> None:
        moves.append(1)

    def report(_: str) -> None:
        taken_away["now"] = draw.random() < 0.2

    calls = [clock.model(lambda: 100_000, away), clock.model(lambda: 50_000, away)]
    taken = measuring.take_samples(calls, PROTOCOL, clock, report=report, disturbed=disturbed)
    contaminated = sum(share < measuring.CLEAN for share in taken[1].cpu)
    assert contaminated == len(moves) > 0
    assert len(taken[1].blocks) - contaminated >= PROTOCOL.rounds
    found = measuring.latency([taken[1]])
    assert (found.ratio, found.low, found.high) == (0.5, 0.5, 0.5)
    assert found.p50 == pytest.approx(50e-6)


def test_a_machine_that_is_always_busy_still_gives_a_number_and_says_so():
    clock = FakeClock()
    calls = [clock.model(lambda: 100_000, lambda: 100_000), clock.model(lambda: 50_000, lambda: 50_000)]
    taken = measuring.take_samples(calls, PROTOCOL, clock)
    assert len(taken[1].blocks) == 3 * PROTOCOL.rounds
    found = measuring.latency([taken[1]])
    assert found.ratio == 0.5
    assert found.load == pytest.approx(0.5)


def test_runs_are_thinned_but_counted():
    clock = FakeClock()
    (taken,) = measuring.take_samples([clock.model(lambda: 1_000)], PROTOCOL, clock)
    assert taken.count == 10_000
    assert 150 <= len(taken.runs) <= measuring.KEPT_RUNS


def test_blocks_that_are_timed_elsewhere_count_by_what_they_say():
    """The way there takes longer than the runs; a coarse clock gives fewer values than runs, and the loop goes on."""
    clock = FakeClock()

    def block(seconds: float, runs_each: int) -> Block:
        def run(runs: int) -> list[float]:
            clock.model(lambda: 1_000_000 + runs * seconds * 1e9)()
            return [seconds] * max(1, runs // runs_each)

        return Block(run)

    taken = measuring.take_samples([block(100e-6, 1), block(25e-6, 20)], PROTOCOL, clock)
    reference, other = (measuring.latency([one]) for one in taken)
    assert (other.ratio, other.low, other.high) == (0.25, 0.25, 0.25)
    assert (reference.p50, other.p50) == (pytest.approx(100e-6), pytest.approx(25e-6))
    assert [one.count for one in taken] == [100, 20]


def samples_of(ratios: list[float], cpu: tuple[float, ...] = (), scale: float = 1.0) -> Samples:
    blocks = tuple(scale * one for one in ratios)
    return Samples(blocks, (scale,) * len(ratios), blocks, len(blocks), cpu)


@given(st.lists(RATIOS, min_size=1, max_size=8))
def test_an_interval_contains_its_value(groups):
    found = intervals.pooled_interval(groups)
    assert found.low <= found.value * (1 + 1e-12)
    assert found.value <= found.high * (1 + 1e-12)


@given(st.lists(RATIOS, min_size=1, max_size=5), POSITIVE)
def test_the_ratio_does_not_depend_on_the_unit_of_time(groups, scale):
    plain = measuring.latency([samples_of(group) for group in groups])
    scaled = measuring.latency([samples_of(group, scale=scale) for group in groups])
    for name in ("ratio", "low", "high"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name), rel=1e-9)
    assert scaled.p50 == pytest.approx(plain.p50 * scale, rel=1e-9)
    assert scaled.p95 == pytest.approx(plain.p95 * scale, rel=1e-9)


@given(
    st.lists(st.floats(1.0, 1.09), min_size=5, max_size=40),
    st.lists(st.tuples(st.floats(1.25, 99), st.sampled_from([0.3, 1.0])), max_size=20),
    st.randoms(),
)
def test_rounds_that_were_held_up_or_slowed_do_not_count(clean, dirty, shuffler):
    rounds = [(one, 1.0) for one in clean] + dirty
    shuffler.shuffle(rounds)
    taken = samples_of([one for one, _ in rounds], tuple(share for _, share in rounds))
    found, alone = measuring.paired_ratio([taken]), measuring.paired_ratio([samples_of(clean)])
    assert (found.value, found.low, found.high) == (alone.value, alone.low, alone.high)
    assert sum(measuring.clean_rounds(taken)) == len(clean)


def test_a_slowed_core_does_not_turn_a_ratio():
    """A busy neighbour on the same core slows int8 by 55 % and float by 27 %, which CPU time does not show."""
    quiet = Samples((154.0,) * 8, (191.0,) * 8, (154.0,), 8)
    half = Samples((154.0,) * 5 + (240.0,) * 9, (191.0,) * 5 + (243.0,) * 9, (154.0,), 14)
    slowed = Samples((240.0,) * 8, (243.0,) * 8, (240.0,), 8)
    found = measuring.paired_ratio([quiet, half, slowed, quiet, slowed])
    assert (found.value, found.low, found.high) == pytest.approx((154 / 191,) * 3)
    assert measuring.undisturbed([quiet, slowed, quiet, half]) == [quiet, quiet, half]


def test_too_few_processes_are_not_thinned_out():
    """Two that agree are no majority over one that does not."""
    quiet = Samples((154.0,) * 8, (191.0,) * 8, (154.0,), 8)
    slowed = Samples((240.0,) * 8, (243.0,) * 8, (240.0,), 8)
    assert measuring.undisturbed([quiet, slowed]) == [quiet, slowed]
    assert measuring.undisturbed([quiet, quiet, slowed]) == [quiet, quiet, slowed]


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=6))
def test_processes_that_agree_give_what_one_gives_at_most_as_wide_as_their_spread(medians):
    found = intervals.pooled_interval([[one] * 10 for one in medians])
    assert min(medians) * (1 - 1e-9) <= found.value <= max(medians) * (1 + 1e-9)
    # Student's interval covers the mean of what the processes say.
    mean = math.exp(sum(map(math.log, medians)) / len(medians))
    assert found.low * (1 - 1e-9) <= mean <= found.high * (1 + 1e-9)


def test_order_statistics_agree_with_the_binomial_distribution():
    scipy_stats = pytest.importorskip("scipy.stats")
    for n in (6, 9, 10, 17, 25, 60, 200):
        depth = intervals.order_depth(n)
        assert scipy_stats.binom.cdf(depth - 1, n, 0.5) <= 0.025 < scipy_stats.binom.cdf(depth, n, 0.5)
    assert abs(intervals.order_depth(1000) - (scipy_stats.binom.ppf(0.025, 1000, 0.5))) <= 1


def test_student_agrees_with_scipy():
    scipy_stats = pytest.importorskip("scipy.stats")
    for degrees in (1, 2, 4, 9, 20, 21, 40, 1000):
        assert intervals.student(degrees) == pytest.approx(scipy_stats.t.ppf(0.975, degrees), rel=2e-3)


@pytest.mark.parametrize("processes", [1, 5])
def test_intervals_cover_the_truth_about_as_often_as_they_say(processes):
    draw = random.Random(3)
    covered = 0
    for _ in range(400):
        groups = []
        for _ in range(processes):
            session = math.exp(draw.gauss(0, 0.02 if processes > 1 else 0.0))
            groups.append([session * math.exp(draw.gauss(0, 0.02)) for _ in range(15)])
        found = intervals.pooled_interval(groups)
        covered += found.low <= 1.0 <= found.high
    assert covered >= 0.92 * 400

"""Constraints: what parses, what it means, and when it is met."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.selection.feasibility import excesses, is_feasible, quantity, relative_quantity
from compress.values.candidates import (
    Candidate,
    Drop,
    DropSplits,
    LatencyResult,
    Measured,
    Parity,
    Quality,
    QualitySplits,
)
from compress.values.constraints import Constraint, parse_constraint, parse_objectives
from targets.errors import ConstraintError

TARGET = "fake"


def make(
    quality: float = 0.9,
    p50: float | None = 1e-3,
    ratio: float = 1.0,
    size: int = 1000,
    memory: int | None = 4000,
    instructions: int | None = None,
    cycles: int | None = None,
) -> Candidate:
    """A candidate on TARGET; the baseline's quality is 0.9."""
    latency = None if p50 is None else LatencyResult(p50, p50, ratio, ratio, ratio, 100)
    drop = 0.9 - quality
    measured = Measured(
        QualitySplits(Quality("accuracy", quality, quality, quality, 100)),
        DropSplits(Drop(drop, drop, drop)),
        latency,
        memory,
        instructions,
        cycles=cycles,
    )
    return Candidate("c", None, {}, size, 10, 10, Parity(0.0, 1.0), {TARGET: measured})


BASELINE = make()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("quality_drop<=0.01", Constraint("quality_drop", "<=", 0.01, False, "quality_drop<=0.01")),
        ("quality>=0.85", Constraint("quality", ">=", 0.85, False, "quality>=0.85")),
        ("quality_drop <= -1e-2", Constraint("quality_drop", "<=", -0.01, False, "quality_drop<=-1e-2")),
        ("latency<=2ms", Constraint("latency", "<=", 0.002, False, "latency<=2ms")),
        ("latency<=250us", Constraint("latency", "<=", 250e-6, False, "latency<=250us")),
        ("latency<=0.5x", Constraint("latency", "<=", 0.5, True, "latency<=0.5x")),
        ("size<=500kB", Constraint("size", "<=", 500_000.0, False, "size<=500kB")),
        ("size <= 1e3 kB", Constraint("size", "<=", 1e6, False, "size<=1e3kB")),
        ("memory<=2MB", Constraint("memory", "<=", 2e6, False, "memory<=2MB")),
        ("memory<=0.25x", Constraint("memory", "<=", 0.25, True, "memory<=0.25x")),
        ("size<=100B", Constraint("size", "<=", 100.0, False, "size<=100B")),
        ("instructions<=1e6", Constraint("instructions", "<=", 1e6, False, "instructions<=1e6")),
        ("cycles<=100k", Constraint("cycles", "<=", 1e5, False, "cycles<=100k")),
        ("cycles<=0.5x", Constraint("cycles", "<=", 0.5, True, "cycles<=0.5x")),
        ("instructions<=10M", Constraint("instructions", "<=", 1e7, False, "instructions<=10M")),
    ],
)
def test_constraints_parse(text: str, expected: Constraint) -> None:
    found = parse_constraint(text)
    assert found.limit == pytest.approx(expected.limit)
    assert (found.quantity, found.operator, found.relative, found.text) == (
        expected.quantity,
        expected.operator,
        expected.relative,
        expected.text,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not QUANTITY"),
        ("latency<2ms", "is not QUANTITY"),
        ("latency==2ms", "is not QUANTITY"),
        ("latency<=", "is not QUANTITY"),
        ("latency<=fastms", "is not QUANTITY"),
        ("latency<=nan", "is not QUANTITY"),
        ("speed<=2ms", "unknown quantity 'speed'; use one of quality, quality_drop, latency"),
        ("latency<=1.2.3ms", "'1.2.3' is not a number"),
        ("latency<=2", "no unit does not fit latency; use one of s, ms, us, x"),
        ("size<=500", "no unit does not fit size"),
        ("size<=500ms", "ms unit does not fit size"),
        ("quality_drop<=1%", "% unit does not fit quality_drop; it takes no unit"),
        ("quality<=0.9x", "x unit does not fit quality"),
    ],
)
def test_what_does_not_parse_says_what_would(text: str, message: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        parse_constraint(text)
    assert message in str(caught.value)
    assert repr(text) in str(caught.value)


@settings(deadline=None)
@given(st.floats(1e-6, 1e6), st.sampled_from(["kB", "MB", "B"]))
def test_numbers_survive_their_text(number: float, unit: str) -> None:
    factor = {"B": 1, "kB": 1e3, "MB": 1e6}[unit]
    found = parse_constraint(f"size<={number!r}{unit}")
    assert found.limit == pytest.approx(number * factor)
    assert parse_constraint(found.text) == found


def test_objectives_are_two_or_more_known_ones() -> None:
    assert parse_objectives(["quality", "latency"]) == ("quality", "latency")
    for bad in (["quality"], [], ["quality", "quality"], ["quality", "latency", "quality"]):
        with pytest.raises(ConstraintError, match="two or more different"):
            parse_objectives(bad)
    with pytest.raises(ConstraintError, match="unknown objective 'speed'"):
        parse_objectives(["quality", "speed"])
    with pytest.raises(ConstraintError, match="unknown objective 'quality_drop'"):
        parse_objectives(["latency", "quality_drop"])


def test_quantities_are_in_base_units() -> None:
    candidate = make(0.88, 5e-4, 0.45, 600, 3000, 7)
    found = [
        quantity(candidate, candidate.measured[TARGET], name)
        for name in ("quality", "quality_drop", "latency", "size", "memory", "instructions")
    ]
    assert found == pytest.approx([0.88, 0.02, 5e-4, 600, 3000, 7])


def test_relative_latency_is_the_paired_ratio() -> None:
    # Not 5e-4 / 1e-3: medians of separate runs.
    candidate = make(p50=5e-4, ratio=0.45)
    assert relative_quantity(candidate, candidate.measured[TARGET], "latency", 1e-3) == 0.45
    assert relative_quantity(candidate, candidate.measured[TARGET], "size", 4000.0) == 0.25
    assert relative_quantity(candidate, candidate.measured[TARGET], "instructions", 10.0) is None
    counted = make(p50=None, cycles=7)
    assert relative_quantity(counted, counted.measured[TARGET], "cycles", 10.0) == 0.7


@pytest.mark.parametrize(
    ("text", "candidate", "excess", "scaled"),
    [
        ("quality_drop<=0.01", make(quality=0.87), 0.02, 2.0),
        ("quality_drop<=0.01", make(quality=0.895), -0.005, -0.5),
        ("quality>=0.8", make(quality=0.7), 0.1, 0.125),
        ("latency<=1ms", make(p50=3e-3), 2e-3, 2.0),
        ("latency<=0.5x", make(ratio=0.75), 0.25, 0.5),
        ("size<=500B", make(size=750), 250.0, 0.5),
        ("size<=0.5x", make(size=750), 0.25, 0.5),
        ("memory<=0.5x", make(memory=1000), -0.25, -0.5),
        ("quality_drop<=0", make(quality=0.89), 0.01, 1.0),
        ("size>=500B", make(size=400), 100.0, 0.2),
    ],
)
def test_excesses(text: str, candidate: Candidate, excess: float, scaled: float) -> None:
    constraints = (parse_constraint(text),)
    assert excesses(candidate, BASELINE, TARGET, constraints, scaled=False) == {text: pytest.approx(excess)}
    assert excesses(candidate, BASELINE, TARGET, constraints, scaled=True) == {text: pytest.approx(scaled)}
    assert is_feasible(candidate, BASELINE, TARGET, constraints) == (excess <= 0)


def test_what_is_not_measured_is_not_met() -> None:
    candidate = make(p50=None, memory=None)
    constraints = tuple(map(parse_constraint, ("latency<=1ms", "memory<=0.5x", "instructions<=5")))
    found = excesses(candidate, BASELINE, TARGET, constraints, scaled=False)
    assert list(found) == ["latency<=1ms", "memory<=0.5x", "instructions<=5"]
    assert set(found.values()) == {math.inf}
    assert not is_feasible(candidate, BASELINE, TARGET, constraints[:1])


def test_rounding_is_forgiven_at_the_limit() -> None:
    # 0.9 - 0.89 is 0.010000000000000009.
    assert is_feasible(make(quality=0.89), BASELINE, TARGET, (parse_constraint("quality_drop<=0.01"),))
    assert not is_feasible(make(quality=0.8899), BASELINE, TARGET, (parse_constraint("quality_drop<=0.01"),))


def test_every_constraint_counts() -> None:
    loose, tight = parse_constraint("size<=2kB"), parse_constraint("size<=900B")
    assert is_feasible(BASELINE, BASELINE, TARGET, ())
    assert is_feasible(BASELINE, BASELINE, TARGET, (loose,))
    assert not is_feasible(BASELINE, BASELINE, TARGET, (loose, tight))

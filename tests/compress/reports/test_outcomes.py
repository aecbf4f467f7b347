"""The sentence at the top: it claims what the report holds and no more."""

from __future__ import annotations

from typing import Any

import pytest

import report_fixture as fixture
from compress.reports import outcomes, reading
from report_fixture import TARGET


def fastest(report: dict[str, Any]) -> dict[str, Any]:
    name = report["picks"][TARGET]["fastest"]["id"]
    return next(one for one in report["candidates"] if one["id"] == name)


def set_latency(report: dict[str, Any], ratio: float, low: float, high: float) -> None:
    fastest(report)["measured"][TARGET]["latency"].update(ratio=ratio, low=low, high=high)


def test_an_open_pick_says_what_would_settle_it() -> None:
    report = fixture.report()
    set_latency(report, 0.37, 0.36, 0.38)
    name = fastest(report)["id"]
    assert outcomes.outcome(report, TARGET) == (
        f"`{name}` runs in 0.37x of the baseline's time (0.36\N{EN DASH}0.38), accuracy changes by "
        "\N{MINUS SIGN}0.3 points on test (n = 300): open, about 900 test examples would settle it."
    )


@pytest.mark.parametrize("verdict", ["confirmed", "refuted"])
def test_a_judged_pick_says_so(verdict: str) -> None:
    report = fixture.report()
    report["picks"][TARGET]["fastest"] = {"id": fastest(report)["id"], "verdict": verdict}
    assert outcomes.outcome(report, TARGET).endswith(f"on test (n = 300): {verdict}.")


def test_a_gain_within_the_noise_is_a_tie() -> None:
    report = fixture.report()
    set_latency(report, 0.98, 0.97, 0.99)
    assert ": a tie" in outcomes.outcome(report, TARGET)
    set_latency(report, 0.9, 0.89, 0.91)
    assert "tie" not in outcomes.outcome(report, TARGET)


def test_without_a_test_split_it_speaks_of_val_and_says_that_nothing_was_held_out() -> None:
    sentence = outcomes.outcome(fixture.without_test(), TARGET)
    assert "on val (n = 600)" in sentence
    assert "nothing was held out" in sentence


def test_unsatisfied_names_the_nearest_miss_and_only_what_it_misses() -> None:
    sentence = outcomes.outcome(fixture.unsatisfied(), TARGET)
    assert "nearest miss is `0004-int8`, beyond size<=5kB by 1.25 kB and latency<=0.1x by 0.21x." in sentence
    assert "quality_drop<=0.01 by" not in sentence


def test_what_was_not_measured_is_no_number_in_the_nearest_miss() -> None:
    report = fixture.unsatisfied()
    report["nearest_miss"][TARGET]["by"] = {"memory<=1MB": float("inf"), "quality_drop<=0.01": 0.008}
    sentence = outcomes.outcome(report, TARGET)
    assert "memory<=1MB (not measured) and quality_drop<=0.01 by 0.8 points" in sentence


def test_the_baseline_alone_and_the_baseline_as_best() -> None:
    assert "no candidate yet" in outcomes.outcome(fixture.baseline_only(), TARGET)
    report = fixture.report()
    report["picks"][TARGET]["fastest"] = {"id": "baseline", "verdict": "confirmed"}
    assert outcomes.outcome(report, TARGET) == (
        "No smaller model pays here: the baseline itself is the fastest that meets quality_drop<=0.01."
    )


@pytest.mark.parametrize("count", ["instructions", "cycles"])
def test_a_counted_target_speaks_of_what_is_counted(count: str) -> None:
    assert f"of the baseline's {count}" in outcomes.outcome(fixture.two_targets(count), fixture.PHONE)


def test_where_less_is_better_a_loss_is_a_plus() -> None:
    assert "mse changes by +0.0033" in outcomes.outcome(fixture.lower_is_better(), TARGET)


def test_refuted_candidates_are_named_once_with_their_drop() -> None:
    report = fixture.report()
    (beaten,) = report["picks"][TARGET]["fastest"]["refuted"]
    report["picks"][TARGET]["smallest"]["refuted"] = [beaten]
    (line,) = outcomes.refutations(report, TARGET)
    assert line.startswith(
        f"`{beaten}` was chosen before for fastest, smallest, and test refuted it: its drop on test is 3.7 points ["
    )


def test_orientation_of_an_unknown_metric_is_read_from_the_drops() -> None:
    def renamed(report: dict[str, Any]) -> dict[str, Any]:
        for one in report["candidates"]:
            one["measured"][TARGET]["quality"]["val"]["metric"] = "word errors"
        report["candidates"][-1]["measured"][TARGET]["quality"]["val"]["value"] = float("nan")
        return report

    assert reading.higher_is_better(renamed(fixture.report()), TARGET)
    assert not reading.higher_is_better(renamed(fixture.lower_is_better()), TARGET)


def test_the_limit_is_the_strictest_of_the_constraints_on_quality() -> None:
    report = fixture.report()
    assert reading.quality_limit(report, TARGET) == pytest.approx(0.9433)
    report["constraints"] = ["quality_drop<=0.01", "quality>=0.95", "size<=1MB"]
    assert reading.quality_limit(report, TARGET) == pytest.approx(0.95)
    report["constraints"] = ["size<=1MB"]
    assert reading.quality_limit(report, TARGET) is None


@pytest.mark.parametrize(("needed", "shown"), [(1, "1"), (99, "99"), (457, "460"), (2059, "2,100"), (5997, "6,000")])
def test_an_extrapolated_number_of_examples_is_rounded_up_to_two_digits(needed: int, shown: str) -> None:
    assert outcomes.examples(needed) == shown


def test_ties_say_in_what_and_name_only_a_few() -> None:
    report = fixture.report()
    for pick in report["picks"][TARGET].values():
        pick["tied_with"] = []
    report["picks"][TARGET]["smallest"]["tied_with"] = ["a", "b", "c", "d", "e"]
    assert outcomes.ties(report, TARGET) == ["smallest: `a`, `b`, `c` and 2 more cannot be told from it in size."]


def test_a_candidate_that_is_certainly_better_shows_that_the_baseline_is_weak() -> None:
    report = fixture.report()
    assert outcomes.weak_baseline(report, TARGET) == ""
    name = report["picks"][TARGET]["most_accurate"]["id"]
    here = next(one for one in report["candidates"] if one["id"] == name)["measured"][TARGET]
    here["quality_drop"]["test"] = {"value": -0.067, "low": -0.095, "high": -0.045}
    assert outcomes.weak_baseline(report, TARGET).startswith(
        f"`{name}` is better than the baseline, by 6.7 points on test: the baseline was not trained to the end"
    )
    here["quality_drop"]["test"]["high"] = 0.001
    assert outcomes.weak_baseline(report, TARGET) == ""


def test_no_candidate_at_all_says_nothing_about_the_baseline() -> None:
    assert outcomes.weak_baseline(fixture.unsatisfied(), TARGET) == ""
    assert outcomes.weak_baseline(fixture.baseline_only(), TARGET) == ""

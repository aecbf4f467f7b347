"""Samplers over a rebuilt study: the same question gives the same answer, and all of them can be asked."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest

from compress.run_folder.records import Trial
from compress.sampling import first_configs, samplers, studies
from compress.sampling.problems import Problem
from compress.values.candidates import Candidate
from compress.values.constraints import parse_constraint
from compress.values.domains import Choice, Float, Int
from compress.values.search_spaces import SearchSpace
from targets.errors import RequestError

Make = Callable[..., Candidate]
SPACE = SearchSpace()
GROUPS = ("0", "3")
ASKABLE = ("gp", "tpe", "nsga2", "random")


@pytest.fixture
def problem(candidate: Make) -> Problem:
    """Quality and latency on one target, two constraints."""
    limits = tuple(parse_constraint(text) for text in ("quality_drop<=0.01", "latency<=0.5x"))
    return Problem(SPACE.dimensions(GROUPS), ("quality", "latency"), limits, ("fake",), candidate("baseline"), True)


def history(problem: Problem, make: Make) -> tuple[dict[int, Trial], dict[str, Candidate]]:
    """Six finished trials of two precisions each, a gated one, a failed one and one still asked."""
    trials: dict[int, Trial] = {}
    candidates: dict[str, Candidate] = {}
    for number in range(6):
        found = studies.propose(problem, {}, {}, number, 7, "random")[0]
        names = [f"{number:04d}-fp32", f"{number:04d}-int8"]
        for i, name in enumerate(names):
            candidates[name] = make(name, 0.004 * number + 0.002 * i, 1.0 - 0.1 * number - 0.2 * i, 1000 - 100 * number)
        trials[number] = Trial(number, found, state="finished", candidates=names)
    known = {"fake": {"size": 900, "ratio": 0.8, "latency": 8e-4, "instructions": None, "instructions_ratio": None}}
    trials[6] = Trial(6, dict(trials[0].params), state="gated", known=known)
    trials[7] = Trial(7, dict(trials[1].params), state="failed")
    trials[8] = Trial(8, dict(trials[2].params))
    return trials, candidates


@pytest.mark.parametrize("sampler", ASKABLE)
def test_every_sampler_proposes_within_the_space_and_repeats_itself(
    problem: Problem, candidate: Make, sampler: str
) -> None:
    trials, candidates = history(problem, candidate)
    first, attributes = studies.propose(problem, trials, candidates, 9, 0, sampler)
    again, _ = studies.propose(problem, trials, candidates, 9, 0, sampler)
    assert first == again
    assert set(first) == set(problem.dimensions)
    assert all(problem.dimensions[name].holds(value) for name, value in first.items())
    assert first != studies.propose(problem, trials, candidates, 10, 0, sampler)[0]
    assert first != studies.propose(problem, trials, candidates, 9, 1, sampler)[0]
    assert isinstance(attributes, dict)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optuna.samplers.TPESampler(seed=3),
        lambda: optuna.samplers.RandomSampler(),
        lambda: optuna.samplers.GPSampler(),
    ],
)
def test_a_sampler_of_the_users_own_is_seeded_too_and_not_changed(
    problem: Problem, candidate: Make, make: Callable[[], optuna.samplers.BaseSampler]
) -> None:
    trials, candidates = history(problem, candidate)
    mine = make()
    before = copy.deepcopy(mine)
    first = studies.propose(problem, trials, candidates, 9, 0, mine)
    assert first == studies.propose(problem, trials, candidates, 9, 0, mine)
    assert first == studies.propose(problem, trials, candidates, 9, 0, before)


def test_all_that_happened_is_told_with_its_constraints(problem: Problem, candidate: Make) -> None:
    trials, candidates = history(problem, candidate)
    study = studies.build_study(problem, trials, candidates)
    assert study.metric_names == ["quality_loss", "latency"]
    assert len(study.trials) == 6 * 2 + 1, "failed and unfinished ones have nothing to tell"
    assert all(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials)
    names = {tuple(trial.constraints) for trial in study.trials}
    assert names == {("quality_drop<=0.01@fake", "latency<=0.5x@fake")}, "read by position: always the same"
    told = next(trial for trial in study.trials if trial.user_attrs.get("candidate") == "0005-int8")
    assert told.values == pytest.approx([0.022, 0.3])
    assert list(told.constraints.values()) == pytest.approx([(0.022 - 0.01) / 0.01, (0.3 - 0.5) / 0.5])
    assert told.params["precision"] == "int8", "each precision is told as what it is"
    gated = next(trial for trial in study.trials if trial.user_attrs.get("gated"))
    assert gated.values == pytest.approx([0.0, 0.8])
    assert list(gated.constraints.values()) == pytest.approx([0.0, (0.8 - 0.5) / 0.5])


def test_violations_are_finite_shares_of_the_limit(problem: Problem, candidate: Make) -> None:
    limits = tuple(parse_constraint(text) for text in ("size<=1B", "memory<=0.5x", "quality>=0.99"))
    blind = candidate("0000-fp32", size=10**9)
    blind = blind.on("fake", replace(blind.measured["fake"], memory=None))
    trial = Trial(0, {}, state="finished", candidates=["0000-fp32"])
    asked = replace(problem, constraints=limits, objectives=("quality", "memory", "size"))
    [told] = studies.build_study(asked, {0: trial}, {"0000-fp32": blind}).trials
    violations = list(told.constraints.values())
    assert violations[:2] == [10.0, 10.0]
    assert violations[2] == pytest.approx(0.09 / 0.99)
    assert told.values == pytest.approx([0.0, 10.0, 10.0])


def test_each_target_is_an_objective_of_its_own(problem: Problem, candidate: Make) -> None:
    both = replace(problem, targets=("fake", "fake2"), objectives=("quality", "latency", "size"))
    one = candidate("0000-fp32", 0.01, 0.5, 500)
    two = one.on("fake2", candidate("0000-fp32", 0.03, 0.7, target="fake2").measured["fake2"])
    trials = {
        0: Trial(0, {}, state="finished", candidates=["0000-fp32"]),
        1: Trial(1, {}, state="finished", candidates=["0001-fp32"]),
    }
    baseline = problem.baseline.on("fake2", candidate("baseline", target="fake2").measured["fake2"])
    study = studies.build_study(
        replace(both, baseline=baseline), trials, {"0000-fp32": two, "0001-fp32": candidate("0001-fp32")}
    )
    assert study.metric_names == ["quality_loss", "latency@fake", "latency@fake2", "size"]
    [told] = study.trials  # the other is not measured on fake2 yet
    assert told.values == pytest.approx([0.03, 0.5, 0.7, 0.5]), "quality counts where it is worst"
    assert len(told.constraints) == 4


def test_ranges_may_change_under_way(problem: Problem, candidate: Make) -> None:
    trials, candidates = history(problem, candidate)
    narrow = SearchSpace(prune_ratio=Float(0.7, 0.8), epochs=Int(30, 40), precision=Choice("fp32"), lr=1e-3)
    asked = replace(problem, dimensions=narrow.dimensions(("0", "9")))
    study = studies.build_study(asked, trials, candidates)
    assert len(study.trials) == 13
    for told in study.trials:
        assert set(told.params) == set(asked.dimensions)
        assert 0.7 <= told.params["prune_ratio"] <= 0.8
    params, _ = studies.propose(asked, trials, candidates, 9, 0, "gp")
    assert 30 <= params["epochs"] <= 40


def test_a_strong_config_is_left_out_where_the_others_have_told_already() -> None:
    assert first_configs.is_worth(0.5, [])
    assert not first_configs.is_worth(0.625, [(0.5, 1.5)])  # half has lost 2.5 times the limit: more loses more
    assert first_configs.is_worth(0.625, [(0.5, 0.5)])
    assert first_configs.is_worth(0.375, [(0.5, 1.5)])
    assert not first_configs.is_worth(0.375, [(0.5, -0.2)])  # half is good enough: less gains nothing
    assert first_configs.is_worth(0.625, [(0.5, -0.2)])


@pytest.mark.parametrize(
    ("seen", "ratio"),
    [
        ([], None),
        ([(0.5, 1.5)], 0.25),
        ([(0.5, 1.5), (0.25, 0.3)], 0.125),
        ([(0.5, 1.5), (0.25, 0.3), (0.125, -0.1)], 0.1875),
        ([(0.5, -0.2), (0.625, 0.7)], 0.5625),
        ([(0.5, -0.2), (0.5625, 0.7)], None),  # near enough
        ([(0.5, -0.2), (0.75, -0.1)], None),  # nothing was bad
        ([(0.375, 0.2), (0.5, -0.2), (0.75, 0.1)], 0.625),  # not monotone: the largest that was good counts
    ],
)
def test_the_way_from_good_to_bad_is_halved(seen: list[tuple[float, float]], ratio: float | None) -> None:
    assert first_configs.halfway(seen) == ratio


def test_halving_keeps_all_but_the_ratio_and_spares_what_hurts() -> None:
    dimensions = (space := SearchSpace(depth=Float(0.0, 0.5))).dimensions(GROUPS, 4)
    strong = first_configs.strong_params(space, dimensions, len(GROUPS), 4)
    found = first_configs.for_each_depth(strong)
    assert {(m["depth"], m["prune_skew"]) for m in found} == {(0.0, 0.25), (0.25, 0.25)}
    alone = space.dimensions(GROUPS[:1])
    (model,) = first_configs.for_each_depth(first_configs.strong_params(space, alone, 1))
    assert "prune_skew" not in model
    assert not first_configs.for_each_depth(first_configs.strong_params(space, space.dimensions(()), 0))


def test_strong_configs_come_first_and_fit_the_space() -> None:
    dimensions = SPACE.dimensions(GROUPS)
    strong = first_configs.strong_params(SPACE, dimensions, len(GROUPS))
    assert [(p["prune_ratio"], p["epochs"]) for p in strong[:2]] == [(0.0, 0), (0.5, 16)]
    assert [p["prune_ratio"] for p in strong[2:]] == [0.375, 0.625, 0.75, 0.75]
    assert all(p["epochs"] == 16 for p in strong[1:])
    assert all(strong.count(params) == 1 for params in strong)
    assert all(set(params) == set(dimensions) for params in strong)
    configs = [SPACE.config(params) for params in strong]
    assert configs[0].finetune.epochs == 0
    assert len(first_configs.strong_params(SPACE, SPACE.dimensions(()), 0)) == 1
    tight = SearchSpace(prune_ratio=Float(0.8, 0.9))
    ratios = [p["prune_ratio"] for p in first_configs.strong_params(tight, tight.dimensions(GROUPS), 2)]
    assert ratios[1:] == [0.8] * (len(ratios) - 1)
    fixed = SearchSpace(prune_ratio=0.4)
    assert all("prune_ratio" not in p for p in first_configs.strong_params(fixed, fixed.dimensions(GROUPS), 2))


@pytest.mark.parametrize(("domain", "blocks", "least"), [(Float(0.0, 0.5), 4, 0.25), (Choice(0.0, 0.5, 1.0), 4, 0.5)])
def test_a_strong_config_drops_one_block_where_depth_is_searched(domain, blocks, least) -> None:
    space = SearchSpace(depth=domain)
    dimensions = space.dimensions(GROUPS, blocks)
    strong = first_configs.strong_params(space, dimensions, len(GROUPS), blocks)
    assert [(p["depth"], p["prune_ratio"]) for p in strong if p["depth"]] == [(least, 0.25)]
    assert not any(p.get("depth") for p in first_configs.strong_params(space, space.dimensions(GROUPS), len(GROUPS)))
    whole = SearchSpace(depth=Choice(0.0))
    assert not any(p["depth"] for p in first_configs.strong_params(whole, whole.dimensions(GROUPS, 4), len(GROUPS), 4))


def test_the_grid_has_every_point_once() -> None:
    dimensions = SPACE.dimensions(GROUPS)
    grid = samplers.grid_params(dimensions)
    assert len(grid) == 9 * 2
    assert len({tuple(sorted(point.items())) for point in grid}) == len(grid)
    assert {point["calibration"] for point in grid} == {"minmax", "percentile"}
    assert [point["prune_ratio"] for point in grid[:9]] == pytest.approx([0.1125 * i for i in range(9)])
    assert all(dimensions[name].holds(value) for point in grid for name, value in point.items())


def test_only_known_samplers_are_taken() -> None:
    assert samplers.check_sampler(None) == "auto"
    assert [samplers.check_sampler(name) for name in samplers.SAMPLERS] == list(samplers.SAMPLERS)
    assert samplers.check_sampler(optuna.samplers.TPESampler()) == "TPESampler"
    wrong: Any
    for wrong in ("bayes", 7, object()):
        with pytest.raises(RequestError, match=r"unknown sampler .*; use one of auto, gp, tpe"):
            samplers.check_sampler(wrong)


def test_what_is_under_way_is_told_as_running(problem: Problem, candidate: Make) -> None:
    trials, candidates = history(problem, candidate)
    told = studies.build_study(problem, trials, candidates).trials
    study = studies.build_study(problem, trials, candidates, under_way=True)
    [running] = [one for one in study.trials if one.state == optuna.trial.TrialState.RUNNING]
    assert len(study.trials) == len(told) + 1
    assert running.user_attrs["trial"] == 8
    assert running.params == {k: v for k, v in trials[8].params.items() if k in problem.dimensions}


def test_of_many_trials_the_best_and_the_newest_are_told(problem: Problem, candidate: Make) -> None:
    trials, candidates = {}, {}
    for number in range(90):
        name = f"{number:04d}-fp32"
        candidates[name] = candidate(name, 0.02 if number % 2 else 0.0, 0.4 if number == 4 else 0.9 - number / 1000)
        trials[number] = Trial(number, {}, state="finished", candidates=[name])
    trials[90] = Trial(90, {})
    told = studies.worth_telling(problem, trials, candidates, 30)
    assert len(told) == 31
    assert 90 in told, "what is under way is told in any case"
    assert 4 in told, "the only one that meets every limit"
    assert set(range(80, 90)) <= set(told)
    assert studies.worth_telling(problem, trials, candidates, 90) == trials
    assert set(studies.worth_telling(problem, trials, candidates, 0)) == {90}


@pytest.mark.parametrize("sampler", ["gp", "tpe"])
def test_many_that_are_asked_at_once_differ(problem: Problem, candidate: Make, sampler: str) -> None:
    trials, candidates = history(problem, candidate)
    for number in range(9, 15):
        trials[number] = Trial(number, studies.propose(problem, trials, candidates, number, 0, sampler)[0])
    asked = [tuple(sorted((k, str(v)) for k, v in trials[number].params.items())) for number in range(9, 15)]
    assert len(set(asked)) == len(asked)

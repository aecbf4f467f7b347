"""The cost-aware sampler in somebody's own study, and fed with networks."""

import re
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from compress.sampling.acquisition import per_second
from compress.sampling.choices import ParameterChoices, Told
from compress.sampling.cost_aware import CostAwareSampler
from compress.sampling.encoding import encoded, nearby, randomly
from compress.sampling.network_arrays import macs, whole
from compress.sampling.network_choices import NetworkChoices, network_of, params_of
from compress.sampling.network_features import Eyes
from compress.sampling.pool import random_networks
from compress.sampling.quality_model import Response, proportion_noise
from small_space import PATTERNS, network

optuna.logging.set_verbosity(optuna.logging.ERROR)
DOCUMENT = Path(__file__).parents[3] / "docs" / "cost-aware.md"
SPACE = {
    "width": IntDistribution(8, 256, log=True),
    "depth": IntDistribution(1, 8),
    "rate": FloatDistribution(1e-4, 1e-1, log=True),
    "share": FloatDistribution(0.0, 1.0, step=0.25),
    "kind": CategoricalDistribution(["plain", "good"]),
}


def cost(params) -> float:
    return params["depth"] * params["width"] ** 2


def loss(params) -> float:
    better = 1.5 if params["kind"] == "good" else 1.0
    away = np.log10(params["rate"] / 1e-2) ** 2 + (params["share"] - 0.5) ** 2
    return float(0.02 + 3.0 / (params["depth"] ** 0.5 * params["width"] * better) * (1 + away))


def suggest(trial) -> dict:
    return {name: trial._suggest(name, domain) for name, domain in SPACE.items()}


def run(sampler, trials: int = 15, sign: float = 1.0, objectives: int = 2) -> optuna.Study:
    def objective(trial):
        params = suggest(trial)
        return (sign * loss(params), cost(params))[:objectives] if objectives > 1 else sign * loss(params)

    directions = ["minimize" if sign > 0 else "maximize", *["minimize"] * (objectives - 1)]
    study = optuna.create_study(directions=directions, sampler=sampler)
    study.optimize(objective, n_trials=trials)
    return study


def cheapest(study, limit: float = 0.06) -> float:
    return min((cost(t.params) for t in study.trials if abs(t.values[0]) <= limit), default=np.inf)


def test_it_finds_what_is_cheap_within_the_limit_sooner_than_others() -> None:
    mine = [cheapest(run(CostAwareSampler(cost, 0.06, space=SPACE, seed=seed), trials=15)) for seed in range(2)]
    others = [
        cheapest(run(make(seed), trials=25))
        for seed in range(2)
        for make in (lambda s: optuna.samplers.TPESampler(seed=s), lambda s: optuna.samplers.RandomSampler(seed=s))
    ]
    assert np.median(mine) < 0.7 * np.median(others)


def test_the_same_seed_proposes_the_same_points() -> None:
    one, two = (run(CostAwareSampler(cost, 0.06, space=SPACE, seed=4), trials=6) for _ in range(2))
    assert [t.params for t in one.trials] == [t.params for t in two.trials]
    other = run(CostAwareSampler(cost, 0.06, space=SPACE, seed=5), trials=6)
    assert [t.params for t in one.trials] != [t.params for t in other.trials]


def test_a_loss_that_is_maximised_is_turned_round() -> None:
    """Signs change nothing but the logarithm: losses that are no longer positive are modelled as they are."""
    study = run(CostAwareSampler(cost, -0.06, space=SPACE, seed=0), sign=-1.0)
    assert cheapest(study) < 4000


def test_one_objective_is_the_loss() -> None:
    assert cheapest(run(CostAwareSampler(cost, 0.06, space=SPACE, seed=0), objectives=1)) < 4000


def test_nothing_dearer_is_tried_once_something_is_within_the_limit() -> None:
    study = run(CostAwareSampler(cost, 0.06, space=SPACE, seed=0), trials=14, objectives=1)
    told = [(float(cost(trial.params)), trial.value <= 0.06) for trial in study.trials]
    for i in range(4, len(told)):
        assert told[i][0] < min((paid for paid, is_within in told[:i] if is_within), default=np.inf)


def test_time_is_weighed() -> None:
    """Of points that cost the same, those that take a hundredth of the time are tried."""

    def slow(params):
        return 100.0 if params["kind"] == "good" else 1.0

    study = run(CostAwareSampler(cost, 0.06, space=SPACE, seconds=slow, seed=0), trials=12)
    assert sum(t.params["kind"] == "plain" for t in study.trials[3:]) >= 7
    assert per_second(np.ones(1), np.zeros(1))[0] == pytest.approx(1000)


def test_without_a_space_it_is_that_of_the_trials() -> None:
    study = run(CostAwareSampler(cost, 0.06, seed=0), trials=15)
    assert cheapest(study) < 20_000


def test_parameters_it_does_not_know_are_random() -> None:
    sampler = CostAwareSampler(lambda p: p["depth"], 1.0, space={"depth": SPACE["depth"]}, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda t: t.suggest_int("depth", 1, 8) * 0.1 + t.suggest_float("other", 0, 1), n_trials=5)
    assert len({t.params["other"] for t in study.trials}) == 5


def test_trials_under_way_are_not_proposed_again() -> None:
    study = optuna.create_study(sampler=CostAwareSampler(cost, 0.06, space=SPACE, seed=0))
    for _ in range(6):
        trial = study.ask(fixed_distributions=SPACE)
        study.tell(trial, loss(trial.params))
    asked = [tuple(study.ask(fixed_distributions=SPACE).params.items()) for _ in range(4)]
    assert len(set(asked)) == 4


def test_failed_trials_and_infinite_losses_are_ignored() -> None:
    study = optuna.create_study(sampler=CostAwareSampler(cost, 0.06, space=SPACE, seed=0))
    for value in (None, float("inf"), 0.5, 0.04):
        trial = study.ask(fixed_distributions=SPACE)
        study.tell(trial, value, state=optuna.trial.TrialState.FAIL if value is None else None)
    assert study.ask(fixed_distributions=SPACE).params


def test_a_space_that_was_tried_out_is_asked_for_again() -> None:
    small = {"kind": SPACE["kind"]}
    study = optuna.create_study(sampler=CostAwareSampler(lambda _: 1.0, 0.5, space=small, seed=0))
    study.optimize(lambda t: float(t.suggest_categorical("kind", ["plain", "good"]) == "good"), n_trials=5)
    assert {t.params["kind"] for t in study.trials} == {"plain", "good"}


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_cost_must_be_positive(value: float) -> None:
    study = optuna.create_study(sampler=CostAwareSampler(lambda _: value, 0.5, space=SPACE, seed=0))
    with pytest.raises(ValueError, match="positive and finite"):
        study.ask(fixed_distributions=SPACE)


def test_points_are_within_their_ranges_and_steps() -> None:
    rng = np.random.default_rng(0)
    points = [randomly(SPACE, rng) for _ in range(200)]
    points += [nearby(SPACE, point, rng) for point in points]
    for name, domain in SPACE.items():
        assert all(domain._contains(domain.to_internal_repr(point[name])) for point in points)
    assert {point["share"] for point in points} == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert {point["depth"] for point in points} == set(range(1, 9))
    assert 8 < np.median([point["width"] for point in points]) < 90  # on a logarithm
    seen = encoded(SPACE, points)
    assert seen.min() >= 0
    assert seen.max() <= 1


def test_neighbours_are_near() -> None:
    rng = np.random.default_rng(0)
    start = randomly(SPACE, rng)
    for _ in range(50):
        found = nearby(SPACE, start, rng)
        assert 0 <= sum(found[name] != start[name] for name in SPACE) <= 2


def test_what_it_expects_is_near_what_it_was_told() -> None:
    rng = np.random.default_rng(0)
    points = [randomly(SPACE, rng) for _ in range(40)]
    told = [Told(point, loss(point), {}) for point in points]
    choices = ParameterChoices(SPACE, cost=lambda p: cost(p) / 524288)
    outlook = choices.outlook(told, points, np.array([cost(p) / 524288 for p in points]))
    errors = (outlook.mean - outlook.scaled(np.array([t.loss for t in told]))) / np.sqrt(outlook.sd**2 + outlook.noise)
    assert np.sqrt((errors**2).mean()) < 1.5
    assert outlook.sd.max() < 1


def network_choices() -> NetworkChoices:
    response = Response.of_proportion(0.02, 500)
    return NetworkChoices(
        Eyes(PATTERNS), response, lambda networks: np.full(len(networks), 10.0),
        proportion_noise(0.03, 500) / 0.031, proportion_noise(0.02, 500), count=200,
    )  # fmt: skip


def test_networks_and_parameters_stand_for_each_other() -> None:
    for each in random_networks(PATTERNS, 50, seed=0):
        assert network_of(params_of(each)) == each
    assert params_of(network(16, 32, dropped=("b", "c")))["pattern"] == "b+c"


def test_networks_are_proposed_by_the_same_sampler() -> None:
    largest = float(macs(PATTERNS, [whole(PATTERNS[()])])[0])

    def share(params) -> float:
        return float(macs(PATTERNS, [network_of(params)])[0]) / largest

    def objective(trial):
        trial.suggest_categorical("pattern", ["+".join(key) or "whole" for key in sorted(PATTERNS)])
        dropped = network_of(trial.params).dropped
        for group in PATTERNS[dropped].groups:
            trial.suggest_int(f"width.{group.name}", group.widths[0], group.channels)
        each = network_of(trial.params)
        error = 0.02 + 0.05 * len(each.dropped) + 0.02 * (1 - share(trial.params)) ** 4
        trial.set_user_attr("readings", [{"epochs": 10.0, "loss": error, "noise": proportion_noise(error, 500)}])
        return error, share(trial.params)

    sampler = CostAwareSampler(share, 0.03, choices=network_choices(), baseline=0.02, seed=0)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    study.optimize(objective, n_trials=12)
    within = [t.values[1] for t in study.trials if t.values[0] <= 0.03]
    assert min(within) < 0.3  # 0.16 is the least
    for trial in study.trials:
        each = network_of(trial.params)
        assert all(width in (16, 32, 48, 60) for _, width in each.widths)
        assert set(each.width_of) == set(PATTERNS[each.dropped].full)


def test_choices_have_a_space_of_their_own() -> None:
    with pytest.raises(ValueError, match="space of its own"):
        CostAwareSampler(cost, 0.06, space=SPACE, choices=network_choices())


def test_the_example_of_the_document_runs() -> None:
    example = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert example
    names: dict = {}
    exec(compile(example.group(1), str(DOCUMENT), "exec"), names)
    assert names["cheapest"].values[0] <= 0.06
    # By hand: the cheapest of all points within the limit.
    best = min(
        names["cost"]({"width": w, "depth": d})
        for w in range(8, 257) for d in range(1, 9)
        if names["train"]({"width": w, "depth": d, "activation": "gelu"}) <= 0.06
    )  # fmt: skip
    assert names["cheapest"].values[1] < 1.5 * best

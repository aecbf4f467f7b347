"""What a record says of networks that were trained: rungs, readings, and what is never trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from compress.metrics import metrics
from compress.run_folder.records import State, Trial
from compress.sampling.network_history import ENDING, history, rungs_before, scale_of
from compress.values.candidates import Candidate
from compress.values.networks import Network, params_of

Make = Callable[..., Candidate]
SMALL, LARGE = (Network((), (("a", width),)) for width in (16, 32))


@pytest.fixture
def state(candidate: Make) -> State:
    """Two networks: one trained for 2, then 4 epochs, then anew for the end; one gated; the baseline in int8."""

    def trial(number: int, network: Network | None, epochs: int = 0, **rest: Any) -> Trial:
        params = {"epochs": epochs, **(params_of(network) if network else {})}
        return Trial(number, params, state="finished", candidates=[f"{number:04d}-fp32"], **rest)

    trials = [
        trial(0, None),
        trial(1, SMALL, 2, train_drop=0.05, train_seconds=4.0),
        trial(2, SMALL, 4, after=1, train_drop=0.02, train_seconds=6.0),
        replace(trial(3, LARGE, 2), state="gated", candidates=[]),
        trial(4, SMALL, 9, why={"reason": ENDING}),
    ]
    drops = {0: 0.0, 1: 0.03, 2: 0.01, 4: 0.02}
    made = {f"{n:04d}-fp32": candidate(f"{n:04d}-fp32", drop=drop) for n, drop in drops.items()}
    return State({one.number: one for one in trials}, {"baseline": candidate("baseline"), **made})


def test_epochs_of_one_training_add_up_and_a_new_one_begins_anew(state: State, candidate: Make) -> None:
    scale = scale_of(metrics.get("accuracy"), candidate("baseline"), "fake", 0.01)
    found = history(state, scale, 3, 500)
    [one] = found.trained
    assert (one.network, one.rungs, one.epochs, one.ended) == (SMALL, 3, 9.0, True)
    assert dict(one.drops) == {"fp32": 0.01}
    assert [(r.epochs, r.split) for r in found.readings] == [
        (2.0, "val"), (2.0, "train"), (6.0, "val"), (6.0, "train"), (9.0, "val")
    ]  # fmt: skip
    assert found.counts == (2, 4, 5)
    assert found.chains == {SMALL: (4,)}
    assert found.seconds == {SMALL: (2.0, 1.5)}
    assert found.barred == {LARGE}


def test_losses_of_a_proportion_are_its_errors_and_of_another_metric_its_drops(state: State, candidate: Make) -> None:
    share = scale_of(metrics.get("accuracy"), candidate("baseline"), "fake", 0.01)
    assert [round(r.loss, 6) for r in history(state, share, 3, 0).readings] == [0.13, 0.11, 0.12]
    other = scale_of(metrics.get("rmse"), candidate("baseline"), "fake", 0.01)
    assert [round(r.loss, 6) for r in history(state, other, 3, 0).readings] == [0.03, 0.01, 0.02]
    assert other.response.baseline == 0.0


def test_what_a_training_goes_on_from_is_told_in_order(state: State) -> None:
    assert rungs_before(state.trials[2], state.trials) == (2.0,)
    assert rungs_before(state.trials[4], state.trials) == ()
    assert rungs_before(Trial(9, {}, after=2), state.trials) == (2.0, 4.0)

"""How much each hyperparameter mattered for each objective, by Optuna's PED-ANOVA.

PED-ANOVA (Watanabe, Bansal and Hutter 2023, IJCAI) compares the values among the better trials with those among all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from compress.run_folder.runs import Run
from compress.sampling.problems import problem_of
from compress.sampling.studies import build_study, metric_names
from compress.values.configs import row

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_FEWEST = 8
"""With fewer candidates than this, importances would be noise."""


def importances(run: Run) -> dict[str, dict[str, float]]:
    """The share of every hyperparameter in each objective, by the objective's name, the most important first.

    Empty where there are too few candidates to say anything, without an objective whose values never varied.
    """
    import warnings

    import optuna

    problem = problem_of(run)
    study = build_study(problem, run.state.trials, run.state.candidates)
    if len(study.trials) < _FEWEST or not problem.dimensions:
        return {}
    found: dict[str, dict[str, float]] = {}
    for index, name in enumerate(metric_names(problem)):
        names = _that_can_matter(name, list(problem.dimensions))
        if names == []:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values = optuna.importance.get_param_importances(study, target=_value(index), params=names)
        except (ValueError, RuntimeError, ZeroDivisionError):
            continue  # an objective that never varied has no importances
        found[name] = {key: float(value) for key, value in values.items()}
    return found


def _that_can_matter(objective: str, names: list[str]) -> list[str] | None:
    """What the objective can depend on; the share of anything else in it would be noise. None: all can matter."""
    if objective == "quality_loss":
        return None
    return [name for name in names if row(name).setting.changes_cost]


def _value(index: int) -> Callable[[FrozenTrial], float]:
    """What reads objective ``index`` of a trial."""
    return lambda trial: float(trial.values[index])

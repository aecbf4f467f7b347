"""What each hyperparameter mattered: Optuna's PED-ANOVA, once per objective."""

from __future__ import annotations

from compress.quantities import parse_constraint
from compress.runs import Run
from compress.sampling import Problem, build_study, metric_names

_FEWEST = 8
"""Told candidates below which importances would be noise."""


def problem_of(run: Run) -> Problem:
    """The run's search problem, as far as its record goes."""
    request = run.request
    groups = tuple(run.state.facts.get("groups", ()))
    return Problem(
        request.space.dimensions(groups),
        request.objectives,
        tuple(parse_constraint(text) for text in request.constraints),
        request.targets,
        run.state.candidates["baseline"],
        request.higher_is_better,
    )


def importances(run: Run) -> dict[str, dict[str, float]]:
    """Objective -> hyperparameter -> share, most important first; empty where there is too little to say."""
    import warnings

    import optuna

    problem = problem_of(run)
    study = build_study(problem, run.state.trials, run.state.candidates)
    if len(study.trials) < _FEWEST or not problem.dimensions:
        return {}
    found: dict[str, dict[str, float]] = {}
    for index, name in enumerate(metric_names(problem)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values = optuna.importance.get_param_importances(study, target=lambda trial, i=index: trial.values[i])
        except (ValueError, RuntimeError, ZeroDivisionError):
            continue  # an objective that never varied has no importances
        found[name] = {key: float(value) for key, value in values.items()}
    return found

"""What a search gives back, and what a folder on disk is opened as."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from compress.reports.reporting import make_report
from compress.run_folder.runs import Run, open_for_reading, reading
from compress.sampling.problems import problem_of
from compress.sampling.studies import build_study
from compress.selection import fronts, rankings
from compress.selection.nearest_misses import nearest_miss
from compress.selection.picks import picks_of
from compress.selection.questions import question_of, targets_of
from compress.values.candidates import Candidate, LatencyResult, Pick, Quality
from targets.errors import NoFeasibleCandidate, RequestError

if TYPE_CHECKING:
    import optuna
    from torch import nn

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class RunCandidate:
    """A candidate seen from one target, with its files."""

    candidate: Candidate
    target: str
    path: Path
    """The ``.onnx`` file."""
    module_of: Any = None
    pick: Pick | None = None
    """How it was judged, where it is a pick."""

    @property
    def id(self) -> str:
        """The candidate's name in ``report.json`` and in the run's folder ``candidates/``."""
        return self.candidate.id

    @property
    def config(self) -> dict[str, Any]:
        """Pruning, fine-tuning and precision, with the realised widths."""
        return self.candidate.config

    @property
    def quality(self) -> Quality:
        """On val, in the target's runtime."""
        return self.candidate.measured[self.target].quality.val

    @property
    def test_quality(self) -> Quality | None:
        """On test, where it was read."""
        return self.candidate.measured[self.target].quality.test

    @property
    def latency(self) -> LatencyResult | None:
        """Paired ratio to the baseline, p50 and p95 in seconds."""
        return self.candidate.measured[self.target].latency

    @property
    def size(self) -> int:
        """The size of the ``.onnx`` file in bytes."""
        return self.candidate.size

    @property
    def verdict(self) -> str | None:
        """``confirmed``, ``open`` or ``refuted``, where it is a pick."""
        return self.pick.verdict if self.pick else None

    def module(self) -> nn.Module:
        """The fine-tuned torch module, pruned and loaded, in eval mode; RequestError where there is none."""
        if self.module_of is None:
            raise RequestError(
                f"{self.id}: the run was opened without its task, or the model is an .onnx file; call compress.search"
            )
        module: nn.Module = self.module_of(self.candidate)
        return module


def _readable(function: Callable[Concatenate[Result, P], R]) -> Callable[Concatenate[Result, P], R]:
    """A method of ``Result`` that raises RunError where values of the run make no sense."""

    @functools.wraps(function)
    def call(self: Result, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with reading(self.folder):
            return function(self, *args, **kwargs)

    return call


class Result:
    """A run's candidates, fronts and picks; everything is read from its record."""

    def __init__(self, run: Run, module_of: Any = None) -> None:
        self._run = run
        self._module_of = module_of

    @property
    def folder(self) -> Path:
        """The folder that the run is kept in."""
        return self._run.folder

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets that were measured on, the first one deciding."""
        return targets_of(self._run)

    @property
    @_readable
    def report(self) -> dict[str, Any]:
        """The run as one JSON document, as ``report.json`` holds it; made anew at each call."""
        return make_report(self._run)

    @property
    def satisfied(self) -> bool:
        """Whether the main pick meets the constraints on val and is not refuted on test."""
        return bool(self.report["satisfied"])

    @property
    @_readable
    def baseline(self) -> RunCandidate:
        """The task's model as it came."""
        return self._seen(question_of(self._run).baseline, self._target(None))

    @_readable
    def candidates(self, target: str | None = None) -> list[RunCandidate]:
        """All candidates measured on ``target`` (default: the first), whether they meet the constraints or not."""
        name = self._target(target)
        found = fronts.with_feasibility(list(self._run.state.candidates.values()), question_of(self._run), name)
        return [self._seen(candidate, name) for candidate in found]

    @_readable
    def front(self, target: str | None = None) -> list[RunCandidate]:
        """The candidates on ``target`` that meet the constraints and that no other one beats, best quality first."""
        name = self._target(target)
        found = fronts.front(self._run.available(), question_of(self._run), name)
        return [self._seen(candidate, name) for candidate in found]

    @_readable
    def hypervolume(self, target: str | None = None) -> float:
        """Of the front, against the reference point of design.md."""
        return fronts.front_hypervolume(self._run.available(), question_of(self._run), self._target(target))

    @_readable
    def pick(self, which: str = "fastest", target: str | None = None) -> RunCandidate:
        """``fastest``, ``knee``, ``smallest`` or ``most_accurate``; raises NoFeasibleCandidate if none is feasible."""
        if which not in rankings.PICKS:
            raise RequestError(f"unknown pick {which!r}; use one of {', '.join(rankings.PICKS)}")
        name = self._target(target)
        pick = picks_of(self._run, name)[which]
        if pick is None:
            miss = nearest_miss(self._run.available(), question_of(self._run), name)
            by = ", ".join(f"{text} by {excess:.4g}" for text, excess in miss.by.items()) if miss else ""
            near = f"; the nearest miss is {miss.id}, beyond {by}" if miss else ""
            raise NoFeasibleCandidate(f"no candidate meets {', '.join(self._run.request.constraints)} on {name}{near}")
        return self._seen(self._run.state.candidates[pick.id], name, pick)

    @_readable
    def study(self) -> optuna.Study:
        """The whole run as an in-memory Optuna study, for Optuna's own tools."""

        return build_study(problem_of(self._run), self._run.state.trials, self._run.state.candidates)

    def _target(self, target: str | None) -> str:
        question_of(self._run)  # raises where nothing is measured yet
        if target is None:
            return self.targets[0]
        if target not in self.targets:
            raise RequestError(f"target {target!r} is not in this run; it has {', '.join(self.targets)}")
        return target

    def _seen(self, candidate: Candidate, target: str, pick: Pick | None = None) -> RunCandidate:
        path = self._run.folder / (candidate.path or "")
        return RunCandidate(candidate, target, path, self._module_of, pick)


def open_run(folder: str | Path) -> Result:
    """The result of a run on disk, finished or not: fronts, picks, paths. Raises RunError if it is not one."""
    return Result(open_for_reading(folder))

"""A target that is added to a run: what was found before is measured on it, from the files; nothing is trained."""

from __future__ import annotations

from compress.baseline.contexts import Context, Say
from compress.precision.schemes import runs
from compress.stages.measuring import measure_on, scored_on_val
from compress.values.candidates import Candidate, Measured
from targets.errors import ModelError, StageError, TransientError
from targets.target import Target


def catch_up(context: Context, say: Say) -> list[str]:
    """Measure every candidate that has its file on the targets that lack it; gives what went wrong, a line each.

    A candidate that cannot be measured stays as it is: on that target it is on no front. Raises TransientError where
    the target itself seems to be gone.
    """
    problems: list[str] = []
    for target in context.targets.all:
        for candidate in context.run.available():
            precision, converted = candidate.config["precision"], (candidate.path or "").endswith(".tflite")
            can = context.targets.abilities[target.name]
            if target.name in candidate.measured or not runs(
                can, precision["scheme"], precision.get("format", ""), converted=converted
            ):
                continue
            say(f"measure {candidate.id} on {target.name}")
            try:
                measured = measure_anew(context, target, candidate)
            except TransientError:
                raise
            except (StageError, ModelError) as error:
                problems.append(f"{candidate.id} could not be measured on {target.name}: {error}")
                continue
            context.run.record.append("candidate", candidate=candidate.on(target.name, measured))
    return problems


def measure_anew(context: Context, target: Target, candidate: Candidate) -> Measured:
    """All that a target says of a candidate's file, val included; raises as measuring does."""
    path = context.run.path(candidate.id)
    [info] = measure_on(context.instruments, target, [path])
    return scored_on_val(context, target, path, info, candidate.config["precision"]["scheme"])

"""A target that is added to a run: what was found before is measured on it, from the files; nothing is trained."""

from __future__ import annotations

from compress.baseline.contexts import Context, Say
from compress.precision.schemes import converts, refused
from compress.stages.measuring import measure_on, scored_on_val
from compress.values.candidates import Candidate, Measured
from targets.errors import StageError
from targets.target import Target


def catch_up(context: Context, say: Say) -> list[str]:
    """Measure every candidate that has its file on the targets that lack it; gives what went wrong, a line each.

    A candidate that cannot be measured stays as it is: on that target it is on no front.
    """
    problems: list[str] = []
    for target in context.targets.all:
        for candidate in context.run.available():
            if target.name in candidate.measured or _refused(context, target, candidate):
                continue
            say(f"measure {candidate.id} on {target.name}")
            try:
                measured = measure_anew(context, target, candidate)
            except StageError as error:
                problems.append(f"{candidate.id} could not be measured on {target.name}: {error}")
                continue
            context.run.record.append("candidate", candidate=candidate.on(target.name, measured))
    return problems


def measure_anew(context: Context, target: Target, candidate: Candidate) -> Measured:
    """All that a target says of a candidate's file, val included; raises as measuring does."""
    path = context.run.path(candidate.id)
    [info] = measure_on(context.instruments, target, [path])
    return scored_on_val(context, target, path, info, candidate.config["precision"]["scheme"])


def _refused(context: Context, target: Target, candidate: Candidate) -> bool:
    """Whether the target does not run candidates of that precision."""
    can = context.targets.abilities[target.name]
    precision = candidate.config["precision"]
    if (candidate.path or "").endswith(".tflite"):
        return bool(precision.get("format") != can.int8_format)
    if converts(can) and precision["scheme"] != "fp32":
        return True
    return candidate.config["precision"]["scheme"] in refused(can.refuses, can.lacks)

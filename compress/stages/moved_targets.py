"""A run that goes on where a target is another device: what was measured before is measured again, never mixed.

A target is known by what it says of itself (CPU, its features, the runtime's version). All that the run has measured
there is measured anew and enters the record in one line: until then, the old figures stand together, and after it the
new ones do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from compress.baseline.contexts import Context, Say
from compress.run_folder.runs import Run
from compress.stages.added_targets import measure_anew
from compress.values.candidates import Candidate
from compress.values.serialization import to_json
from targets.documents import finite
from targets.errors import ModelError, StageError, TransientError
from targets.target import Target

_PASSING = ("memory", "os", "python")
"""What a machine says of itself and may change under way: costs do not hang on it."""


def moved_targets(run: Run, describe: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Target -> what is another there, for the targets that are not the devices they were; ``describe``: now.

    What a run of before does not know of its targets is taken to be as it is now.
    """
    found = {}
    for name, now in describe.items():
        before = run.state.facts.targets.get(name)
        measured = any(name in candidate.measured for candidate in run.state.candidates.values())
        changed = [] if before is None or not measured else _changes(_lasting(before), _lasting(now))
        if changed:
            found[name] = "; ".join(changed)
    return found


def measure_moved(context: Context, moved: Mapping[str, str], say: Say) -> list[str]:
    """Measure everything again on the targets that moved; gives a line for each of them and for what went wrong.

    A candidate that cannot be measured there, or whose file is gone, has no figures on that target any more. Raises
    TransientError where the target is gone: the old figures then stand.
    """
    told = []
    for target in context.targets.all:
        if target.name not in moved:
            continue
        told.append(f"{target.name} is another device now ({moved[target.name]}): everything is measured again on it")
        found = [context.baseline.candidate]
        for candidate in list(context.run.state.candidates.values()):
            if target.name in candidate.measured and candidate.id != context.baseline.candidate.id:
                found.append(_again(context, target, candidate, say, told))
        context.run.record.append("moved", target=target.name, candidates=found)
    return told


def _again(context: Context, target: Target, candidate: Candidate, say: Say, told: list[str]) -> Candidate:
    without = replace(candidate, measured={k: v for k, v in candidate.measured.items() if k != target.name})
    if not context.run.is_whole(candidate):
        return without
    say(f"measure {candidate.id} again on {target.name}")
    try:
        return candidate.on(target.name, measure_anew(context, target, candidate))
    except TransientError:
        raise
    except (StageError, ModelError) as error:
        told.append(f"{candidate.id} could not be measured again on {target.name}: {error}")
        return without


def _lasting(described: Mapping[str, Any]) -> dict[str, Any]:
    """A description as the record has it, without what changes from call to call."""
    plain = finite(to_json({name: value for name, value in described.items() if name != "now"}))
    machine = plain.get("machine")
    if isinstance(machine, dict):
        plain["machine"] = {name: value for name, value in machine.items() if name not in _PASSING}
    return dict(plain)


def _changes(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs, as ``cpu 'A' -> 'B'``."""
    if before == now:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys((*before, *now)))
        return [text for key in keys for text in _changes(before.get(key), now.get(key), str(key))]
    return [f"{name} {before!r} -> {now!r}"]

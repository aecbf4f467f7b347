"""Benches that are kept: written by ``--save``, read by ``--compare``, and what has changed between two of them.

An absolute time means little from one day to the next, a paired ratio holds. So what is compared is, for a model

- where cost is counted: the count, exactly (0.1 %);
- where the first model is the same file as then: the ratio to it. A change is significant where the two intervals
  are disjoint and the values more than 3 % apart (the tie rule);
- else its fastest run, the median over the processes: significant where the ranges over the processes are disjoint
  and the values more than 15 % apart. Smaller changes need both files in one call.

Times are compared only on the same CPU model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets.documents import finite, parse_json, read_text, write_text
from targets.errors import RequestError
from targets.intervals import COUNTED_TIE, TIE
from targets.target import COUNTS

Entry = Mapping[str, Any]
Document = Mapping[str, Any]

ABSOLUTE_TIE = 0.15
"""Absolute times of two calls closer than this share are not told apart."""


@dataclass(frozen=True)
class Change:
    """What became of one model on one target: its cost in the saved bench and in this one, and the verdict."""

    target: str
    path: str
    by: str
    """What was compared: ``ratio``, ``time``, ``instructions``, ``cycles``; empty where nothing could be."""
    verdict: str
    """``regression``, ``improvement``, ``unchanged``, or ``not compared``."""
    then: tuple[float, float, float] | None = None
    """Value, low and high."""
    now: tuple[float, float, float] | None = None
    why: str = ""
    """Where it was not compared."""

    @property
    def factor(self) -> float | None:
        """The cost now divided by the cost then, so above 1 is worse; None where nothing could be compared."""
        return self.now[0] / self.then[0] if self.now and self.then else None

    def to_json(self) -> dict[str, Any]:
        """This change as an entry of ``compared`` in ``bench --json``; costs are seconds, ratios or counts."""
        return {
            "target": self.target,
            "path": self.path,
            "by": self.by or None,
            "verdict": self.verdict,
            "then": list(self.then) if self.then else None,
            "now": list(self.now) if self.now else None,
            "factor": self.factor,
            "why": self.why or None,
        }


def check_place(path: Path) -> None:
    """Raise RequestError where a bench may not be written: no folder, or something else lies there."""
    if not path.parent.is_dir():
        raise RequestError(f"--save {path}: there is no folder {str(path.parent)!r}; make it, or choose another file")
    if path.exists():
        try:
            read_saved(path)
        except RequestError:
            raise RequestError(
                f"--save {path}: that file is there and holds no saved bench; remove it, or choose another"
            ) from None


def save_bench(path: Path, document: Document) -> None:
    """Write a document whole or not at all; raises RequestError as ``check_place`` does, or where it cannot be."""
    check_place(path)
    try:
        write_text(path, json.dumps(finite(dict(document)), allow_nan=False) + "\n")
    except OSError as error:
        raise RequestError(f"--save {path}: cannot be written: {error.strerror or error}") from None


def read_saved(path: Path) -> dict[str, Any]:
    """A document that was saved, or printed by ``--json``; raises RequestError for anything else."""
    try:
        document = parse_json(read_text(path))
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror or error}; --save FILE writes one") from None
    except ValueError:
        raise RequestError(f"{path} is no saved bench: it is not JSON; --save FILE writes one") from None
    if not isinstance(document, dict) or not _is_bench(document):
        raise RequestError(f"{path} is no saved bench; --save FILE writes one")
    if document["schema"] != 1:
        raise RequestError(f"{path}: schema {document['schema']} is not known to this version, which reads 1")
    return document


def _is_bench(document: Document) -> bool:
    results, environment = document.get("results"), document.get("environment")
    if "schema" not in document or not isinstance(environment, dict) or not isinstance(results, list) or not results:
        return False
    asked, described = document.get("asked", {}), document.get("targets", {})
    shapes = asked.get("shapes", {}) if isinstance(asked, dict) else None
    known = isinstance(shapes, dict) and all(isinstance(one, list) for one in shapes.values())
    told = isinstance(described, dict) and all(isinstance(one, dict) for one in described.values())
    return known and told and all(_is_entry(entry) for entry in results)


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    words = all(isinstance(entry.get(key), str) for key in ("target", "path"))
    numbers = all(_is_number(entry.get(key)) for key in ("ratio", "low", "high"))
    counted = all(entry.get(name) is None or _is_number(entry[name]) for name in COUNTS)
    fastest = entry.get("fastest")
    timed = fastest is None or (isinstance(fastest, list) and len(fastest) == 3 and all(map(_is_number, fastest)))
    return words and numbers and counted and timed


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def changes(then: Document, now: Document) -> list[Change]:
    """What has changed for every model of ``now``, in its order.

    Raises RequestError where nothing at all can be compared, since a check that checks nothing must not pass.
    """
    if _shapes(then) != _shapes(now):
        raise RequestError(
            f"the saved bench was made with {_said(_shapes(then))}, this one with {_said(_shapes(now))}: "
            "give the same --shape"
        )
    found = [_change(then, now, entry) for entry in now["results"] if not _is_reference(then, now, entry)]
    if not any(one.by for one in found):
        reasons = "; ".join(dict.fromkeys(one.why for one in found)) or "there is only the reference"
        raise RequestError(f"nothing can be compared with the saved bench: {reasons}")
    return found


def _shapes(document: Document) -> Mapping[str, Any]:
    asked = document.get("asked")
    found = asked.get("shapes") if isinstance(asked, dict) else None
    return found if isinstance(found, dict) else {}


def _said(shapes: Mapping[str, Any]) -> str:
    return " ".join(f"--shape {name}={','.join(map(str, sizes))}" for name, sizes in shapes.items()) or "no --shape"


def _first(document: Document, target: str) -> Entry:
    return next(entry for entry in document["results"] if entry["target"] == target)


def _same_first(then: Document, now: Document, target: str) -> bool:
    """Whether ratios on ``target`` are to the same file, byte for byte."""
    old, new = (_first(document, target).get("sha256") for document in (then, now))
    return old is not None and old == new


def _is_reference(then: Document, now: Document, entry: Entry) -> bool:
    """The file that ratios are taken to, then and now: its own is 1, and the others say what there is to say."""
    several = sum(one["target"] == entry["target"] for one in now["results"]) > 1
    counted = any(entry.get(name) is not None for name in COUNTS)
    if not several or entry is not _first(now, entry["target"]) or counted:
        return False
    known = any(one["target"] == entry["target"] for one in then["results"])
    return known and _same_first(then, now, entry["target"])


def _counterpart(then: Document, entry: Entry) -> Entry | str:
    """The saved entry of the same model: by path, else by file name, else by content; or why there is none."""
    here = [one for one in then["results"] if one["target"] == entry["target"]]
    if not here:
        targets = ", ".join(dict.fromkeys(one["target"] for one in then["results"]))
        return f"the saved bench has no target {entry['target']}, only {targets}"
    name = Path(entry["path"]).name
    tests: tuple[Callable[[Entry], bool], ...] = (
        lambda one: bool(one["path"] == entry["path"]),
        lambda one: Path(one["path"]).name == name,
        lambda one: one.get("sha256") is not None and one.get("sha256") == entry.get("sha256"),
    )
    for same in tests:
        matching: list[Entry] = [one for one in here if same(one)]
        if len(matching) == 1 or (matching and same is tests[0]):
            return matching[0]
    return f"the saved bench has no {name}, only {', '.join(Path(one['path']).name for one in here)}"


def _change(then: Document, now: Document, entry: Entry) -> Change:
    target, path = entry["target"], entry["path"]
    old = _counterpart(then, entry)
    if isinstance(old, str):
        return Change(target, path, "", "not compared", why=old)
    for name in COUNTS:
        if entry.get(name) is not None and old.get(name) is not None:
            counts = (float(old[name]), float(entry[name]))
            return _judged(target, path, name, [(one,) * 3 for one in counts], COUNTED_TIE)
    cpus = [_cpu(document, target) for document in (then, now)]
    if cpus[0] != cpus[1]:
        why = f"it was measured on {cpus[0] or 'an unknown CPU'}, this is {cpus[1] or 'unknown'}"
        return Change(target, path, "", "not compared", why=why)
    is_first = old is _first(then, target) or entry is _first(now, target)
    if _same_first(then, now, target) and not is_first:
        values = [(float(one["ratio"]), float(one["low"]), float(one["high"])) for one in (old, entry)]
        return _judged(target, path, "ratio", values, TIE)
    if old.get("fastest") and entry.get("fastest"):
        return _judged(target, path, "time", [tuple(map(float, one["fastest"])) for one in (old, entry)], ABSOLUTE_TIE)
    return Change(target, path, "", "not compared", why="its first model is another file, and no times are saved")


def _cpu(document: Document, target: str) -> str | None:
    """Of the device that the target runs on; of this machine where the target does not say."""
    described = document.get("targets")
    machine = described.get(target, {}).get("machine") if isinstance(described, dict) else None
    found = (machine if isinstance(machine, dict) and "cpu" in machine else document["environment"]).get("cpu")
    return found if isinstance(found, str) else None


def _judged(target: str, path: str, by: str, values: Sequence[tuple[float, ...]], tie: float) -> Change:
    (old, old_low, old_high), (new, new_low, new_high) = values
    apart = abs(new / old - 1.0) > tie
    verdict = "unchanged"
    if apart and new_low > old_high:
        verdict = "regression"
    elif apart and new_high < old_low:
        verdict = "improvement"
    return Change(target, path, by, verdict, (old, old_low, old_high), (new, new_low, new_high))

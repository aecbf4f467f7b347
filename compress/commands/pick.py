"""``paretopress pick``: copy a chosen ``.onnx`` file and its manifest out of a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from compress.commands.output import json_option, print_json, say
from targets.errors import NoFeasibleCandidate, RequestError


@click.command(name="pick")
@click.argument("run")
@click.option(
    "--pick",
    "which",
    default=None,
    help="fastest, knee, smallest or most_accurate; or a candidate's id.  [default: the run's own]",
)
@click.option("--target", help="On which of the run's targets.  [default: the first]")
@click.option("--out", help="The folder to copy into.  [default: ./TASK-ID]")
@json_option
def pick_command(run: str, which: str | None, target: str | None, out: str | None, as_json: bool) -> None:
    """Copy a chosen .onnx file out of a run.

    RUN is the folder of a search. With the file goes a manifest that says what it is and how it was measured.
    """
    from compress.reports.reporting import make_report, write_pick
    from compress.run_folder.runs import open_for_reading, reading

    with reading(run):
        opened = open_for_reading(run)
        report = make_report(opened)
    name = target or next(iter(report["targets"]), "")
    if name not in report["targets"]:
        raise RequestError(f"target {name!r} is not in this run; it has {', '.join(report['targets'])}")
    chosen, entry = _chosen(report, which or opened.request.pick, name, opened.request.constraints)
    folder = Path(out) if out else Path(re.sub(r"[^\w.-]+", "-", f"{report['task']}-{chosen}"))
    try:
        with reading(run):
            path = write_pick(opened, chosen, name, folder, entry)
    except OSError as error:
        raise RequestError(
            f"{str(folder)!r} cannot be written: {error.strerror or error}; choose another --out"
        ) from None
    if as_json:
        print_json({"id": chosen, "path": str(path), "manifest": str(folder / "manifest.json")})
    else:
        say(path)


def _chosen(report: dict[str, Any], which: str, target: str, constraints: tuple[str, ...]) -> tuple[str, Any]:
    """The candidate's id, and its entry in the report where ``which`` is a pick's name and not an id (else None).

    Raises NoFeasibleCandidate where the pick found nothing, RequestError where ``which`` names nothing.
    """
    picks = report["picks"][target]
    if which in picks:
        if picks[which] is None:
            raise NoFeasibleCandidate(
                f"no candidate meets {', '.join(constraints)} on {target}; see `paretopress front`"
            )
        return picks[which]["id"], picks[which]
    if which in {candidate["id"] for candidate in report["candidates"]}:
        return which, None
    raise RequestError(f"pick {which!r}: use one of {', '.join(picks)}, or a candidate's id")

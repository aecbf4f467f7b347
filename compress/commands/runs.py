"""Runs: carried here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.commands.output import _JSON, _console, _print_json
from targets.errors import NoFeasibleCandidate, RequestError

if TYPE_CHECKING:
    pass


@click.command()
@click.argument("run")
@click.option("--target", help="Default: all of the run's.")
@_JSON
def front(run: str, target: str | None, as_json: bool) -> None:
    """Print the front of a finished or running search."""
    report = _report(run)
    if target is not None and target not in report["targets"]:
        raise RequestError(f"target {target!r} is not in this run; it has {', '.join(report['targets'])}")
    if as_json:
        by_id = {candidate["id"]: candidate for candidate in report["candidates"]}
        names = [target] if target else list(report["front"])
        _print_json({name: [by_id[i] for i in report["front"][name]] for name in names})
    else:
        from compress.reports.tables import print_front

        print_front(report, _console(), target)


@click.command()
@click.argument("run")
@click.option("--pick", "which", default=None, help="fastest, knee, smallest or most_accurate; or a candidate's id.")
@click.option("--target", help="Default: the run's first.")
@click.option("--out", help="The folder to copy into.  [default: ./TASK-ID]")
@_JSON
def pick(run: str, which: str | None, target: str | None, out: str | None, as_json: bool) -> None:
    """Copy the chosen .onnx file and its manifest out of a run."""
    from compress.reports.reporting import write_pick
    from compress.run_folder.runs import open_for_reading

    opened = open_for_reading(run)
    report = _report(run)
    name = target or next(iter(report["targets"]))
    if name not in report["targets"]:
        raise RequestError(f"target {name!r} is not in this run; it has {', '.join(report['targets'])}")
    chosen, entry = _chosen(report, which or opened.request.pick, name, opened.request.constraints)
    folder = Path(out) if out else Path(f"{report['task']}-{chosen}")
    try:
        path = write_pick(opened, chosen, name, folder, entry)
    except OSError as error:
        raise RequestError(
            f"{str(folder)!r} cannot be written: {error.strerror or error}; choose another --out"
        ) from None
    _print_json(
        {"id": chosen, "path": str(path), "manifest": str(folder / "manifest.json")}
    ) if as_json else click.echo(path)


@click.command()
@click.argument("run")
@click.option("--out", help="The HTML file.  [default: RUN/report.html]")
@_JSON
def report(run: str, out: str | None, as_json: bool) -> None:
    """Write the HTML report of a finished or running search."""
    from compress.reports.reporting import make_report, write_html
    from compress.run_folder.runs import open_for_reading

    opened = open_for_reading(run)
    document = _report(run)
    try:
        path = write_html(opened, Path(out) if out else None, make_report(opened))
    except OSError as error:
        raise RequestError(
            f"{out or run!r} cannot be written: {error.strerror or error}; choose another --out"
        ) from None
    _print_json(document) if as_json else click.echo(path)


def _report(run: str) -> dict[str, Any]:
    from compress.reports.reporting import make_report
    from compress.run_folder.runs import open_for_reading

    return make_report(open_for_reading(run))


def _chosen(report: dict[str, Any], which: str, target: str, constraints: tuple[str, ...]) -> tuple[str, Any]:
    """(id, pick) for a pick's name or a candidate's id."""
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

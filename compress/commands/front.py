"""``paretopress front``: print the front of a finished or running search."""

from __future__ import annotations

from typing import Any

import click

from compress.commands.output import json_option, make_console, print_json
from targets.errors import RequestError


@click.command(name="front")
@click.argument("run")
@click.option("--target", help="One target of the run.  [default: all of them]")
@json_option
def front_command(run: str, target: str | None, as_json: bool) -> None:
    """Print the front of a finished or running search.

    RUN is the folder of the search. The front is the candidates that meet the limits and that no other one beats in
    every objective.
    """
    from compress.reports.reporting import make_report
    from compress.run_folder.runs import open_for_reading, reading

    with reading(run):
        report = make_report(open_for_reading(run))
        _print_front(report, target, as_json=as_json)


def _print_front(report: dict[str, Any], target: str | None, *, as_json: bool) -> None:
    """Print the front of one target, or of all; raises RequestError for a target that is not in the run."""
    if target is not None and target not in report["targets"]:
        raise RequestError(f"target {target!r} is not in this run; it has {', '.join(report['targets'])}")
    if as_json:
        by_id = {candidate["id"]: candidate for candidate in report["candidates"]}
        names = [target] if target else list(report["front"])
        print_json({name: [by_id[i] for i in report["front"][name]] for name in names})
    else:
        from compress.reports.tables import print_front

        print_front(report, make_console(), target)

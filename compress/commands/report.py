"""``paretopress report``: write the HTML report of a finished or running search."""

from __future__ import annotations

from pathlib import Path

import click

from compress.commands.output import json_option, print_json, say
from targets.errors import RequestError


@click.command(name="report")
@click.argument("run")
@click.option("--out", help="The HTML file to write.  [default: RUN/report.html]")
@json_option
def report_command(run: str, out: str | None, as_json: bool) -> None:
    """Write the HTML report of a finished or running search.

    RUN is the folder of the search. With --json, the same report is printed as one JSON document as well.
    """
    from compress.reports.reporting import make_report, write_html
    from compress.run_folder.runs import open_for_reading, reading

    try:
        with reading(run):
            opened = open_for_reading(run)
            document = make_report(opened)
            path = write_html(opened, Path(out) if out else None, document)
    except OSError as error:
        raise RequestError(
            f"{out or run!r} cannot be written: {error.strerror or error}; choose another --out"
        ) from None
    print_json(document) if as_json else say(path)

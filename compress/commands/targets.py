"""``paretopress targets``: list the targets that there are, and install what pip alone cannot."""

from __future__ import annotations

from pathlib import Path

import click

from compress.commands.output import json_option, make_console, print_json, say


@click.command(name="targets")
@click.option("--install", metavar="NAME", help="Install what pip alone cannot, such as arm-emulated.")
@click.option(
    "--sources",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="With --install cortex-m: an archive of what it is built of, which is fetched otherwise.",
)
@json_option
def targets_command(install: str | None, sources: Path | None, as_json: bool) -> None:
    """List the targets, and what installs those that are missing."""
    import targets

    if install is not None:
        from targets import registry

        folder = registry.install(install, lambda text: say(text, err=True), sources)
        print_json({"target": install, "folder": folder}) if as_json else say(folder)
        return
    rows = targets.available()
    if as_json:
        print_json(rows)
    else:
        from compress.reports.tables import print_targets

        print_targets(rows, make_console())

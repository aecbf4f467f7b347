"""``paretopress recipes``: list the ready-made tasks, with what a search of each is expected to reach."""

from __future__ import annotations

import click

from compress.commands.output import json_option, make_console, own_stdout, print_json


@click.command(name="recipes")
@json_option
def recipes_command(as_json: bool) -> None:
    """List the ready-made tasks.

    With each stands what a search of it is expected to reach.
    """
    from compress.tasks.recipes import expectations, in_words, recipes

    with own_stdout():
        rows, expected = recipes(), expectations()
    if as_json:
        print_json([{**row, "expected": expected.get(row["name"])} for row in rows])
    else:
        from compress.reports.tables import print_recipes

        for row in rows:
            if row["name"] in expected:
                row["description"] += f" Expected: {in_words(expected[row['name']])}."
        print_recipes(rows, make_console())

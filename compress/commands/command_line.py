"""The command ``paretopress``: stdout carries the result, stderr the progress.

Exit status: 0 done and satisfied; 3 done, but no candidate meets the constraints; 2 the request was wrong; 130
interrupted; 1 anything else. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from compress.commands.output import (
    _JSON,
    FAILED,
    INTERRUPTED,
    SATISFIED,
    UNSATISFIED,
    WRONG,
    _console,
    _own_stdout,
    _print_json,
)
from compress.commands.runs import front, pick, report
from compress.commands.search import search
from compress.values.error_lines import one_line
from targets.errors import CompressError, NoFeasibleCandidate, RequestError

if TYPE_CHECKING:
    pass


def _print_version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        from importlib import metadata

        click.echo(f"paretopress {metadata.version('paretopress')}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
def cli() -> None:
    """Make a trained network small and fast on the device it must run on, with numbers that hold up."""


for _command in (search, front, pick, report):
    cli.add_command(_command)


@cli.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL.onnx...")
@click.option("--target", "targets", multiple=True, help="As ort-cpu:threads=2. Repeatable.  [default: ort-cpu]")
@click.option(
    "--shape", "shapes", multiple=True, help="Of an input, as x=1,3,224,224; else open axes are 1. Repeatable."
)
@click.option("--data", help="An .npz with arrays named as the inputs; without it, seeded random ones.")
@click.option("--precise", help="Go on until every ratio is known within this, as 0.5%.  [default: 1%]")
@click.option("--time", "time", help="At most so long for each target, as 10s or 2min.  [default: 30s]")
@click.option("--save", metavar="FILE", help="Write the result, with its raw samples.")
@click.option("--compare", metavar="FILE", help="With a saved result: status 3 on a significant regression.")
@_JSON
def bench(models: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Time models on a target; with several, paired ratios to the first.

    A ratio below 1 is faster. Models are run in turns in several fresh processes, at batch 1. Differences below 3 %
    are called ties.

    With --compare, ratios to the same first model are compared; a regression is significant where the intervals are
    disjoint and the ratios more than 3 % apart. Exit status: 0 no regression, 3 a significant regression, 2 the
    request was wrong.
    """
    from compress.commands.benching import run_bench

    benched = run_bench(models, **options)
    if as_json:
        _print_json(benched.document)
    else:
        from compress.reports.bench_tables import print_bench

        print_bench(benched.document, benched.changes, _console())
    for text in benched.document["warnings"]:
        click.echo(f"warning: {text}", err=True)
    if benched.refused is not None:
        raise benched.refused
    if benched.worse:
        raise SystemExit(UNSATISFIED)


@cli.command()
@click.argument("model")
@click.option("--against", required=True, help="The model it should agree with.")
@click.option("--target", default="ort-cpu", show_default=True)
@click.option("--data", help="An .npz with arrays named as the inputs; without it, seeded random ones.")
@_JSON
def check(model: str, against: str, target: str, data: str | None, as_json: bool) -> None:
    """Compare MODEL with another: parity, operators the target lacks, size."""
    from compress.commands.checking import check_models, print_check

    found = check_models(Path(model), Path(against), target, Path(data) if data else None)
    _print_json(found) if as_json else print_check(found, _console())
    raise SystemExit(SATISFIED if found["runs"] and found["same_interface"] else UNSATISFIED)


@cli.command(name="targets")
@click.option("--install", metavar="NAME", help="Bring what pip alone cannot, for arm-emulated.")
@_JSON
def list_targets(install: str | None, as_json: bool) -> None:
    """List the targets: what is there, what is missing and how to install it."""
    import targets as package

    if install is not None:
        from targets import registry

        folder = registry.install(install, lambda text: click.echo(text, err=True))
        _print_json({"target": install, "folder": folder}) if as_json else click.echo(folder)
        return
    rows = package.available()
    if as_json:
        _print_json(rows)
    else:
        from compress.reports.tables import print_targets

        print_targets(rows, _console())


@cli.command(name="recipes")
@_JSON
def list_recipes(as_json: bool) -> None:
    """List the ready-made tasks."""
    from compress.tasks.recipes import expectations, in_words, recipes

    with _own_stdout():
        rows, expected = recipes(), expectations()
    if as_json:
        _print_json([{**row, "expected": expected.get(row["name"])} for row in rows])
    else:
        from compress.reports.tables import print_recipes

        for row in rows:
            if row["name"] in expected:
                row["description"] += f" Expected: {in_words(expected[row['name']])}."
        print_recipes(rows, _console())


def main() -> NoReturn:
    """Run the command line and exit; every error of ours is one line."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        cli.main(standalone_mode=False)
        status = SATISFIED
    except click.exceptions.Abort:
        status = INTERRUPTED
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        status = INTERRUPTED
    except click.ClickException as error:
        error.show()
        status = WRONG
    except (RequestError, NoFeasibleCandidate) as error:
        click.echo(f"paretopress: {error}", err=True)
        status = WRONG if isinstance(error, RequestError) else UNSATISFIED
    except CompressError as error:
        click.echo(f"paretopress: {error}", err=True)
        status = FAILED
    except BrokenPipeError:
        # Whoever read us has gone; what is left to print would only raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = FAILED
    except Exception as error:
        with tempfile.NamedTemporaryFile("w", prefix="paretopress-", suffix=".trace", delete=False) as file:
            traceback.print_exc(file=file)
        click.echo(f"paretopress: {one_line(error, kind=True)}; stack trace: {file.name}", err=True)
        status = FAILED
    sys.exit(status)


def _terminate(*_: object) -> None:
    """SIGTERM ends a run as Ctrl-C does: with everything kept."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()

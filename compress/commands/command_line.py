"""The command ``paretopress``: the group of its commands, and how the program ends.

Every command is a file of its own here, named as the command is. stdout carries the result, stderr the progress.
Exit status: 0 done and satisfied; 3 done, but no candidate meets the constraints; 2 the request was wrong; 130
interrupted; 1 anything else. Nothing heavy is imported before a command needs it, so that ``--help`` is instant.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import NoReturn

import click

from compress.commands.bench import bench_command
from compress.commands.check import check_command
from compress.commands.front import front_command
from compress.commands.output import FAILED, INTERRUPTED, SATISFIED, UNSATISFIED, WRONG, say
from compress.commands.pick import pick_command
from compress.commands.recipes import recipes_command
from compress.commands.report import report_command
from compress.commands.search import search_command
from compress.commands.targets import targets_command
from compress.values.error_lines import one_line
from compress.values.stack_traces import save_trace
from targets.errors import CompressError, NoFeasibleCandidate, RequestError

_COMMANDS = (
    search_command,
    front_command,
    pick_command,
    report_command,
    bench_command,
    check_command,
    targets_command,
    recipes_command,
)


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


for _command in _COMMANDS:
    cli.add_command(_command)


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
        # It repeats what was typed, and that may be the name of somebody's file.
        text = io.StringIO()
        error.show(file=text)
        say(text.getvalue().rstrip(), err=True, keep="\n")
        status = WRONG
    except (RequestError, NoFeasibleCandidate) as error:
        say(f"paretopress: {error}", err=True)
        status = WRONG if isinstance(error, RequestError) else UNSATISFIED
    except CompressError as error:
        say(f"paretopress: {error}", err=True)
        status = FAILED
    except BrokenPipeError:
        # Whoever read us has gone; what is left to print would only raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = FAILED
    except SystemExit:
        raise  # a command's own status: what user code makes of sys.exit() has become an error before it comes here
    except BaseException as error:  # also what is no Exception, as asyncio's CancelledError
        say(f"paretopress: {one_line(error, kind=True)}; stack trace: {save_trace()}", err=True)
        status = FAILED
    sys.exit(status)


def _terminate(*_: object) -> None:
    """SIGTERM ends a run as Ctrl-C does: with everything kept."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()

"""``paretopress search``: search for smaller and faster versions of a task's model, or plan it with ``--dry-run``."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.commands.output import (
    INTERRUPTED,
    SATISFIED,
    UNSATISFIED,
    json_option,
    make_console,
    own_stdout,
    print_json,
    say,
)

if TYPE_CHECKING:
    from compress.searching.requests import Asked

_STARTED = time.monotonic()
"""When the program began, as nearly as it can be known here: ``--time`` is the time of the whole call."""


class _Workers(click.ParamType[int | str]):
    """A number, or ``auto``; what is neither is refused where all options are checked."""

    name = "integer or auto"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:  # noqa: ARG002  click's signature
        """The number that a text says, else the text itself."""
        return int(value) if str(value).lstrip("-").isdigit() else value


WORKERS = _Workers()


@click.command(name="search")
@click.argument("task")
@click.option("--data", help="Where the task's data are; handed to task(data=...).")
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="Where to measure: a runtime and its settings, as ort-cpu:threads=2. Repeatable.  [default: ort-cpu]",
)
@click.option(
    "--objective",
    "objectives",
    multiple=True,
    help="What the front spans: two or more of quality, latency, size, memory, instructions and cycles. Repeatable.  "
    "[default: quality, latency]",
)
@click.option(
    "--constraint",
    "constraints",
    multiple=True,
    help="A limit, as quality_drop<=0.01 or size<=500kB. Repeatable.  [default: quality_drop<=0.01]",
)
@click.option("--trials", type=int, help="How many networks to train in the whole run.  [default: no limit]")
@click.option("--time", "time", help="How long this call may take in all, as 90s or 20min.  [default: no limit]")
@click.option("--seed", type=int, help="The seed of everything random.  [default: 0]")
@click.option("--sampler", help="What proposes configs: auto, gp, tpe, nsga2, random or grid.  [default: auto]")
@click.option("--device", default="auto", show_default=True, help="Where to fine-tune: auto, cpu or cuda.")
@click.option(
    "--workers",
    type=WORKERS,
    help="Networks trained at once, each on its own cores; auto: one for each core, or for each GPU.  "
    "[default: 1, or as many as a cluster has room for]",
)
@click.option("--cluster", help="Train on a Ray cluster: ray://HOST:10001, or auto for one that runs here.")
@click.option("--worker-cpus", type=int, default=1, show_default=True, help="CPUs of a training on a cluster.")
@click.option("--worker-gpus", type=float, default=0.0, show_default=True, help="GPUs of a training on a cluster.")
@click.option(
    "--memory", help="How much memory what is done with samples may take, as 2GB.  [default: half of what is free]"
)
@click.option("--pick", help="What best/ holds: fastest, knee, smallest or most_accurate.  [default: fastest]")
@click.option(
    "--keep", default="all", show_default=True, help="Whose files stay: those of all candidates, or of the front."
)
@click.option("--out", help="The run's folder; one that exists is continued.  [default: runs/TASK-NAME]")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Train nothing: say what can be pruned and what cannot and why, and how long a trial takes.",
)
@json_option
def search_command(task: str, data: str | None, as_json: bool, dry_run: bool, **options: Any) -> None:
    """Search for smaller, faster versions of a model.

    The best of what is found is confirmed on test data, which the search never saw.

    TASK is a recipe's name, a .py task file, a package.module, or an .onnx file (with --data FILE.npz).

    With neither --trials nor --time, the search ends when further trials hardly gain anything.

    Exit status: 0 the pick meets the limits and is not refuted on test, 3 no candidate does, 2 the request was wrong,
    130 interrupted (the command that continues is printed), 1 anything else.
    """
    if dry_run:
        from compress.reports.plans import print_plan
        from compress.searching.dry_runs import plan

        with own_stdout():
            planned = plan(_asked(task, data, options))
        print_json(planned) if as_json else print_plan(planned, make_console())
        return
    with own_stdout():
        report, asked = _searched(task, data, options)
    print_json(report) if as_json else _print_result(report, asked)
    raise SystemExit(SATISFIED if report["satisfied"] else UNSATISFIED)


def _asked(task: str, data: str | None, options: dict[str, Any]) -> Asked:
    """The options as a search asks them; what is wrong in them is said before the task is loaded."""
    from compress.executing.worker_counts import Cluster
    from compress.searching.requests import Asked, check_options
    from compress.tasks.loading import load_task
    from compress.values.durations import parse_duration

    names = ("trials", "time", "seed", "sampler", "device", "workers", "pick", "keep", "memory")
    given = {name: options[name] for name in names}
    check_options(**given)
    address = options["cluster"]
    cluster = None if address is None else Cluster(address, options["worker_cpus"], options["worker_gpus"])
    here = Path.cwd()
    loaded = load_task(task, data, parse_duration(options["time"]))
    return Asked(
        loaded.task, list(options["targets"]) or None, options["objectives"] or None, options["constraints"] or None,
        out=options["out"], space=loaded.space, brought=loaded, command="paretopress " + shlex.join(sys.argv[1:]),
        here=here, cluster=cluster, **given,
    )  # fmt: skip


def _searched(task: str, data: str | None, options: dict[str, Any]) -> tuple[dict[str, Any], Asked]:
    """Load the task and search; the report, and what was asked. Ctrl-C ends with status 130."""
    from compress.searching.progress import Live
    from compress.searching.searching import run_search

    progress, kept = Live(), ""
    try:
        asked = _asked(task, data, options)
        kept = f"; everything finished so far is kept in {asked.shown}"
        result = run_search(replace(asked, time=_remaining(options["time"])), progress)
        return result.report, asked
    except KeyboardInterrupt:
        progress.close()
        again = "paretopress " + shlex.join(sys.argv[1:])
        say(f"interrupted{kept}. Continue with:", err=True)
        say(f"  {again}", err=True)
        raise SystemExit(INTERRUPTED) from None
    finally:
        progress.close()


def _remaining(text: str | None) -> float | None:
    """``--time`` less what importing and loading the task took: it is the time of the whole call."""
    from compress.values.durations import parse_duration

    seconds = parse_duration(text)
    return None if seconds is None else max(1.0, seconds - (time.monotonic() - _STARTED))


def _print_result(report: dict[str, Any], asked: Asked) -> None:
    from compress.reports.tables import print_picks

    print_picks(report, make_console())
    made = [name for name in ("model.tflite", "model.onnx") if (asked.folder / "best" / name).exists()]
    if made:
        say(f"best model: {asked.shown / 'best' / made[0]}")
    say(f"report: {asked.shown / 'report.html'}")

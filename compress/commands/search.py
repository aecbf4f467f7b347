"""Search: carried here."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.commands.output import _JSON, INTERRUPTED, SATISFIED, UNSATISFIED, _console, _own_stdout, _print_json

if TYPE_CHECKING:
    pass

_STARTED = time.monotonic()


@click.command()
@click.argument("task")
@click.option("--data", help="Where the task's data is; passed to task(data=...).")
@click.option("--target", "targets", multiple=True, help="Runtime and settings, as ort-cpu:threads=2. Repeatable.")
@click.option(
    "--objective", "objectives", multiple=True, help="quality, latency, size, memory, instructions. Repeatable."
)
@click.option("--constraint", "constraints", multiple=True, help="As quality_drop<=0.01 or size<=500kB. Repeatable.")
@click.option("--trials", type=int, help="Trials of the whole run.")
@click.option("--time", "time", help="Time of this call, as 90s or 20min, all included.")
@click.option("--seed", type=int, help="Default 0.")
@click.option("--sampler", help="auto, gp, tpe, nsga2, random or grid.")
@click.option("--device", default="auto", show_default=True, help="Where to fine-tune: auto, cpu or cuda.")
@click.option("--workers", type=int, default=1, show_default=True, help="Trainings at once.")
@click.option("--pick", help="What best/ holds: fastest (default), knee, smallest or most_accurate.")
@click.option("--keep", default="all", show_default=True, help="Which artifacts stay: all, or those of the front.")
@click.option("--out", help="The run's folder; one that exists is continued.  [default: runs/TASK-NAME]")
@click.option("--dry-run", is_flag=True, help="Say what would be searched and how long a trial takes; train nothing.")
@_JSON
def search(task: str, data: str | None, as_json: bool, dry_run: bool, **options: Any) -> None:
    """Search for smaller, faster versions of TASK's model, and confirm the best.

    TASK: a recipe's name, a .py task file, a package.module, or an .onnx file (with --data FILE.npz).
    """
    if dry_run:
        from compress.reports.plans import print_plan
        from compress.searching.dry_runs import plan

        with _own_stdout():
            planned = plan(task, data, **options)
        _print_json(planned) if as_json else print_plan(planned, _console())
        return
    with _own_stdout():
        report, out = _searched(task, data, options)
    _print_json(report) if as_json else _print_result(report, out)
    raise SystemExit(SATISFIED if report["satisfied"] else UNSATISFIED)


def _searched(task: str, data: str | None, options: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    """Load the task and search; the report and the run's folder. Ctrl-C ends with status 130."""
    from compress.searching.progress import Live
    from compress.searching.requests import check_options
    from compress.searching.searching import search as run_search
    from compress.tasks.loading import load_task

    given = {name: options[name] for name in ("trials", "seed", "sampler", "device", "workers", "pick", "keep")}
    given["time"] = _remaining(options["time"])
    check_options(**given)
    again = "paretopress " + shlex.join(sys.argv[1:])
    progress, kept = Live(), ""
    try:
        loaded = load_task(task, data)
        out = Path(options["out"] or Path("runs") / loaded.task.name)
        kept = f"; everything finished so far is kept in {out}"
        fresh = not (out / "run.json").exists()
        result = run_search(
            loaded.task,
            target=list(options["targets"]) or None,
            objectives=options["objectives"] or (loaded.objectives if fresh else None),
            constraints=options["constraints"] or (loaded.constraints if fresh else None),
            out=out,
            space=loaded.space,
            progress=progress,
            command=again,
            **given,
        )
        return result.report, out
    except KeyboardInterrupt:
        progress.close()
        click.echo(f"interrupted{kept}. Continue with:\n  {again}", err=True)
        raise SystemExit(INTERRUPTED) from None
    finally:
        progress.close()


def _remaining(text: str | None) -> float | None:
    """``--time`` less what importing and loading the task took: it is the time of the whole call."""
    from compress.values.durations import parse_duration

    seconds = parse_duration(text)
    return None if seconds is None else max(1.0, seconds - (time.monotonic() - _STARTED))


def _print_result(report: dict[str, Any], out: Path) -> None:
    from compress.reports.tables import print_picks

    print_picks(report, _console())
    best = out / "best" / "model.onnx"
    if best.exists():
        click.echo(f"best model: {best}")
    click.echo(f"report: {out / 'report.html'}")

"""The command ``paretopress``: stdout carries the result, stderr the progress.

Exit status: 0 done and satisfied; 3 done, but no candidate meets the constraints; 2 the request was wrong; 130
interrupted; 1 anything else. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from targets.errors import CompressError, NoFeasibleCandidate, RequestError

if TYPE_CHECKING:
    from rich.console import Console

SATISFIED, FAILED, WRONG, UNSATISFIED, INTERRUPTED = 0, 1, 2, 3, 130

_STARTED = time.monotonic()
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


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


@cli.command()
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
        from compress.planning import plan, print_plan

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
    from compress.loading import load_task
    from compress.options import check_options
    from compress.progress import Live
    from compress.searching import search as run_search

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
    from compress.benching import run_bench

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
    from compress.checking import check_models, print_check

    found = check_models(Path(model), Path(against), target, Path(data) if data else None)
    _print_json(found) if as_json else print_check(found, _console())
    raise SystemExit(SATISFIED if found["runs"] and found["same_interface"] else UNSATISFIED)


@cli.command()
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


@cli.command()
@click.argument("run")
@click.option("--pick", "which", default=None, help="fastest, knee, smallest or most_accurate; or a candidate's id.")
@click.option("--target", help="Default: the run's first.")
@click.option("--out", help="The folder to copy into.  [default: ./TASK-ID]")
@_JSON
def pick(run: str, which: str | None, target: str | None, out: str | None, as_json: bool) -> None:
    """Copy the chosen .onnx file and its manifest out of a run."""
    from compress.reports.reporting import write_pick
    from compress.runs import open_for_reading

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


@cli.command()
@click.argument("run")
@click.option("--out", help="The HTML file.  [default: RUN/report.html]")
@_JSON
def report(run: str, out: str | None, as_json: bool) -> None:
    """Write the HTML report of a finished or running search."""
    from compress.reports.reporting import make_report, write_html
    from compress.runs import open_for_reading

    opened = open_for_reading(run)
    document = _report(run)
    try:
        path = write_html(opened, Path(out) if out else None, make_report(opened))
    except OSError as error:
        raise RequestError(
            f"{out or run!r} cannot be written: {error.strerror or error}; choose another --out"
        ) from None
    _print_json(document) if as_json else click.echo(path)


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
    from compress.expectations import expectations, in_words
    from compress.loading import recipes

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
        lines = str(error).strip().splitlines()
        click.echo(
            f"paretopress: {type(error).__name__}: {lines[0] if lines else ''}; stack trace: {file.name}", err=True
        )
        status = FAILED
    sys.exit(status)


def _terminate(*_: object) -> None:
    """SIGTERM ends a run as Ctrl-C does: with everything kept."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def _own_stdout() -> Iterator[None]:
    """What user code prints meanwhile goes to stderr, that of programs it starts as well: stdout stays ours."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _remaining(text: str | None) -> float | None:
    """``--time`` less what importing and loading the task took: it is the time of the whole call."""
    from compress.durations import parse_duration

    seconds = parse_duration(text)
    return None if seconds is None else max(1.0, seconds - (time.monotonic() - _STARTED))


def _report(run: str) -> dict[str, Any]:
    from compress.reports.reporting import make_report
    from compress.runs import open_for_reading

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


def _print_result(report: dict[str, Any], out: Path) -> None:
    from compress.reports.tables import print_picks

    print_picks(report, _console())
    best = out / "best" / "model.onnx"
    if best.exists():
        click.echo(f"best model: {best}")
    click.echo(f"report: {out / 'report.html'}")


def _print_json(document: Any) -> None:
    from targets.documents import finite

    click.echo(json.dumps(finite(document), indent=1, allow_nan=False))


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    # Tables are made for about 110 columns; a pipe has no width of its own.
    return console if console.is_terminal else Console(highlight=False, width=120)


if __name__ == "__main__":
    main()

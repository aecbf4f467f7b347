"""``paretopress bench``: time models on targets, and compare the times with saved ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.commands.output import UNSATISFIED, json_option, make_console, print_json, say
from targets.errors import RequestError

if TYPE_CHECKING:
    import numpy as np

    from targets.benches.regressions import Change


@click.command(name="bench")
@click.argument("models", nargs=-1, required=True, metavar="MODEL.onnx...")
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="A runtime and its settings, as ort-cpu:threads=2. Repeatable.  [default: ort-cpu]",
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    help="The shape of an input, as x=1,3,224,224; dimensions that the file leaves open are 1 otherwise. Repeatable.",
)
@click.option("--data", help="An .npz file with arrays named as the inputs; without it, seeded random ones.")
@click.option("--precise", help="Go on until every ratio is known within this much, as 0.5%.  [default: 1%]")
@click.option("--time", "time", help="The longest to measure on each target, as 10s or 2min.  [default: 30s]")
@click.option("--save", metavar="FILE", help="Write the result with its raw samples, for a later --compare.")
@click.option("--compare", metavar="FILE", help="Compare with a saved result; status 3 on a significant regression.")
@click.option("--tune", is_flag=True, help="Find the settings of each target with which one model is fastest.")
@json_option
def bench_command(models: tuple[str, ...], as_json: bool, tune: bool, **options: Any) -> None:
    """Time models on one or several targets.

    With several models, each gets its paired ratio to the first; below 1 is faster. Models are run in turns in several
    fresh processes, at batch 1. Differences below 3 % are called ties.

    With --compare, ratios to the same first model are compared; a regression is significant where the intervals are
    disjoint and the ratios more than 3 % apart. Exit status: 0 no regression, 3 a significant regression, 2 the
    request was wrong.

    With --tune, settings that change nothing but the speed (threads, optimization level) are tried on one model, each
    in turns with the best so far; what comes out is the target to use.
    """
    if tune:
        _tune(models, as_json, **options)
        return
    benched = run_bench(models, **options)
    if as_json:
        print_json(benched.document)
    else:
        from compress.reports.bench_tables import print_bench

        print_bench(benched.document, benched.changes, make_console())
    for text in benched.document["warnings"]:
        say(f"warning: {text}", err=True)
    if benched.refused is not None:
        raise benched.refused
    if benched.worse:
        raise SystemExit(UNSATISFIED)


def _tune(models: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Tune each target for one model, and print what is fastest."""
    from compress.reports.bench_progress import LiveBench
    from compress.reports.tuning_tables import print_tuned
    from compress.values.durations import parse_duration
    from targets.benches import benching, tuning
    from targets.registry import DEFAULT

    if len(models) > 1:
        raise RequestError(f"--tune takes one model, {len(models)} were given; tune them one by one")
    for name in ("save", "compare", "precise"):
        if options[name]:
            raise RequestError(f"--tune does not go with --{name}; leave one of them out")
    sizes = benching.shapes_for(models[0], benching.parse_shapes(options["shapes"]))
    inputs, seconds = read_inputs(options["data"]), parse_duration(options["time"])
    with LiveBench(models, tuning.TURN) as live:
        found = [
            tuning.tune(models[0], target, shapes=sizes, inputs=inputs, seconds=seconds, watch=live)
            for target in options["targets"] or (DEFAULT,)
        ]
    if as_json:
        print_json({"schema": 1, "tuned": [one.to_json() for one in found]})
    else:
        print_tuned(found, make_console())


@dataclass(frozen=True)
class Benched:
    """A finished measurement, and what has changed since the saved one that it was to be compared with."""

    document: dict[str, Any]
    """What ``bench --json`` prints."""
    changes: list[Change]
    """One entry for each model that the saved result has as well."""
    refused: RequestError | None = None
    """Why it cannot be compared: known only when it is measured, and no reason to throw that away."""

    @property
    def worse(self) -> bool:
        """Whether there is a significant regression."""
        return any(change.verdict == "regression" for change in self.changes)


def run_bench(
    models: tuple[str, ...],
    *,
    targets: tuple[str, ...],
    shapes: tuple[str, ...],
    data: str | None,
    precise: str | None,
    time: str | None,
    save: str | None,
    compare: str | None,
) -> Benched:
    """Measure, compare with what ``compare`` names, write what ``save`` names.

    Everything that can be wrong in the options is found before anything is measured. Raises RequestError for such an
    option, and otherwise what ``targets.benches.benching.bench`` raises.
    """
    from compress.reports.bench_progress import LiveBench
    from compress.values.durations import parse_duration
    from targets.benches import benching, regressions
    from targets.benches.comparing import careful
    from targets.registry import DEFAULT

    then = regressions.read_saved(Path(compare)) if compare else None
    if save:
        regressions.check_place(Path(save))
    protocol = careful(parse_share(precise), parse_duration(time))
    sizes, inputs = benching.parse_shapes(shapes), read_inputs(data)
    with LiveBench(models, protocol) as live:
        found = benching.bench(
            models, targets or (DEFAULT,), shapes=sizes, inputs=inputs, protocol=protocol, watch=live
        )
    full = found.to_json(samples=True)
    benched = _compared(found.to_json(), full, then)
    if compare:
        listed = [change.to_json() for change in benched.changes]
        benched.document["compared"] = {"with": compare, "changes": listed}
    if save and _may_save(benched, save, compare):
        regressions.save_bench(Path(save), full)
    return benched


def _compared(document: dict[str, Any], full: dict[str, Any], then: dict[str, Any] | None) -> Benched:
    """The measurement with its changes since ``then`` (None: there is nothing to compare it with)."""
    from targets.benches import regressions

    if then is None:
        return Benched(document, [])
    try:
        return Benched(document, regressions.changes(then, full))
    except RequestError as error:
        return Benched(document, [], error)


def _may_save(benched: Benched, save: str, compare: str | None) -> bool:
    """Whether to save the result: a regression must not become what the next run is compared with."""
    if not benched.worse or not compare or not Path(save).exists() or not Path(save).samefile(compare):
        return True
    benched.document["warnings"].append(f"not saved: a regression was found, so {save} keeps what it held")
    return False


def parse_share(text: str | None) -> float | None:
    """A percentage as a share of one; None stays None.

    Raises RequestError for what is no percentage.

    >>> parse_share("0.5%")
    0.005
    """
    if text is None:
        return None
    try:
        return float(text.strip().removesuffix("%")) / 100
    except ValueError:
        raise RequestError(f"--precise {text!r} is not allowed; write a percentage, as 0.5%") from None


def read_inputs(path: str | None) -> dict[str, np.ndarray] | None:
    """The arrays of an ``.npz`` file by their names; None where there is no path.

    Raises RequestError for a file that cannot be read or is no such file.
    """
    if path is None:
        return None
    from compress.values.arrays import load_arrays

    try:
        return load_arrays(Path(path))
    except OSError as error:
        raise RequestError(f"--data {path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise RequestError(
            f"--data {path} is no .npz file of plain arrays ({error}); numpy.savez(FILE, x=...) writes one"
        ) from None
